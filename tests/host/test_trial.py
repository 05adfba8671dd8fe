"""A newcomer's trial: one perturbation and one rule, each a file and a name, in a copy of the repository."""

import filecmp
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
NEEDED = ("CONTRIBUTING.md", "README.md", "__init__.py", "pyproject.toml")
NEEDED += ("guiders", "locales", "nodes", "patches", "tests", "tools", "web", "workflows")

PERTURBATION = '''"""Shuffled-attention guidance.   A V → A P V, with P a permutation of the picture's tokens

A toy after token shuffling, arXiv:2506.10036: the values of the picture's tokens change their places before they are seen.
Here what the attention gives is shuffled, which is the same where text is not seen. Neutral at scale 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import About, AttentionCall, AttentionPerturbation
from .layers import Layer


@dataclass(frozen=True)
class ShuffledAttention(AttentionPerturbation):
    """Shuffles what the picture's tokens get from the attention."""

    layers: tuple[Layer, ...]

    about: ClassVar[About] = About(
        node_id="BeyondCFGShuffled",
        name="Shuffled Attention",
        summary="Moves away from what the model predicts with shuffled tokens of the picture. As slow as CFG.",
        paper="arXiv:2506.10036",
        aliases=("token shuffling", "tpg"),
        guider=True,
    )

    @property
    def random(self) -> bool:
        return True

    def attention(self, call: AttentionCall) -> Tensor:
        out = call.attended()
        picture = call.attend(call.q[:, :, call.image], call.image)
        generators = call.moment.generators(len(out), torch.device("cpu"), call.layer)
        for row, (values, generator) in enumerate(zip(picture, generators, strict=True)):  # [heads, tokens, head_dim]
            order = torch.randperm(values.shape[1], generator=generator)
            out[row, :, call.image] = values[:, order.to(values.device)]
        return out
'''

RULE = '''"""Guidance across the prediction.   D = D₊ + s (Δ − Δ∥),   Δ = D₊ − D₋

A toy after tangential guidance, arXiv:2503.18137: ∥ is the part along D₊, per sample. Neutral at s = 0. Linear in s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import NEGATIVE, POSITIVE, About, Apply, Branch, GuidanceRule, check_params, param
from .linalg import exact, project


@dataclass(frozen=True)
class SidewaysGuidance(GuidanceRule):
    """s (Δ − Δ∥). Raises ValueError for a scale out of range."""

    scale: float = param(0.0, low=-1.0, high=100.0, off=0.0)

    about: ClassVar[About] = About(
        node_id="BeyondCFGSideways",
        name="Sideways",
        summary="Moves away from the negative, but not along the prediction. Use cfg 1 with it. As slow as CFG.",
        paper="arXiv:2503.18137",
        aliases=("sideways guidance", "across"),
        strength="weight",
        guider=True,
    )

    def __post_init__(self):
        check_params(self)

    def branches(self) -> tuple[Branch, ...]:
        return () if self.scale == 0 else (NEGATIVE,)

    def begin(self) -> Apply:
        def apply(denoised, predictions, step):
            positive, negative = exact(predictions[POSITIVE]), exact(predictions[NEGATIVE])
            _, across = project(positive - negative, positive, step.shapes)
            return (denoised + self.scale * across).to(denoised.dtype)

        return apply
'''

NODES = ("BeyondCFGShuffled", "BeyondCFGShuffledGuider", "BeyondCFGSideways", "BeyondCFGSidewaysGuider")
LAWS = ("tests/guiders/test_rules.py", "tests/patches/test_perturbations.py", "tests/test_architecture.py")
IN_THE_HOST = """
import os
from tools.imports import as_pack, with_host

as_pack()
with_host(os.environ["COMFYUI_PATH"], "--cpu", "--disable-api-nodes")
"""
PICTURES = """
from pack.nodes import guiders, terms
from pack.tests.host import networks
from pack.tests.host.harness import network, prompts, run, sample

nodes = {node.about.node_id: node for node in (*terms.NODES, *guiders.NODES)}
model, (positive, negative) = network("unet"), prompts("unet")
plain = sample(model, cfg=1.0, steps=1)
for name in NODES:
    inputs = nodes[name].inputs
    given = {given.id: given.default for given in inputs if getattr(given, "default", None) is not None}
    linked = {"model": model, "positive": positive, "negative": negative, "cfg": 1.0}
    given |= {name: value for name, value in linked.items() if name in [given.id for given in inputs]}
    made = nodes[name].execute(**given).result[0]
    guided = run(made, networks.latent("unet"), steps=1) if name.endswith("Guider") else sample(made, cfg=1.0, steps=1)
    assert guided.isfinite().all() and not (guided == plain).all(), name
"""
PAGES = """
from pack.tools import completeness, help_pages, locales, skeletons, support

schemas = [schema for schema in locales.schemas() if schema.node_id in NODES]
print(completeness.message(schemas), end="=====")
for part in (skeletons, help_pages, locales, support):
    part.write()
print(completeness.message(schemas), end="")
"""


def python(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    """What a Python says that runs in `folder`."""
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": "", "PYTHONUTF8": "1", **env}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, encoding="utf-8")


def laws(folder: Path, names: str) -> subprocess.CompletedProcess:
    """The laws of the methods that `names` selects. They need no host."""
    return python(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", names, *LAWS, COMFYUI_PATH="")


def add(folder: Path, registry: str, file: str, text: str, name: str) -> None:
    """A file for a method, and its name in the registry of its folder."""
    (folder / file).write_text(text, "utf-8")
    path = folder / file.partition("/")[0] / "__init__.py"
    before, paren, names = path.read_text("utf-8").partition(f"{registry} = (")
    line = f"from .{Path(file).stem} import {name}\n\n"
    path.write_text(f"{before.rstrip()}\n{line}{paren}{name}, {names}", "utf-8")


@pytest.fixture
def copy(tmp_path) -> Path:
    """The files of the repository, whatever else lies in its folder, with the two methods."""
    folder = tmp_path / "beyond_cfg"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *NEEDED],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    for name in (name for name in listed if (ROOT / name).is_file()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    add(folder, "PERTURBATIONS", "patches/shuffled_attention.py", PERTURBATION, "ShuffledAttention")
    add(folder, "RULES", "guiders/sideways.py", RULE, "SidewaysGuidance")
    return folder


def changed(folder: Path) -> set[str]:
    """The files of a copy that are not those of the repository."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {
        name.as_posix()
        for name in files
        if not (ROOT / name).exists() or not filecmp.cmp(folder / name, ROOT / name, shallow=False)
    }


def test_a_method_is_a_file_and_a_name_and_has_its_laws(copy):
    assert changed(copy) == {
        "patches/shuffled_attention.py", "patches/__init__.py", "guiders/sideways.py", "guiders/__init__.py"
    }  # fmt: skip
    done = laws(copy, "Shuffled or Sideways or shuffled_attention or sideways")
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 60  # of both together


def test_its_nodes_draw_and_one_message_says_what_words_are_missing(copy):
    done = python(copy, "-c", f"{IN_THE_HOST}\nNODES = {NODES}\n{PICTURES}\n{PAGES}")
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.split("=====")
    for node in NODES:
        assert f"{node}: no help page, web/docs/{node}.md" in before
        assert f"{node}: no Chinese for: " in before and f"{node}: no example workflow has it" in before
    missed = after.partition("Lacking as well")[0].splitlines()[1:]
    term = ("When to use it", "Good values", "Cost")
    assert missed == [
        *(f'    BeyondCFGShuffled: its help page has nothing under "{part}"' for part in term),
        *(f'    BeyondCFGSideways: its help page has nothing under "{part}"' for part in term),
        '    BeyondCFGShuffledGuider: its help page has nothing under "Cost"',
        '    BeyondCFGSidewaysGuider: its help page has nothing under "Cost"',
    ]
    page = (copy / "web/docs/BeyondCFGShuffled.md").read_text("utf-8")
    assert "A V → A P V" in page and "- `layers`: Which layers" in page and "Works where PAG does" in page


def test_a_misspelt_function_of_a_method_fails_its_laws_by_name(copy):
    wrong = {
        copy / "patches/shuffled_attention.py": ("def attention", "def atention"),
        copy / "guiders/sideways.py": ("def branches", "def brunches"),
    }
    for path, words in wrong.items():
        path.write_text(path.read_text("utf-8").replace(*words), "utf-8")
    done = laws(copy, "Shuffled or Sideways")
    assert done.returncode == 1
    for says in ("ShuffledAttention has atention, which nobody calls", "SidewaysGuidance has brunches, which nobody"):
        assert says in done.stdout, done.stdout + done.stderr

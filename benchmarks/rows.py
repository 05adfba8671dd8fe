"""What tables have in common whose rows are sampled once, each with several seeds: names, marks, facts, what is known."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .study.command import ROOT
from .study.methods import Method

SEEDS = (3, 4)
COMPUTE = "bf16"  # dtype of the network, as the host's ModelComputeDtype sets it
LEAST = 33  # pictures: both Fréchet distances need more than they have dimensions
CLEAR = 3  # paired standard errors, on each seed
Estimates = Sequence[
    Sequence[float] | None
]  # for each seed [value, low, high, standard error]; None: nothing to compare


def parsed(
    about: str,
    arguments: Sequence[str],
    results: Path | None,
    pictures: int | None,
    seeds: Sequence[int] = SEEDS,
    flags: Mapping[str, str] | None = None,
    compute: str = COMPUTE,
    least: int = LEAST,
) -> argparse.Namespace:
    """The options that these benchmarks share. about: the module's docstring. pictures: of each seed, by default. flags:
    those of one benchmark, each with its help. compute: by default. least: of pictures."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = ROOT / "benchmarks/models"
    parser.add_argument("--pictures", type=int, default=pictures, metavar="N", help="of each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--demo", type=Path, default=models, metavar="FOLDER", help="the demo models")
    parser.add_argument(
        "--compute", choices=["default", "fp32", "fp16", "bf16"], default=compute,
        help=f"of the network, {compute} without this; fp32 is far faster on a processor that has no bf16",
    )  # fmt: skip
    parser.add_argument("--again", action="store_true", help="sample all rows again")
    parser.add_argument("--results", type=Path, default=results, metavar="FILE.json")
    parser.add_argument("--comfyui", type=Path, metavar="FOLDER")
    for flag, help_text in (flags or {}).items():
        parser.add_argument(flag, action="store_true", help=help_text)
    options = parser.parse_args(arguments)
    if options.pictures is not None and options.pictures < least:
        parser.error(f"--pictures must be {least} or more: the measures need them")
    return options


def said(method: Method) -> str:
    """What a row's setting is called."""
    strength = f"{method.word} {method.strengths[0]:g}" if method.word else ""
    return ", ".join(filter(None, (strength, method.settings)))


def marked(text: str, differences: Estimates, more_is_better: bool) -> str:
    """`text` in bold where it is clearly better than what it is compared with, struck out where it is clearly worse."""
    if None in differences:
        return text
    sign = -1 if more_is_better else 1
    errors = [sign * value / max(error, 1e-9) for value, _, _, error in differences]  # without an error all are alike
    if max(errors) <= -CLEAR:
        return f"**{text}**"
    return f"~~{text}~~" if min(errors) >= CLEAR else text


def facts(results: dict) -> str:
    run, seeds = results["run"], ", ".join(map(str, results["seeds"]))
    commits = ", ".join(sorted({row["commit"] for row in results["rows"]}))
    return (
        f"{results['pictures']} pictures of each seed; seeds {seeds}; {results.get('compute', COMPUTE)}; "
        f"commit {commits}; {run['machine']}, {run['host']}, torch {run['torch']}"
    )


def known_rows(path: Path, results: dict) -> list[dict]:
    """The rows of earlier runs with the same model, pictures, seeds and dtype."""
    before = {"compute": COMPUTE, **json.loads(path.read_text("utf-8"))} if path.exists() else {"rows": []}
    asked = {"compute": COMPUTE, **results}
    same = all(before.get(name) == asked[name] for name in ("model", "pictures", "seeds", "compute"))
    return before["rows"] if same else []


def between(text: str, name: str, made: str) -> str:
    """A page's text with `made` between the marks of this name."""
    block = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    return re.sub(block, lambda mark: mark[1] + made + mark[2], text, flags=re.DOTALL)

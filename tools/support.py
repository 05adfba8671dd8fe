"""The table of what works on which architecture, from the tests' results into README.md and the nodes' help pages.

python dev.py test --update-support tests/host/test_architectures.py tests/host/test_prompts.py   on each host version; then
python dev.py docs
"""

import json
import re
from dataclasses import fields
from pathlib import Path

from ..guiders import RULES
from ..patches import PERTURBATIONS, PROMPT_GUIDANCES
from ..patches.architectures import ARCHITECTURES, HALF_WAY, REFUSED, RULE
from ..patches.base import About, AttentionPerturbation, BlockPerturbation, TimePerturbation, TokenPerturbation
from .places import ROOT

BEGIN, END = "<!-- support: made by tools/support.py -->", "<!-- /support -->"


def inside_the_network() -> list[About]:
    """The methods that reach into the network, so that they depend on its architecture: perturbations by their kind, and
    after those of the attention the rules that observe it."""
    of_kind = {
        kind: [method.about for method in PERTURBATIONS if issubclass(method, kind)]
        for kind in (AttentionPerturbation, TokenPerturbation, BlockPerturbation, TimePerturbation)
    }
    observing = [
        rule.about for rule in RULES if rule.about and any(field.name == "observation" for field in fields(rule))
    ]
    others = (TokenPerturbation, BlockPerturbation, TimePerturbation)
    negative = PROMPT_GUIDANCES[0].about  # where it acts, all of its kind do
    return [
        *of_kind[AttentionPerturbation],
        *observing,
        *(about for kind in others for about in of_kind[kind]),
        negative,
    ]


def node_ids() -> set[str]:
    """The nodes whose help page has the table."""
    return {about.node_id for about in inside_the_network()} | {"BeyondCFGLayerMap"}


def table(found: dict[str, dict[str, dict[str, str]]], skip: bool = False) -> str:
    """host version → architecture → method → what its tests have shown. `skip`: with the layers that are skipped."""
    versions = sorted(found, key=lambda version: [*map(int, version.split("."))])
    architectures = [row.name for row in ARCHITECTURES if any(row.name in found[version] for version in versions)]
    tried = {method for version in versions for methods in found[version].values() for method in methods}
    shown = [about.name for about in inside_the_network() if about.name in tried]
    lines = [f"| | `auto` | {' | '.join(shown)} | ComfyUI |", f"|---|---|{'---|' * len(shown)}---|"]
    for name in architectures:
        row = next(row for row in ARCHITECTURES if row.name == name)
        auto, source = (row.auto_skip, row.skip_source) if skip else (row.auto, row.source)
        auto = f"`{auto}`" + " *" * (source == RULE)
        on = [version for version in versions if name in found[version]]
        results = {version: found[version][name] for version in on}
        cells = [_cell({v: of[method] for v, of in results.items() if method in of}) for method in shown]
        if skip and cells[shown.index("Skip Layer")] == "no":
            auto = ""
        lines.append(f"| {name} | {auto} | {' | '.join(cells)} | {_range(on)} |")
    refused = (f"{path.rpartition('.')[2]}: {why}" for path, why in REFUSED.items())
    notes = [
        f"\\* `{HALF_WAY}`: {RULE}. Where the others come from, Layer Map says.",
        f"Tried on ComfyUI {', '.join(versions)}. Refused by name: {'; '.join(refused)}.",
    ]
    names = [method.about.name for method in PROMPT_GUIDANCES]
    if names[0] in shown:
        notes.append(f"{', '.join(names[1:])}: as {names[0]}.")
    for method in shown:
        on = [version for version in versions if any(method in methods for methods in found[version].values())]
        if on != versions:
            notes.append(f"{method}: tried on {', '.join(on)} so far.")
    return "\n".join([*lines, "", *notes])


def _range(versions: list[str]) -> str:
    return versions[0] if len(versions) == 1 else f"{versions[0]} – {versions[-1]}"


def _cell(on: dict[str, str]) -> str:
    """One word where all versions agree that it was tried on, else each with its own."""
    if not on:
        return "?"
    if len(set(on.values())) == 1:
        return on.popitem()[1]
    return ", ".join(f"{can} ({version})" for version, can in on.items())


def stale() -> dict[Path, str]:
    """The pages whose table is not that of the tests' results, with what they should be."""
    found, changed = json.loads((ROOT / "tests/golden/support.json").read_text("utf-8")), {}
    skipping = {method.about.node_id for method in PERTURBATIONS if issubclass(method, BlockPerturbation)}
    for page in (ROOT / "README.md", *sorted((ROOT / "web/docs").glob("*.md"))):
        text = page.read_text("utf-8")
        made = f"{BEGIN}\n{table(found, skip=page.stem in skipping)}\n{END}"
        new = re.sub(f"{BEGIN}.*?{END}", lambda _, made=made: made, text, flags=re.DOTALL)
        if new != text:
            changed[page] = new
    return changed


def write() -> None:
    """The table, into all pages that have its marks."""
    for page, text in stale().items():
        page.write_text(text, "utf-8")

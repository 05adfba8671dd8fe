"""What works on which network, from the tests' results: a table into README.md and docs/NETWORKS.md, and a sentence into
the help pages, which are too narrow for the table.

python dev.py test --update-support tests/host/test_architectures.py tests/host/test_prompts.py   on each host version; then
python dev.py docs
"""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

from ..guiders import RULES
from ..patches import PERTURBATIONS, PROMPT_GUIDANCES
from ..patches.architectures import ARCHITECTURES, HALF_WAY, REFUSED, RULE
from ..patches.base import About, AttentionPerturbation, BlockPerturbation, TimePerturbation, TokenPerturbation
from .places import PACK, ROOT

BEGIN, END = "<!-- support: made by tools/support.py -->", "<!-- /support -->"
ALL_NETWORKS = f"[All networks](https://github.com/beyond-cfg/{PACK}/blob/main/docs/NETWORKS.md)"
Found = dict[str, dict[str, dict[str, str]]]  # host version → architecture → method → what its tests have shown


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


def said(found: Found) -> dict[str, str]:
    """The node of each method that depends on the network → where it works. One without results of its own works where the
    first method of its kind does."""
    tried, methods = _tried(found), {about.node_id: about for about in inside_the_network()}
    methods |= {method.about.node_id: method.about for method in PROMPT_GUIDANCES}
    negatives = {method.about.name for method in PROMPT_GUIDANCES}
    first = next(about.name for about in inside_the_network() if about.name in tried)
    sentences = {}
    for node_id, about in methods.items():
        other = PROMPT_GUIDANCES[0].about.name if about.name in negatives else first
        sentences[node_id] = sentence(found, about.name if about.name in tried else other, about.name)
    known = f"The pack knows {len(_architectures(found))} networks by name. {ALL_NETWORKS}"
    return sentences | {"BeyondCFGLayerMap": known}


def sentence(found: Found, method: str, name: str) -> str:
    """On which networks the method of that name works, by the results of a method."""
    results = {network: _cell(_by_version(found, network, method)) for network in _architectures(found)}
    no = [network for network, can in results.items() if can == "no"]
    only = [f"On {network} only with {can}." for network, can in results.items() if can not in ("yes", "no")]
    count = f"{len(results) - len(no)} of the {len(results)}" if no else f"all {len(results)}"
    where = f"{count} networks that the pack knows by name"
    works = f"Works on {where}." if name == method else f"Works where {method} does: on {where}."
    but = [f"Not on: {'; '.join(no)}."] if no else []
    return " ".join([works, *but, *only, ALL_NETWORKS])


def node_ids() -> set[str]:
    """The nodes whose help page says on which networks they work."""
    return {*said(_found())}


def _found() -> Found:
    return json.loads((ROOT / "tests/golden/support.json").read_text("utf-8"))


def _tried(found: Found) -> set[str]:
    return {method for architectures in found.values() for methods in architectures.values() for method in methods}


def _versions(found: Found) -> list[str]:
    return sorted(found, key=lambda version: [*map(int, version.split("."))])


def _architectures(found: Found) -> list[str]:
    return [row.name for row in ARCHITECTURES if any(row.name in on for on in found.values())]


def _by_version(found: Found, architecture: str, method: str) -> dict[str, str]:
    on = {version: found[version].get(architecture, {}) for version in _versions(found)}
    return {version: methods[method] for version, methods in on.items() if method in methods}


def table(found: Found) -> str:
    """One row for each network: which layers `auto` is, there and for Skip Layer, and what works."""
    versions, tried = _versions(found), _tried(found)
    shown = [about.name for about in inside_the_network() if about.name in tried]
    lines = [
        f"| | `auto` | `auto` of Skip Layer | {' | '.join(shown)} | ComfyUI |",
        f"|---|---|---|{'---|' * len(shown)}---|",
    ]
    for name in _architectures(found):
        row = next(row for row in ARCHITECTURES if row.name == name)
        cells = {method: _cell(_by_version(found, name, method)) for method in shown}
        skip = "" if cells["Skip Layer"] == "no" else _auto(row.auto_skip, row.skip_source)
        on = [version for version in versions if name in found[version]]
        lines.append(
            f"| {name} | {_auto(row.auto, row.source)} | {skip} | {' | '.join(cells.values())} | {_range(on)} |"
        )
    refused = (f"{path.rpartition('.')[2]}: {why}" for path, why in REFUSED.items())
    notes = [
        f"\\* `{HALF_WAY}`: {RULE}. Layer Map says where the others come from.",
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


def _auto(layers: str, source: str) -> str:
    return f"`{layers}`" + " *" * (source == RULE)


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
    """The pages that do not say what the tests' results are, with what they should be."""
    found, changed = _found(), {}
    tables = dict.fromkeys((ROOT / "README.md", ROOT / "docs/NETWORKS.md"), table(found))
    pages = {ROOT / f"web/docs/{node_id}.md": words for node_id, words in said(found).items()}
    for page, what in {**tables, **pages}.items():
        if not page.exists():  # of a new node, before skeletons.py wrote it
            continue
        text = page.read_text("utf-8")
        made = f"{BEGIN}\n{what}\n{END}"
        new = re.sub(f"{BEGIN}.*?{END}", lambda _, made=made: made, text, flags=re.DOTALL)
        if new != text:
            changed[page] = new
    return changed


def write() -> None:
    """Into all pages that have the marks."""
    for page, text in stale().items():
        page.write_text(text, "utf-8")

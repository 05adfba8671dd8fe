"""What a node still lacks outside its code: help page, Chinese, a picture, an example, a golden.

A user would miss the first, so a test fails without it; the others are listed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import locales
from .places import ROOT

UNWRITTEN = "To be written."  # what a skeleton says where only a person knows
PAPER = re.compile(r"\(arXiv:([\d.]+)\)$")  # at the end of a description


@dataclass(frozen=True)
class Lack:
    """One thing that a node lacks, and whether a user would miss it."""

    what: str
    is_missed: bool


def lacks_of(schema, root: Path = ROOT) -> list[Lack]:
    """All that the node with this schema lacks in the repository at `root`."""
    return [
        *(Lack(what, True) for what in _missed(schema, root)),
        *(Lack(what, False) for what in _missing(schema, root)),
    ]


def message(schemas: list, root: Path = ROOT) -> str:
    """All that nodes lack, in one text: first what a user would miss, then the rest. Empty where they lack nothing."""
    found = [(schema.node_id, lack) for schema in schemas for lack in lacks_of(schema, root)]
    missed = [f"    {node_id}: {lack.what}" for node_id, lack in found if lack.is_missed]
    others = [f"    {node_id}: {lack.what}" for node_id, lack in found if not lack.is_missed]
    parts = []
    if missed:
        parts.append("Users would miss (python dev.py docs writes what can be generated):\n" + "\n".join(missed))
    if others:
        parts.append("Lacking as well:\n" + "\n".join(others))
    return "\n".join(parts)


def _missed(schema, root: Path) -> Iterator[str]:
    page = root / "web/docs" / f"{schema.node_id}.md"
    if page.exists():
        yield from _faults_of_page(schema, page.read_text("utf-8"))
    else:
        yield f"no help page, web/docs/{page.name}"


def _faults_of_page(schema, page: str) -> Iterator[str]:
    if not page.startswith(f"# {schema.display_name}\n"):
        yield f"its help page does not begin with its title, # {schema.display_name}"
    listed = re.search(r"## Inputs\n\n(.*?)\n\n", page, re.S)
    named = re.findall(r"^- `(.*?)`", listed[1], re.M) if listed else []
    inputs = [given.id for given in schema.inputs]
    if unnamed := [name for name in inputs if name not in named]:
        yield f"its help page does not name the inputs {', '.join(unnamed)}"
    if unknown := [name for name in named if name not in inputs]:
        yield f"its help page names inputs that it does not have: {', '.join(unknown)}"
    if (paper := PAPER.search(schema.description)) and paper[1] not in page:
        yield f"its help page does not name its paper, {paper[1]}"
    for section in page.split("\n## ")[1:]:
        if UNWRITTEN in section:
            yield f'its help page has nothing under "{section.splitlines()[0]}"'


def _missing(schema, root: Path) -> Iterator[str]:
    for sentence in locales.untranslated(locales.texts(schema), locales.catalogue()):
        yield f"no Chinese for: {sentence}"
    if not (root / "web/docs" / f"{schema.node_id}.jpg").exists():
        yield f"no picture for its help page, web/docs/{schema.node_id}.jpg"
    if not any(_uses(path, schema.node_id) for path in (root / "workflows/api").glob("*.json")):
        yield "no example workflow has it"
    if schema.node_id not in json.loads((root / "tests/golden/schemas.json").read_text("utf-8")):
        yield "tests/golden/schemas.json does not hold its inputs (python dev.py test --update-golden)"
    paper = PAPER.search(schema.description)
    if paper and paper[1] not in (root / "README.md").read_text("utf-8").partition("## Papers")[2]:
        yield f"its paper, {paper[1]}, is not among the papers in README.md"


def _uses(path: Path, node_id: str) -> bool:
    return any(node["class_type"] == node_id for node in json.loads(path.read_text("utf-8")).values())

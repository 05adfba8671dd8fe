"""What a help page says that stands elsewhere already, so that it is written once: python dev.py docs copies it.

title and first paragraph   the node's title and description
the list under Inputs       the tooltips
Try it                      the example workflows that have the node
links                       [PAG] leads to the page of the node of that name

The rest of web/docs/NODE.md is written by hand. The host shows a page beside the graph, where 270 px are its width.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from . import locales
from .completeness import PAPER
from .places import PACK, ROOT

FOLDER = "web/docs"
ON_GITHUB = f"https://github.com/beyond-cfg/{PACK}/blob/main"  # a page beside the graph cannot link to another one
TRY_IT = "**Try it:**"
MOST = 3  # examples that a page names
LINK = re.compile(r"^\[[^\]\n]+\]: \S+$\n?", re.M)
BLOCK = re.compile(r"^```.*?^```$", re.M | re.S)


def examples() -> dict[str, set[str]]:
    """The name of each example, in the order of learning → the ids of the pack's nodes in it."""
    found = {}
    for path in sorted((ROOT / "workflows").glob("*.json")):
        workflow = json.loads(path.read_text("utf-8"))
        graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
        kinds = {node["type"] for graph in graphs for node in graph["nodes"]}
        found[path.stem] = {kind for kind in kinds if kind.startswith("BeyondCFG")}
    return found


def try_it(node_id: str, found: dict[str, set[str]]) -> str:
    """Where the examples of a node are. Those with the fewest other nodes come first. Empty where there is none."""
    names = sorted((name for name, kinds in found.items() if node_id in kinds), key=lambda name: len(found[name]))
    names = [f"*{name}*" for name in names[:MOST]]
    joined = " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"{TRY_IT} open **Templates**, then {PACK}, then {joined}." if names else ""


def inputs(schema) -> str:
    """The list of a node's inputs, in the words of its tooltips."""
    lines = [f"- `{given.id}`{' (optional)' if given.optional else ''}: {given.tooltip}" for given in schema.inputs]
    return "\n".join(lines)


def opening(schema) -> str:
    """What a node is for, as the page begins with it."""
    return PAPER.sub("", schema.description).strip()


def made(page: str, schema, nodes: dict[str, str], found: dict[str, set[str]]) -> str:
    """The page with all that is copied into it. `nodes`: short name → id."""
    head, *sections = LINK.sub("", page).rstrip().split("\n## ")
    _, _, *kept = head.split("\n\n")
    kept = [part.strip() for part in kept if not part.strip().startswith(TRY_IT)]
    line = try_it(schema.node_id, found)
    head = "\n\n".join([f"# {schema.display_name}", opening(schema), *kept, *([line] if line else [])])
    sections = [_with_inputs(part, schema) if part.startswith("Inputs\n") else part for part in sections]
    text = "\n## ".join([f"{head.rstrip()}\n", *sections]).rstrip() + "\n"
    return text + _links(text, nodes)


def _with_inputs(section: str, schema) -> str:
    title, _, *after = section.rstrip().split("\n\n")
    return "\n\n".join([title, inputs(schema), *after]) + "\n"


def _links(text: str, nodes: dict[str, str]) -> str:
    written = BLOCK.sub("", text)
    named = [name for name in nodes if f"[{name}]" in written]
    return "\n" * bool(named) + "".join(f"[{name}]: {ON_GITHUB}/{FOLDER}/{nodes[name]}.md\n" for name in named)


def stale(schemas: list) -> dict[Path, str]:
    """The pages that are not what they should be, with that. The host has to be importable."""
    nodes = {locales.name_of(schema): schema.node_id for schema in schemas}
    found, changed = examples(), {}
    for schema in schemas:
        path = ROOT / FOLDER / f"{schema.node_id}.md"
        if path.exists() and (new := made(old := path.read_text("utf-8"), schema, nodes, found)) != old:
            changed[path] = new
    return changed


def write() -> None:
    """All of them. The host has to be importable."""
    for path, text in stale(locales.schemas()).items():
        path.write_text(text, "utf-8")

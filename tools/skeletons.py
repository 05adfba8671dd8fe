"""The skeleton of a new node's help page.

What can be computed stands in it: title, inputs with their tooltips, the paper, the equation. The rest says that it
is to be written; completeness.py lists it. What exists is never written over.
"""

from __future__ import annotations

import re
import sys

from . import locales, support
from .completeness import PAPER, UNWRITTEN
from .places import ROOT


def help_page(schema) -> str:
    """The help page of a node, in Markdown, with what its schema and its method's file know."""
    summary = PAPER.sub("", schema.description).strip()
    inputs = [f"| `{given.id}` | {_cell(given.tooltip)} |" for given in schema.inputs]
    parts = [f"# {schema.display_name}", summary]
    if schema.node_id.endswith("Guider"):
        term = schema.display_name.removesuffix(" Guider")
        parts.append(
            f"It makes the same picture as the node **{term}** on the model with ComfyUI's own CFG Guider. The page of "
            f"**{term}** has when to use it, good values, formula and limits."
        )
    else:
        parts += ["## When to use it", UNWRITTEN]
    parts += ["## Inputs", "\n".join(["| input | what it does |", "|---|---|", *inputs])]
    if not schema.node_id.endswith("Guider"):
        parts += ["## Good values", UNWRITTEN]
    parts += ["## Cost per step", UNWRITTEN]
    if equation := _equation(schema.node_id):
        parts += ["## Formula", f"```text\n{equation}\n```"]
    if paper := PAPER.search(schema.description):
        parts.append(f"Paper: [arXiv:{paper[1]}](https://arxiv.org/abs/{paper[1]})")
    if schema.node_id in support.node_ids():
        parts += ["## Architectures", f"{support.BEGIN}\n{support.END}"]
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _equation(node_id: str) -> str:
    """The equation in the first line of the file of the method that has this node; empty where no method has."""
    from ..guiders import RULES
    from ..patches import PERTURBATIONS

    for method in (*PERTURBATIONS, *RULES):
        if method.about is not None and method.about.node_id == node_id:
            first = (sys.modules[method.__module__].__doc__ or "").splitlines()[0]
            return re.split(r" {2,}", first, maxsplit=1)[-1]
    return ""


def write() -> None:
    """The pages of all nodes that have none. The host has to be importable."""
    for schema in locales.schemas():
        page = ROOT / "web/docs" / f"{schema.node_id}.md"
        if not page.exists():
            page.write_text(help_page(schema), "utf-8")

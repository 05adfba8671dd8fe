"""The skeleton of a new node's help page.

What can be computed stands in it: title, inputs with their tooltips, the paper, the equation. The rest says that it
is to be written; completeness.py lists it. What exists is never written over.
"""

from __future__ import annotations

import re
import sys

from . import help_pages, locales, support
from .completeness import PAPER, UNWRITTEN
from .places import ROOT


def help_page(schema) -> str:
    """The help page of a node, in Markdown, with what its schema and its method's file know."""
    parts = [f"# {schema.display_name}", help_pages.opening(schema)]
    if schema.node_id.endswith("Guider"):
        term = schema.display_name.removesuffix(" Guider")
        parts.append(
            f"It makes the same picture as the node [{term}] on the model with ComfyUI's own CFG Guider. The page of "
            f"[{term}] has good values, the formula and the limits."
        )
    else:
        parts += ["## When to use it", UNWRITTEN]
    parts += ["## Inputs", help_pages.inputs(schema)]
    if not schema.node_id.endswith("Guider"):
        parts += ["## Good values", UNWRITTEN]
    parts += ["## Cost", UNWRITTEN]
    if equation := _equation(schema.node_id):
        parts += ["## Formula", f"`{equation}`"]  # a block of code would not wrap
    if paper := PAPER.search(schema.description):
        parts.append(f"Paper: [arXiv:{paper[1]}](https://arxiv.org/abs/{paper[1]})")
    if schema.node_id in support.node_ids():
        parts += ["## Works on", f"{support.BEGIN}\n{support.END}"]
    return "\n\n".join(parts) + "\n"


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

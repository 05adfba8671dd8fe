"""Skeletons of what a new node needs beside its code: its help page, and its row in the README.

What can be computed stands in them: titles, inputs with their tooltips, the paper, the equation. The rest says that it
is to be written; completeness.py lists it. What exists is never written over.
"""

from __future__ import annotations

import re
import sys

from . import help_pages, locales, support
from .completeness import PAPER, UNWRITTEN, names_in, rows_of
from .places import ROOT


def help_page(schema) -> str:
    """The help page of a node, in Markdown, with what its schema and its method's file know."""
    parts = [f"# {schema.display_name}", help_pages.opening(schema)]
    if schema.node_id.endswith("Guider"):
        term = locales.name_of(schema).removesuffix(" Guider")
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


def with_row(readme: str, schema) -> str:
    """The README with a row for the node in its table of nodes; one of a guider joins the row of all guiders."""
    guiders = next(row for row in rows_of(readme) if names_in(row)[0].endswith(" Guider"))
    if schema.node_id.endswith("Guider"):
        name = locales.name_of(schema).removesuffix(" Guider")
        return readme.replace(guiders, guiders.replace(" Guider**", f", {name} Guider**", 1))
    summary = _cell(PAPER.sub("", schema.description).strip())
    if paper := PAPER.search(schema.description):
        summary += f" ([{paper[1]}](https://arxiv.org/abs/{paper[1]}))"
    name = locales.name_of(schema).replace("*", r"\*")
    return readme.replace(guiders, f"| **{name}** | {summary} | {UNWRITTEN} |\n{guiders}")


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
    """The skeletons of all nodes that have none. The host has to be importable."""
    readme = ROOT / "README.md"
    for schema in locales.schemas():
        page = ROOT / "web/docs" / f"{schema.node_id}.md"
        if not page.exists():
            page.write_text(help_page(schema), "utf-8")
        text = readme.read_text("utf-8")
        if not any(locales.name_of(schema) in names_in(row) for row in rows_of(text)):
            readme.write_text(with_row(text, schema), "utf-8")

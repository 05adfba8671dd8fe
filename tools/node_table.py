"""README's tables of all nodes, one for each group, from what the nodes say of themselves.

python dev.py docs
"""

from __future__ import annotations

import re

from . import locales
from .completeness import PAPER
from .places import ROOT

BEGIN, END = "<!-- nodes: made by tools/node_table.py -->", "<!-- /nodes -->"
PAGE = ROOT / "README.md"
GROUPS = ("Guidance", "CFG corrections", "Negative prompts", "Tools", "Weaker models", "Guiders")


def tables(schemas: list) -> str:
    """The tables, in the order of GROUPS."""
    parts = []
    for group in GROUPS:
        rows = [_row(schema) for schema in schemas if schema.category.endswith(f"/{group}")]
        parts += [f"### {group}", "\n".join(["| node | what it does | paper |", "|---|---|---|", *rows])]
    return "\n\n".join(parts)


def _row(schema) -> str:
    paper = PAPER.search(schema.description)
    link = f"[{paper[1]}](https://arxiv.org/abs/{paper[1]})" if paper else ""
    title = schema.display_name.replace("*", r"\*")
    words = PAPER.sub("", schema.description).strip().replace("|", r"\|").replace("*", r"\*")
    return f"| [**{title}**](web/docs/{schema.node_id}.md) | {words} | {link} |"


def made() -> str:
    """The README with the tables as they should be. The host has to be importable."""
    content = f"{BEGIN}\n{tables(locales.schemas())}\n{END}"
    return re.sub(f"{BEGIN}.*?{END}", lambda _: content, PAGE.read_text("utf-8"), flags=re.DOTALL)


def write() -> None:
    """The tables, into the README."""
    PAGE.write_text(made(), "utf-8")

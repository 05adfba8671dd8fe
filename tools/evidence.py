"""The tables and pages of the evidence, from the results in benchmarks/results: what was measured stays as it is.

python dev.py docs
"""

import json
from pathlib import Path

from ..benchmarks import cost, distil, high_cfg, negatives, orders, reuse
from ..benchmarks.study.cells import read_records
from ..benchmarks.study.report import report
from ..benchmarks.study.summary import in_step
from ..benchmarks.toy2d.page import page as page_of_toy2d
from .places import ROOT

RESULTS, READMES = ROOT / "benchmarks/results", (ROOT / "README.md", ROOT / "benchmarks/README.md")

WITH_TABLES = {
    "high_cfg": high_cfg,
    "negatives": negatives,
    "reuse": reuse,
    "reuse_together": reuse,
    "distil": distil,
}  # in benchmarks/README.md
PAGES = {"cost": cost.page, "orders": orders.page, "toy2d": page_of_toy2d}
PAGES |= {name: made_by.page for name, made_by in WITH_TABLES.items()}


def made() -> dict[Path, str]:
    """Each page, with what the results make of it. READMEs keep what stands around their tables."""

    def results(name: str) -> dict:
        return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))

    pages = {page: in_step(page.read_text("utf-8"), RESULTS) for page in READMES}
    pages[READMES[0]] = cost.in_step(pages[READMES[0]], results("cost"))
    for name, made_by in WITH_TABLES.items():
        pages[READMES[1]] = made_by.in_step(pages[READMES[1]], results(name))
    for name, page in PAGES.items():
        pages[RESULTS / f"{name}.md"] = page(results(name))
    for path in RESULTS.glob("quality_*.jsonl"):
        pages[path.with_suffix(".md")] = report(read_records(path))
    return pages


def stale() -> dict[Path, str]:
    """The pages that are not what the results make of them, with what they should be."""
    return {path: text for path, text in made().items() if path.read_text("utf-8") != text}


def write() -> None:
    """Write the pages that have changed."""
    for path, text in stale().items():
        path.write_text(text, "utf-8")

"""The tables and pages of the evidence, from the results in benchmarks/results: what was measured stays as it is.

python dev.py docs
"""

import json
from pathlib import Path

from ..benchmarks import cost, distil, high_cfg, negatives
from ..benchmarks.study.cells import read_records
from ..benchmarks.study.report import report
from ..benchmarks.study.summary import in_step
from ..benchmarks.toy2d.page import page as page_of_toy2d
from .places import ROOT

RESULTS, READMES = ROOT / "benchmarks/results", (ROOT / "README.md", ROOT / "benchmarks/README.md")


def made() -> dict[Path, str]:
    """Each page, with what the results make of it. READMEs keep what stands around their tables."""
    costs = json.loads((RESULTS / "cost.json").read_text("utf-8"))
    high, at_cfg_1 = (json.loads((RESULTS / f"{name}.json").read_text("utf-8")) for name in ("high_cfg", "negatives"))
    pages = {page: in_step(page.read_text("utf-8"), RESULTS) for page in READMES}
    pages[READMES[0]] = cost.in_step(pages[READMES[0]], costs)
    pages[READMES[1]] = negatives.in_step(high_cfg.in_step(pages[READMES[1]], high), at_cfg_1)
    pages[RESULTS / "high_cfg.md"], pages[RESULTS / "negatives.md"] = high_cfg.page(high), negatives.page(at_cfg_1)
    if distil.RESULTS.exists():
        learnt = json.loads(distil.RESULTS.read_text("utf-8"))
        pages[READMES[1]], pages[RESULTS / "distil.md"] = distil.in_step(pages[READMES[1]], learnt), distil.page(learnt)
    pages[RESULTS / "cost.md"] = cost.page(costs)
    pages[RESULTS / "toy2d.md"] = page_of_toy2d(json.loads((RESULTS / "toy2d.json").read_text("utf-8")))
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

"""The study in a README: one line for each method of a setting, over all reported seeds, between two marks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .cells import read_records
from .methods import NONE, REAL
from .report import number, setting, table

COLUMNS = ("accuracy", "fd", "fd_pixel", "precision", "recall", "diversity")
TITLES = ("accuracy", "FD", "FD pixel", "precision", "recall", "diversity")
BLOCK = r"(<!-- quality: ([\w-]+) -->\n).*?(<!-- /quality -->)"


def summary(records: Sequence[dict]) -> list[str]:
    """Means over the seeds; of each seed, the difference of FD from none in paired standard errors."""
    reported = [record for record in records if record["kind"] == "cell" and record["key"]["stage"] == "report"]
    methods: dict[str, list[dict]] = {}
    for cell in reported:
        methods.setdefault(cell["key"]["method"], []).append(cell)
    whole = max((len(cells) for cells in methods.values()), default=0)
    rows = []
    for name, cells in methods.items():
        values = [[cell["values"][column][0] for cell in cells if column in cell["values"]] for column in COLUMNS]
        shown = [number(sum(found) / len(found)) if found else "" for found in values]
        errors = [cell["against_none"]["fd"] for cell in cells if "fd" in cell["against_none"]]
        paired = ", ".join(f"{value / error:+.0f}" for value, _, _, error in errors if error > 0)
        cost = "" if name == REAL else f"{cells[0]['rows_per_step']:g}"
        seeds = "" if len(cells) == whole else f"seed {cells[0]['key']['seed']} only"
        settings = ", ".join(filter(None, (setting(cells[0]["key"]), seeds)))
        rows.append([name, settings, *shown, paired, cost])
    order = {REAL: 0, NONE: 1}
    rows.sort(key=lambda row: order.get(row[0], 2))
    return table(["method", "setting", *TITLES, "ΔFD / error", "rows"], rows)


def facts(records: Sequence[dict]) -> str:
    """Which file says it, and what made that."""
    runs = [record for record in records if record["kind"] == "run"]
    cells = [record for record in records if record["kind"] == "cell"]
    seeds = sorted({cell["key"]["seed"] for cell in cells if cell["key"]["stage"] == "report"})
    counts = sorted({cell["key"]["n"] for cell in cells if cell["key"]["stage"] == "report"})
    machines = sorted({f"{run['machine']}, {run['host']}, torch {run['torch']}" for run in runs})
    return f"n = {', '.join(map(str, counts))}; seeds {', '.join(map(str, seeds))}; {'; '.join(machines)}."


def in_step(text: str, results: Path) -> str:
    """A README's text with every block made again from results/quality_NAME.jsonl."""

    def block(match: re.Match) -> str:
        path = results / f"quality_{match[2]}.jsonl"
        records = read_records(path)
        lines = [*summary(records), f"From `results/{path.name}`: {facts(records)}", ""]
        return match[1] + "\n".join(lines) + match[3]

    return re.sub(BLOCK, block, text, flags=re.DOTALL)

"""The tables of the study, in markdown, from its results alone."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .cells import read_records
from .curves import draw
from .methods import NONE

COLUMNS = (
    ("accuracy", "accuracy"), ("easy_accuracy", "easy part"), ("all_right", "all right"), ("fd", "FD"),
    ("fd_pixel", "FD pixel"), ("precision", "precision"), ("recall", "recall"), ("diversity", "diversity"),
    ("change", "change"),
    ("diversity_pixel", "diversity (pixels)"), ("contrast", "contrast"), ("saturation", "saturation"),
    ("clipped", "clipped"),
)  # fmt: skip
SHOWN = ("accuracy", "fd", "fd_pixel", "precision", "recall", "diversity", "contrast", "saturation")  # of differences
WORDS = (
    "Intervals of 95 %: prompts drawn anew, for recall halves of them. FD: Fréchet distance in the judge's features, in "
    "units of their mean deviation; FD pixel: in 32 components of the pixels. Both are biased upwards, alike for all of "
    "one n. change: mean difference of pixels from none, same noise. forwards and rows: per step, all networks together.",
    "Differences from none on the same prompts and noise; in brackets in paired standard errors. Below 3 it may be chance.",
    "Differences on the same prompts and noise; in brackets in paired standard errors.",
)


def number(value: float) -> str:
    return f"{value:.3f}"


def with_interval(estimate: Sequence[float] | None) -> str:
    return "" if estimate is None else f"{number(estimate[0])} ({number(estimate[1])} to {number(estimate[2])})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns that are empty everywhere are left out."""
    kept = [at for at in range(len(header)) if any(row[at] for row in rows)]
    lines = [[header[at] for at in kept], ["---"] * len(kept), *([row[at] for at in kept] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def setting(key: dict) -> str:
    strength = f"{key['word']} {key['strength']:g}" if key["word"] else ""
    return ", ".join(part for part in (strength, key["settings"]) if part)


def value_table(cells: Sequence[dict]) -> list[str]:
    names = [name for name, _ in COLUMNS]
    header = ["method", "setting", "seed", *(title for _, title in COLUMNS), "forwards", "rows", "CPU ms a picture"]
    rows = []
    for cell in cells:
        key = cell["key"]
        sampled = bool(cell["forwards_per_step"])
        cost = [f"{cell[name]:g}" if sampled else "" for name in ("forwards_per_step", "rows_per_step")]
        cost.append(f"{cell['cpu_ms_per_picture']:.1f}" if sampled else "")
        values = [with_interval(cell["values"].get(name)) for name in names]
        rows.append([key["method"], setting(key), str(key["seed"]), *values, *cost])
    return table(header, rows)


def difference_table(cells: Sequence[dict]) -> list[str]:
    header, rows = ["method", "setting", "seed", *SHOWN], []
    for cell in cells:
        if found := cell["against_none"]:
            values = [in_errors(found.get(name)) for name in SHOWN]
            rows.append([cell["key"]["method"], setting(cell["key"]), str(cell["key"]["seed"]), *values])
    return table(header, rows) if rows else []


def comparison_table(comparisons: Sequence[dict]) -> list[str]:
    """Of what is made of other methods: how it differs from each."""
    rows = []
    for record in comparisons:
        values = [in_errors(record["differences"].get(name)) for name in SHOWN]
        rows.append([record["key"]["method"], record["key"]["than"], str(record["key"]["seed"]), *values])
    return table(["method", "less", "seed", *SHOWN], rows) if rows else []


def in_errors(estimate: Sequence[float] | None) -> str:
    if estimate is None:
        return ""
    return f"{estimate[0]:+.3f}" + (f" ({estimate[0] / estimate[3]:+.1f})" if estimate[3] > 0 else "")


def at_accuracy(points: Sequence[tuple[float, float]], accuracy: float) -> float | None:
    """A measure at one accuracy, by straight lines between a method's (accuracy, measure) in order of its strengths; the
    first crossing counts. None where its strengths do not reach it."""
    for (low, first), (high, last) in itertools.pairwise(points):
        if min(low, high) <= accuracy <= max(low, high):
            return first if low == high else first + (last - first) * (accuracy - low) / (high - low)
    return None


def matched_table(tries: Sequence[dict], targets: int = 3) -> list[str]:
    """FD and FD pixel of each method at the same accuracies, between none and the most that CFG reaches."""
    curves: dict[str, list[dict]] = {}
    for cell in tries:
        if "accuracy" in cell["values"]:
            curves.setdefault(cell["key"]["method"], []).append(cell)
    start = curves.pop(NONE, None)
    if not start or "CFG" not in curves:
        return []
    accuracy = {name: [cell["values"]["accuracy"][0] for cell in cells] for name, cells in curves.items()}
    low, high = start[0]["values"]["accuracy"][0], max(accuracy["CFG"])
    wanted = [low + (high - low) * (at + 1) / (targets + 1) for at in range(targets)]
    header = ["method", *(f"{title} at {one:.3f}" for one in wanted for title in ("FD", "FD pixel"))]
    rows = []
    for name, cells in curves.items():
        cells = start + sorted(cells, key=lambda cell: cell["key"]["strength"])
        row = []
        for one in wanted:
            for measure in ("fd", "fd_pixel"):
                points = [(c["values"]["accuracy"][0], c["values"].get(measure, [np.nan])[0]) for c in cells]
                found = at_accuracy(points, one)
                row.append("not reached" if found is None else number(found))
        rows.append([name, *row])
    return table(header, rows)


def report(records: Sequence[dict]) -> str:
    """Markdown, from the records alone."""
    runs = [record for record in records if record["kind"] == "run"]
    cells = [record for record in records if record["kind"] == "cell"]
    lines = [
        "# Quality of guidance",
        "",
        "Made by `python dev.py benchmark study` from its results; not to be edited.",
        "",
    ]
    for run in runs:
        made = sum(cell["run"] == run["id"] for cell in cells)
        facts = ", ".join(f"{key} {run[key]}" for key in ("commit", "time", "machine", "host", "torch") if key in run)
        lines.append(f"- `{run['command']}`: {made} cells; {facts}")
    groups: dict[str, list[dict]] = {}
    for cell in cells:
        groups.setdefault(json.dumps(common_of(cell["key"]), sort_keys=True), []).append(cell)
    for common, members in groups.items():
        facts = json.loads(common)
        lines += ["", f"## {facts.get('model', 'model')}", ""]
        lines += [", ".join(f"{key} {value}" for key, value in facts.items() if value != ""), ""]
        stages = {stage: [c for c in members if c["key"]["stage"] == stage] for stage in ("report", "sample", "choose")}
        for stage in ("report", "sample"):
            if done := stages[stage]:
                lines += [*value_table(done), WORDS[0], "", *difference_table(done), WORDS[1], ""]
        if tries := stages["choose"]:
            lines += ["### All strengths, on the seed that they were chosen on", "", *value_table(tries)]
            if matched := matched_table(tries):
                lines += ["### At the same accuracy, between those strengths", "", *matched]
    if compared := comparison_table([record for record in records if record["kind"] == "comparison"]):
        lines += ["", "## Against what they are made of", "", *compared, WORDS[2], ""]
    return "\n".join(lines).rstrip() + "\n"


OF_A_CELL = ("stage", "method", "word", "strength", "seed", "n", "settings", "files")


def common_of(key: dict) -> dict:
    return {name: value for name, value in key.items() if name not in OF_A_CELL}


def write_report(results: Path) -> list[Path]:
    """The tables, and the curves where there are any: beside the results."""
    records, path = read_records(results), results.with_suffix(".md")
    path.write_text(report(records), "utf-8")
    return [path, *draw(records, results.with_suffix(".png"))]

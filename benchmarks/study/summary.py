"""The study in a README, between two marks: a setting's methods, over all reported seeds, or all settings side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .cells import read_records
from .methods import ALL, DEGRADATIONS, REAL
from .report import number, setting, table

COLUMNS = ("accuracy", "fd", "fd_pixel", "precision", "recall", "diversity")
TITLES = ("accuracy", "FD", "FD pixel", "precision", "recall", "diversity")
OVERVIEW = {  # the settings that stand side by side in the pack's own README
    "early": "under-trained", "better": "trained to the end", "unconditional": "no prompt", "no-dropout": "no empty prompt",
}  # fmt: skip
WORSE = tuple(DEGRADATIONS)  # the model made worse on purpose
ORDER = {name: at for at, name in enumerate([REAL, *(method.name for method in ALL)])}  # then what is made of two
CLEAR = 3  # paired standard errors, on each seed
BLOCK = r"(<!-- quality: ([\w-]+) -->\n).*?(<!-- /quality -->)"


def by_method(records: Sequence[dict]) -> dict[str, list[dict]]:
    """The reported cells, one for each seed."""
    methods: dict[str, list[dict]] = {}
    for record in records:
        if record["kind"] == "cell" and record["key"]["stage"] == "report":
            methods.setdefault(record["key"]["method"], []).append(record)
    return methods


def in_order(row: Sequence[str]) -> int:
    """Whenever it was sampled."""
    return ORDER.get(row[0], len(ORDER))


def mean(cells: Sequence[dict], column: str) -> str:
    found = [cell["values"][column][0] for cell in cells if column in cell["values"]]
    return number(sum(found) / len(found)) if found else ""


def in_errors(differences: Sequence[dict]) -> list[float]:
    """Of each seed, the difference of FD in paired standard errors."""
    found = [each["fd"] for each in differences if "fd" in each]
    return [value / error for value, _, _, error in found if error > 0]


def listed(errors: Sequence[float]) -> str:
    return ", ".join(f"{error:+.0f}" for error in errors)


def from_none(cells: Sequence[dict]) -> list[float]:
    return in_errors([cell["against_none"] for cell in cells])


def from_parts(name: str, records: Sequence[dict]) -> str:
    """The same from each method that this one is made of."""
    found: dict[str, list[dict]] = {}
    for record in records:
        if record["kind"] == "comparison" and record["key"]["method"] == name:
            found.setdefault(record["key"]["than"], []).append(record["differences"])
    return "; ".join(f"{than}: {listed(in_errors(differences))}" for than, differences in found.items())


def summary(records: Sequence[dict]) -> list[str]:
    """Means over the seeds."""
    methods = by_method(records)
    whole = max((len(cells) for cells in methods.values()), default=0)
    rows = []
    for name, cells in methods.items():
        shown = [mean(cells, column) for column in COLUMNS]
        cost = "" if name == REAL else f"{cells[0]['rows_per_step']:g}"
        seeds = "" if len(cells) == whole else f"seed {cells[0]['key']['seed']} only"
        settings = ", ".join(filter(None, (setting(cells[0]["key"]), seeds)))
        rows.append([name, settings, *shown, listed(from_none(cells)), from_parts(name, records), cost])
    rows.sort(key=in_order)
    return table(["method", "setting", *TITLES, "ΔFD / error", "from its parts", "rows"], rows)


def overview(results: Path) -> list[str]:
    """FD (accuracy) of each method in each setting; bold where clearly better than none on each seed, struck out where
    clearly worse."""
    found = {title: by_method(read_records(results / f"quality_{name}.jsonl")) for name, title in OVERVIEW.items()}
    names = dict.fromkeys(name for methods in found.values() for name in methods if not name.startswith(WORSE))

    def shown(cells: Sequence[dict]) -> str:
        if not cells:
            return ""
        text, errors = f"{mean(cells, 'fd')} ({mean(cells, 'accuracy')})", from_none(cells)
        if errors and max(errors) <= -CLEAR:
            return f"**{text}**"
        return f"~~{text}~~" if errors and min(errors) >= CLEAR else text

    rows = [[name, *(shown(methods.get(name, ())) for methods in found.values())] for name in names]
    rows.sort(key=in_order)
    return table(["", *OVERVIEW.values()], rows)


def facts(records: Sequence[dict]) -> str:
    """Which file says it, and what made that."""
    runs = [record for record in records if record["kind"] == "run"]
    cells = [record for record in records if record["kind"] == "cell"]
    seeds = sorted({cell["key"]["seed"] for cell in cells if cell["key"]["stage"] == "report"})
    counts = sorted({cell["key"]["n"] for cell in cells if cell["key"]["stage"] == "report"})
    commits = sorted({run["commit"] for run in runs if any(cell["run"] == run["id"] for cell in cells)})
    machines = sorted({f"{run['machine']}, {run['host']}, torch {run['torch']}" for run in runs})
    numbers = f"n = {', '.join(map(str, counts))}; seeds {', '.join(map(str, seeds))}"
    return f"{numbers}; commit {', '.join(commits)}; {'; '.join(machines)}."


def in_step(text: str, results: Path) -> str:
    """A README's text with every block made again from results/quality_NAME.jsonl, or from all of them."""

    def block(match: re.Match) -> str:
        if match[2] == "overview":
            return match[1] + "\n".join(overview(results)) + match[3]
        path = results / f"quality_{match[2]}.jsonl"
        records = read_records(path)
        lines = [*summary(records), f"From `results/{path.name}`: {facts(records)}", ""]
        return match[1] + "\n".join(lines) + match[3]

    return re.sub(BLOCK, block, text, flags=re.DOTALL)

"""What guidance costs and gives when it is computed in some steps alone, or ends early: Guidance Reuse, Guidance Stop.

    python dev.py benchmark reuse [--pictures N] [--seeds 3 4] [--together]

The under-trained model of two digits, 16 Euler steps, the same prompts and noise for every row. Each guidance has the
strength that the study chose for it. How pictures are measured is the study's. Written to benchmarks/results/reuse.json,
.md and .png after each row; rows that are there are not sampled again, but with --again. Each says of which commit it is.
With --together: several guidances at once, in more settings, written to reuse_together.json, .md and .png.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .provenance import facts_of_run, named
from .rows import between, facts, known_rows, parsed
from .study.cells import reference_of
from .study.command import LAYERS, POOL_SEED, ROOT, SETTINGS, demo_files
from .study.measured import Measure, distance_of, features_of, mean_of, measured, pixel_distance_of, within_prompts
from .study.methods import METHODS, NONE, POOL_SIZE, Method
from .study.report import number, table, with_interval
from .study.rig import Rig, start_host
from .study.suites import DemoDigits

RESULTS, README = ROOT / "benchmarks/results", ROOT / "benchmarks/README.md"
DISTILLED = RESULTS / "distil.json"
SETTING, STEPS, BATCH, PER_PROMPT, DRAWS = "early", 16, 40, 2, 200

STRENGTHS = {"CFG": 1.25, "PAG": 0.5, "SEG": 0.25, "TSG": 1.1, "ICG": 1.05, "Autoguidance": 1.5}
MEASURES = (
    Measure("accuracy", mean_of("hard"), limit=1),
    Measure("fd", distance_of),
    Measure("fd_pixel", pixel_distance_of),
    Measure("diversity", within_prompts("features")),
)
COLUMNS = {"accuracy": "accuracy", "fd": "FD", "fd_pixel": "FD pixel", "diversity": "diversity"}
WORDS = (
    "*rows*: of the network, per step and picture, for a picture that is sampled alone; *in a batch*: for one of "
    f"{BATCH}, where a row is computed for all if one needs it. *FD less every step's*: the difference of the Fréchet "
    "distances from that guidance computed in every step, in paired standard errors, for each seed; above 0 is worse. "
    "*of the gain*: the share that is left of what the guidance gains in FD, means over the seeds; empty where it gains "
    "less than 3 standard errors. Accuracy, FD, FD pixel and diversity as in the study, means over the seeds."
)


@dataclass(frozen=True)
class Saving:
    """A setting of one of the two nodes."""

    name: str
    node: str = ""  # its id; none: every step computes
    settings: tuple[tuple[str, object], ...] = ()


def reuse(name: str, **settings) -> Saving:
    return Saving(name, "BeyondCFGReuse", tuple(settings.items()))


FULL = Saving("every step")
SAVINGS = (
    FULL,
    reuse("every 3rd", every=3),
    reuse("auto, at most 4", every=4, mode="auto"),
    reuse("every 2nd", every=2),
    reuse("every 4th", every=4),
    Saving("stop, cosine 0.99", "BeyondCFGStop", (("cosine", 0.99),)),
)


Row = tuple[tuple[str, ...], Saving]
ALONE, TOGETHER = "reuse", "reuse_together"  # the tables, and the names of their files
GUIDANCES = {
    ALONE: tuple((name,) for name in STRENGTHS),
    TOGETHER: (("CFG", "PAG"), ("Autoguidance",), ("CFG", "PAG", "SEG")),
}
SAVINGS_OF = {ALONE: SAVINGS[:3], TOGETHER: SAVINGS}
PICTURES = {ALONE: 1000, TOGETHER: 400}  # of each seed


def asked(name: str) -> list[Row]:
    """The rows of a table, in the order of sampling."""
    return [((), FULL), *((guidance, saving) for guidance in GUIDANCES[name] for saving in SAVINGS_OF[name])]


class Bench:
    """Samples rows and measures them."""

    def __init__(self, folder: Path, pictures: int, seeds: Sequence[int], compute: str, commit: str):
        self.suite, self.pictures, self.seeds, self.commit = DemoDigits(folder), pictures, seeds, commit
        files = demo_files(folder, SETTINGS[SETTING])
        pool = tuple(prompt.text for prompt in self.suite.prompts(POOL_SIZE, POOL_SEED))
        sampler = "euler", "simple", 128, 128
        self.rig = Rig(files, STEPS, *sampler, BATCH, pool_texts=pool, compute=compute, decode=self.suite.decode)
        self.rig.layers = LAYERS
        self.model = named(files.checkpoint)
        self.reference = reference_of(self.suite)
        self.groups = np.arange(pictures) // PER_PROMPT
        self.bases: dict[tuple, dict] = {}  # what is found of pictures of every step and of none, by guidance and seed

    def row(self, guidance: tuple[str, ...], saving: Saving) -> dict:
        """What stands in the results."""
        names = {"guidance": " + ".join(guidance), "saving": saving.name}
        return {**names, "commit": self.commit, "cells": [self._cell(guidance, saving, seed) for seed in self.seeds]}

    def _cell(self, guidance: tuple[str, ...], saving: Saving, seed: int) -> dict:
        none = self._base((), seed)
        if saving == FULL:
            found = self._base(guidance, seed)
        else:
            found = self._found(guidance, saving, seed)
        cell = {"seed": seed, "rows": found["rows"], "batch_rows": found["batch_rows"]}
        if not guidance:
            return {**cell, "values": self._measured(found, None)["values"]}
        result = self._measured(found, none)
        cell |= {"values": result["values"], "against_none": result["against_none"]}
        if saving != FULL:
            cell["against_full"] = self._measured(found, self._base(guidance, seed))["against_none"]
        return cell

    def _measured(self, found: dict, base: dict | None) -> dict:
        return measured(found, self.groups, self.reference, base, DRAWS, MEASURES)

    def _base(self, guidance: tuple[str, ...], seed: int) -> dict:
        if (guidance, seed) not in self.bases:
            self.bases[guidance, seed] = self._found(guidance, FULL, seed)
        return self.bases[guidance, seed]

    def _found(self, guidance: tuple[str, ...], saving: Saving, seed: int) -> dict:
        """All that is measured of the row's pictures, and how many rows of the network one took, per step."""
        from ..guiders.host import Recorder, with_recorder

        known = {method.name: method for method in METHODS}
        recorder, shares = Recorder(), []

        def build(rig, model, _strength):
            weight = 1.0
            for name in guidance:
                model, own = known[name].build(rig, model, STRENGTHS[name])
                weight = max(weight, own)
            if saving.node:
                model = rig.with_node(saving.node, model, None, **dict(saving.settings))
            return with_recorder(model, recorder), weight

        def hear(pictures: int) -> None:
            """What the samples of a batch that is over would have taken alone."""
            computed = sum(one.computed for call in recorder.calls for one in call.heard.values())
            shares.append((computed / STEPS, pictures))

        needs = tuple(dict.fromkeys(need for name in guidance for need in known[name].needs))
        method = Method(NONE, "", (0.0,), (0.0,), build, needs=needs)
        different = self.suite.prompts(-(-self.pictures // PER_PROMPT), seed)
        prompts = [different[at // PER_PROMPT] for at in range(self.pictures)]
        sampled = self.rig.sample(method, 0.0, prompts, seed, hear)
        batch_rows = (self.rig.counted.rows / STEPS - sampled.rows) / self.pictures
        sizes = np.diff([0, *(pictures for _, pictures in shares)])
        rows = 1 + float(np.average([share for share, _ in shares], weights=sizes)) if saving.node else sampled.rows
        found = features_of(sampled, prompts, self.reference)
        return {**found, "rows": round(rows, 4), "batch_rows": round(batch_rows, 4)}


# --------------------------------------------------------------------------------------------------------- the page


def mean(row: dict, of) -> float:
    return float(np.mean([of(cell) for cell in row["cells"]]))


def errors(cell: dict) -> float | None:
    """FD less every step's, in paired standard errors."""
    if "against_full" not in cell:
        return None
    value, _, _, error = cell["against_full"]["fd"]
    return value / max(error, 1e-9)


def gain_left(row: dict, full: dict | None) -> str:
    """The share of the guidance's gain in FD over none, where that is clear."""
    if full is None or "against_none" not in row["cells"][0]:
        return ""
    gains = [cell["against_none"]["fd"] for cell in full["cells"]]
    if any(value > -3 * error for value, _, _, error in gains):
        return ""
    return f"{mean(row, lambda cell: cell['against_none']['fd'][0]) / np.mean([gain[0] for gain in gains]):.0%}"


def line(row: dict, full: dict | None) -> list[str]:
    apart = [error for cell in row["cells"] if (error := errors(cell)) is not None]
    values = [number(mean(row, lambda cell, each=each: cell["values"][each][0])) for each in COLUMNS]
    costs = [f"{mean(row, lambda cell, each=each: cell[each]):.2f}" for each in ("rows", "batch_rows")]
    return [
        row["guidance"] or NONE,
        row["saving"],
        *costs,
        *values,
        ", ".join(f"{x:+.1f}" for x in apart),
        gain_left(row, full),
    ]


def summary(results: dict) -> list[str]:
    full = {row["guidance"]: row for row in results["rows"] if row["saving"] == FULL.name}
    header = ["guidance", "computed", "rows", "in a batch", *COLUMNS.values(), "FD less every step's", "of the gain"]
    return table(header, [line(row, full.get(row["guidance"])) for row in results["rows"]])


def missing(results: dict) -> list[str]:
    """What the run was ended before."""
    known = {(row["guidance"], row["saving"]) for row in results["rows"]}
    names: dict[str, list[str]] = {}  # guidance → its savings
    for guidance, saving in asked(results["table"]):
        if (" + ".join(guidance), saving.name) not in known:
            names.setdefault(" + ".join(guidance), []).append(saving.name)
    of_each: dict[tuple[str, ...], list[str]] = {}
    for guidance, savings in names.items():
        of_each.setdefault(tuple(savings), []).append(guidance)
    parts = [f"{', '.join(guidances)}: {', '.join(savings)}" for savings, guidances in of_each.items()]
    return [f"Not sampled yet, the same command goes on with them. {'. '.join(parts)}.", ""] if parts else []


def page(results: dict) -> str:
    """results/reuse.md."""
    run = results["run"]
    lines = [
        "# Guidance that is computed in some steps alone",
        "",
        f"Made by `{run['command']}` at {run['time']}: {facts(results)}. Model {results['model']}.",
        "",
        f"**Small model, CPU, not tried on real weights.** Two coloured digits; {STEPS} Euler steps. {strengths()}",
        "",
        *summary(results),
        *missing(results),
        WORDS,
        "",
        f"![Fréchet distance against rows per step]({results['table']}.png)",
        "",
        "## Each seed",
        "",
        "Intervals of 95 %, by prompts drawn anew.",
        "",
    ]
    rows = [
        [
            row["guidance"] or NONE,
            row["saving"],
            str(cell["seed"]),
            *(with_interval(cell["values"][each]) for each in COLUMNS),
        ]
        for row in results["rows"]
        for cell in row["cells"]
    ]
    return "\n".join([*lines, *table(["guidance", "computed", "seed", *COLUMNS.values()], rows)]).rstrip() + "\n"


def strengths() -> str:
    return "Strengths: " + ", ".join(f"{name} {value:g}" for name, value in STRENGTHS.items()) + "."


def draw(results: dict, path: Path) -> None:
    """FD against rows per step, a line for each guidance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    panel = figure.subplots()
    for row in results["rows"]:
        if not row["guidance"]:
            level = mean(row, lambda cell: cell["values"]["fd"][0])
            panel.axhline(level, color="black", linewidth=0.8, linestyle="--", label="without guidance")
    shown = {saving.name: "osD^vP"[at] for at, saving in enumerate(SAVINGS_OF[results["table"]])}
    for at, guidance in enumerate(GUIDANCES[results["table"]]):
        rows = [row for row in results["rows"] if row["guidance"] == " + ".join(guidance)]
        points = [
            (mean(r, lambda cell: cell["rows"]), mean(r, lambda cell: cell["values"]["fd"][0]), r["saving"])
            for r in rows
        ]
        points.sort()
        if points:
            panel.plot(
                [x for x, _, _ in points],
                [y for _, y, _ in points],
                color=f"C{at}",
                linewidth=1,
                label=" + ".join(guidance),
            )
        for x, y, name in points:
            panel.plot(x, y, shown[name], color=f"C{at}", markersize=7)
    for name, level in distilled(results):
        panel.plot(1, level, "x", color="black")
        panel.annotate(f" {name}, distilled", (1, level), fontsize=8)
    for name, marker in shown.items():
        panel.plot([], [], marker, color="grey", label=name)
    panel.set(xlabel="rows of the network per step and picture", ylabel="Fréchet distance (less is better)")
    panel.grid(alpha=0.3)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right upper", fontsize=9)
    figure.savefig(path, dpi=90)


def distilled(results: dict) -> list[tuple[str, float]]:
    """(teacher, Fréchet distance) of the LoRAs of benchmark distil, where it had the same prompts and noise."""
    learnt = json.loads(DISTILLED.read_text("utf-8"))
    same = all(learnt[name] == results[name] for name in ("model", "pictures", "seeds"))
    students = [
        (row["teacher"], [cell["student"]["values"]["fd"][0] for cell in row["cells"]]) for row in learnt["rows"]
    ]
    return [(teacher, float(np.mean(values))) for teacher, values in students] if same else []


def in_step(text: str, results: dict) -> str:
    """A README's text with the table made again."""
    name = results["table"]
    made = "\n".join([*summary(results), *missing(results), f"From `results/{name}.json`: {facts(results)}.", ""])
    return between(text, name, made)


# ------------------------------------------------------------------------------------------------------- the command


def main(arguments: Sequence[str]) -> int:
    options = parsed(__doc__ or "", arguments, None, None, flags={"--together": "several guidances at once"})
    name = TOGETHER if options.together else ALONE
    options.pictures = options.pictures or PICTURES[name]
    kept = RESULTS / f"{name}.json"
    file = options.results or kept
    host = start_host(options.comfyui, threads=1)
    run = facts_of_run("reuse", arguments, host=f"ComfyUI {host}", draws=DRAWS)
    bench = Bench(options.demo, options.pictures, options.seeds, options.compute, run["commit"])
    same = {"pictures": options.pictures, "seeds": options.seeds, "compute": options.compute}
    results = {"table": name, "run": run, "model": bench.model, **same, "rows": []}
    known = {(row["guidance"], row["saving"]): row for row in known_rows(file, results)}
    known = {} if options.again else known
    file.parent.mkdir(parents=True, exist_ok=True)
    for guidance, saving in asked(name):
        row = " + ".join(guidance), saving.name
        sys.stderr.write(f"{' '.join(row)}\n")
        results["rows"].append(known.get(row) or bench.row(guidance, saving))
        file.write_text(json.dumps(results, indent=1), "utf-8")
        file.with_suffix(".md").write_text(page(results), "utf-8")
        draw(results, file.with_suffix(".png"))
    if file == kept:
        README.write_text(in_step(README.read_text("utf-8"), results), "utf-8")
    return 0

"""The Guidance Tuner on the small under-trained model of two digits: what it finds in 60 trials, on seeds it has not seen.

    python dev.py benchmark tuner [--pictures N] [--seeds 5 6] [--two]

It searches PAG or TSG or both, their strengths, PAG's layer and how often they are computed, for a small Fréchet distance
and few rows of the network per step: 8 Euler steps, 400 pictures of seed 0 for each trial. The front that it finds is
then sampled with other seeds, beside the best settings of the study's grid that need no other model. Written to
benchmarks/results/tuner.json and .md; what was sampled is kept in output/tuner.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..fleet.cells import Cell, Failed, Result
from ..fleet.kinds.base import Kind, Worker
from ..fleet.pool import Pool
from ..fleet.tuning.axes import Axis, Settings
from ..fleet.tuning.search import Goal, Tried, search
from ..tools.console import Failure
from .provenance import facts_of_run, named
from .rows import between, facts, parsed
from .study.cells import reference_of
from .study.command import LAYERS, POOL_SEED, ROOT, SETTINGS, demo_files
from .study.measured import features_of, measured
from .study.methods import METHODS, NONE, POOL_SIZE, Method
from .study.report import number, table
from .study.rig import Rig, start_host
from .study.suites import DemoDigits

RESULTS, README = ROOT / "benchmarks/results/tuner.json", ROOT / "benchmarks/README.md"
SETTING, STEPS, BATCH, PER_PROMPT, DRAWS = "early", 8, 40, 2, 200
TRIALS, AT_ONCE, SEARCHED, SEARCH_SEED = 60, 4, 400, 0
PICTURES, SEEDS = 1000, (5, 6)
SINGLES = tuple(f"single.{at}" for at in range(6))
AXES = (
    Axis("Guidance", "terms", choices=("PAG", "TSG", "PAG and TSG")),
    Axis("PAG", "scale", 0.0, 1.5),
    Axis("PAG", "layers", choices=("double.0", *SINGLES)),
    Axis("TSG", "scale", 1.0, 1.3),
    Axis("Reuse", "every", 1, 4, is_whole=True),
)
GRID = {"PAG": 0.5, "TSG": 1.1, "ICG": 1.05, "CFG": 1.25}  # the study's choice of each that needs no other model
FD, ROWS = "fd", "rows"


@functools.cache
def bench(demo: str, compute: str) -> tuple[DemoDigits, Rig]:
    """The demo in this folder, its network in this dtype."""
    suite = DemoDigits(Path(demo))
    pool = tuple(prompt.text for prompt in suite.prompts(POOL_SIZE, POOL_SEED))
    return suite, Rig(
        demo_files(Path(demo), SETTINGS[SETTING]), STEPS, "euler", "simple", 128, 128, BATCH, pool_texts=pool,
        compute=compute, decode=suite.decode, layers=LAYERS,
    )  # fmt: skip


class Demo(Kind):
    """Pictures of the demo model with some settings → their Fréchet distance, and the rows that they took."""

    def __init__(self, worker: Worker, folder: Path):
        super().__init__(worker, folder)
        start_host(None, threads=1)
        self.bases: dict[tuple, Any] = {}  # what is found of pictures without guidance

    def do(self, work: Mapping[str, Any], limit: float) -> Result:  # noqa: ARG002
        """work: settings or a method of the grid, the seed, and how many pictures."""
        place = work["demo"], work["compute"], work["seed"], work["pictures"]
        reference = reference_of(bench(*place[:2])[0])
        found, rows = self._found(method_of(work), *place)
        if place not in self.bases:
            self.bases[place] = self._found(METHODS[0], *place)[0]
        groups = np.arange(work["pictures"]) // PER_PROMPT
        result = measured(found, groups, reference, self.bases[place], DRAWS)
        values = {name: value[0] for name, value in result["values"].items() if name in ("fd", "accuracy", "diversity")}
        apart, _, _, error = result["against_none"].get("fd", (0.0, 0.0, 0.0, 0.0))
        return Result({**values, ROWS: rows, "fd from none": apart, "its error": error})

    def _found(self, method: Method, demo: str, compute: str, seed: int, pictures: int):
        suite, rig = bench(demo, compute)
        different = suite.prompts(-(-pictures // PER_PROMPT), seed)
        prompts = [different[at // PER_PROMPT] for at in range(pictures)]
        sampled = rig.sample(method, method.strengths[0], prompts, seed, lambda done: None)
        return features_of(sampled, prompts, reference_of(suite)), round(sampled.rows, 4)


def method_of(work: Mapping[str, Any]) -> Method:
    """What a cell samples."""
    if "method" in work:
        found = next(one for one in METHODS if one.name == work["method"])
        return Method(found.name, found.word, (work["strength"],), (), found.build, found.off, found.needs)
    settings = work["settings"]

    def build(rig, model, _strength):
        if "PAG" in settings["Guidance.terms"]:
            model = rig.with_node("BeyondCFGPAG", model, settings["PAG.scale"], layers=settings["PAG.layers"])
        if "TSG" in settings["Guidance.terms"]:
            model = rig.with_node("BeyondCFGTSG", model, settings["TSG.scale"])
        return rig.with_node("BeyondCFGReuse", model, None, every=settings["Reuse.every"]), 1.0

    return Method("tuned", "", (0.0,), (), build)


class Tuned:
    """The search's task."""

    axes = AXES
    goals = (Goal("FD", False), Goal("rows per step", False))

    def __init__(self, common: Mapping[str, str]):
        self.common = common

    def cells(self, settings: Settings) -> list[Cell]:
        """One cell of few pictures."""
        return [cell({"settings": dict(settings)}, SEARCH_SEED, SEARCHED, self.common)]

    def score(self, results: Sequence[Result]) -> tuple[float, ...]:
        """Both goals."""
        return float(results[0].values[FD]), float(results[0].values[ROWS])


def cell(what: dict, seed: int, pictures: int, common: Mapping[str, str]) -> Cell:
    """Of some settings or a method. common: what else its result depends on."""
    return Cell("demo", {**what, "seed": seed, "pictures": pictures, "steps": STEPS, **common})


# --------------------------------------------------------------------------------------------------------- the page


def said(row: dict) -> str:
    """A row's settings."""
    if "settings" not in row["what"]:
        return f"{row['what']['method']} {row['what']['strength']:g}" if row["name"] != NONE else ""
    values = row["what"]["settings"]
    terms, every = values["Guidance.terms"], values["Reuse.every"]
    pag = f"PAG {values['PAG.scale']:.3g} in {values['PAG.layers']}, " * ("PAG" in terms)
    tsg = f"TSG {values['TSG.scale']:.3g}, " * ("TSG" in terms)
    return f"{pag}{tsg}computed every {every}"


def summary(results: dict) -> list[str]:
    rows = []
    for row in results["rows"]:
        cells = row["cells"]
        mean = {name: float(np.mean([each[name] for each in cells])) for name in (FD, "accuracy", "diversity", ROWS)}
        errors = [f"{each['fd from none'] / max(each['its error'], 1e-9):+.1f}" for each in cells]
        shown = [number(mean[name]) for name in (FD, "accuracy", "diversity")]
        distances = ", ".join(number(each[FD]) for each in cells)
        apart = "" if row["name"] == NONE else ", ".join(errors)
        rows.append([row["name"], said(row), f"{mean[ROWS]:.2f}", *shown, distances, apart])
    header = ["", "settings", "rows", "FD", "accuracy", "diversity", "FD of each seed", "from none, in errors"]
    return table(header, rows)


def page(results: dict) -> str:
    """results/tuner.md."""
    run = results["run"]
    front = [
        [number(one["scores"][0]), f"{one['scores'][1]:.2f}", said({"what": one, "name": ""})]
        for one in results["front"]
    ]
    lines = [
        "# What the Guidance Tuner finds",
        "",
        f"Made by `{run['command']}` at {run['time']}: {facts(results)}. Model {results['model']}.",
        "",
        f"**Small model, CPU, not tried on real weights.** Two coloured digits; {STEPS} Euler steps. {TRIALS} trials of "
        f"{SEARCHED} pictures of seed {SEARCH_SEED}, in rounds of {AT_ONCE}; the rows below are of other seeds.",
        "",
        *summary(results),
        "*tuned*: the front of the search, which no other trial beats in FD and rows; the last is the best by FD. *grid*: "
        "what the study chose for each guidance that needs no other model. *rows*: of the network, per step and picture. "
        "*from none*: the difference of FD from none, in paired standard errors, for each seed.",
        "",
        "## The front of the search",
        "",
        f"FD of {SEARCHED} pictures, which is above that of more pictures.",
        "",
        *table(["FD", "rows", "settings"], front),
    ]
    return "\n".join(lines).rstrip() + "\n"


def in_step(text: str, results: dict) -> str:
    """A README's text with the table made again."""
    return between(
        text, "tuner", "\n".join([*summary(results), f"From `results/{RESULTS.name}`: {facts(results)}.", ""])
    )


# ------------------------------------------------------------------------------------------------------- the command


def main(arguments: Sequence[str]) -> int:
    two = {"--two": "two workers at a time: twice as fast where two cores are free"}
    options = parsed(__doc__ or "", arguments, RESULTS, PICTURES, SEEDS, two, compute="fp32")
    if options.comfyui:
        os.environ["COMFYUI_PATH"] = str(options.comfyui)  # for the workers
    host = start_host(None, threads=1)
    run = facts_of_run("tuner", arguments, host=f"ComfyUI {host}", draws=DRAWS)
    model = named(demo_files(options.demo, SETTINGS[SETTING]).checkpoint)
    common = {"demo": str(options.demo.resolve()), "model": model, "compute": options.compute, "commit": run["commit"]}
    kept = ROOT / "output/tuner"
    if options.again:
        shutil.rmtree(kept, ignore_errors=True)
    kinds = {"demo": "pack.benchmarks.tuner:Demo"}

    def heard(tried: Tried) -> None:
        sys.stderr.write(f"{tried.scores or tried.why} {dict(tried.settings)}\n")

    workers = [Worker("one"), Worker("two")] if options.two else ()
    with Pool(workers, kept, kinds=kinds, limit=3600) as pool:
        found = search(Tuned(common), pool, TRIALS, AT_ONCE, SEARCH_SEED, said=heard)
        rows = [(NONE, {"method": NONE, "strength": 0.0})]
        rows += [("tuned", {"settings": dict(one.settings)}) for one in found.front]
        rows += [("grid", {"method": name, "strength": strength}) for name, strength in GRID.items()]
        results = {
            "run": run, "model": model, "compute": options.compute,
            "pictures": options.pictures, "seeds": options.seeds,
            "front": [{"settings": dict(one.settings), "scores": [*one.scores]} for one in found.front],
            "trials": [{"settings": dict(one.settings), "scores": [*one.scores]} for one in found.tried], "rows": [],
        }  # fmt: skip
        for name, what in rows:
            sys.stderr.write(f"{name} {what}\n")
            done = pool.run([cell(what, seed, options.pictures, common) for seed in options.seeds])
            if failed := [one for one in done if isinstance(one, Failed)]:
                raise Failure(f"{name}: {failed[0].reason}; the same command goes on from here.")
            cells = [{"seed": seed, **one.values} for seed, one in zip(options.seeds, done, strict=True)]
            results["rows"].append({"name": name, "what": what, "commit": run["commit"], "cells": cells})
            options.results.parent.mkdir(parents=True, exist_ok=True)
            options.results.write_text(json.dumps(results, indent=1), "utf-8")
            options.results.with_suffix(".md").write_text(page(results), "utf-8")
    if options.results == RESULTS:
        README.write_text(in_step(README.read_text("utf-8"), results), "utf-8")
    return 0

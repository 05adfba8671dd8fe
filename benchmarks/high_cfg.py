"""What corrections do where cfg is far too high: CFG 15 on the small model of two digits, alone and with each of them.

    python dev.py benchmark high_cfg [--pictures N] [--seeds 3 4]

The model that is trained to its end, 8 Euler steps, the same prompts and noise for every row. How pictures are measured is
the study's, but for the colours of digits, which are measured here. Written to benchmarks/results/high_cfg.json and .md
after each row; rows that are there are not sampled again, but with --again. Each says of which commit it is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..guiders import (
    AdaptiveProjectedGuidance,
    AngleCap,
    BetaCFG,
    DynamicThresholding,
    EpsilonScaling,
    FrequencyDecoupled,
    GuidanceRescale,
    HistoryGuidance,
    MagnitudeAware,
    Mahiro,
    MomentumGuidance,
    NormCap,
    SlidingModeGuidance,
    TangentialCFG,
    TemporalScoreRescaling,
    Tonemap,
    ZeroStar,
)
from .provenance import facts_of_run, named
from .rows import CLEAR, between, facts, known_rows, marked, parsed, said
from .study.cells import reference_of
from .study.command import ROOT, SETTINGS, demo_files
from .study.measured import Measure, distance_of, features_of, mean_of, measured, pixel_distance_of
from .study.methods import NEGATIVE, PERCENT, REAL, Method, cfg, cfg_interval, corrected
from .study.report import number, table, with_interval
from .study.rig import Rig, Sampled, start_host
from .study.suites import DemoDigits, Prompt

RESULTS, README = ROOT / "benchmarks/results/high_cfg.json", ROOT / "benchmarks/README.md"
CFG, USUAL = 15.0, 4.0
STEPS, BATCH, PER_PROMPT, DRAWS = 8, 40, 2, 200
PICTURES = 200  # of each seed
OF_DIGIT = 0.05  # of a half's pixels; the thinnest digit covers more
COLOUR_PICTURES, COLOUR_SEED = 1000, 9  # of the real pictures that say what colours are right

MEASURES = (
    Measure("clipped", mean_of("clipped"), limit=1),
    Measure("colour_error", mean_of("colour_error")),
    Measure("accuracy", mean_of("hard"), limit=1),
    Measure("fd", distance_of),
    Measure("fd_pixel", pixel_distance_of),
)
COLUMNS = {
    "clipped": "clipped", "colour_error": "colour error", "accuracy": "accuracy", "fd": "FD", "fd_pixel": "FD pixel",
}  # fmt: skip
WORDS = (
    "*clipped*: the share of the pixels' values that are 0 or 1; less than real pictures have is no better, but flat. "
    "*colour error*: how far the colour of a digit is from the mean of real digits of the same colour word, in RGB of 0 "
    f"to 1; a digit's colour is the median of those {OF_DIGIT:.0%} of its half's pixels that are furthest from the half's "
    f"median colour. *accuracy*, *FD*, *FD pixel*: as in the study. Means over the seeds. **Bold**: better than CFG "
    f"{CFG:g} alone by {CLEAR} paired standard errors on each seed; ~~struck out~~: worse by as much."
)


# ---------------------------------------------------------------------------------------------------------- the rows


def plain(weight: float, name: str) -> Method:
    return Method(name, "cfg", (weight,), (weight,), cfg, 1.0, (NEGATIVE,))


def with_node(rule, **fixed) -> Method:
    """CFG 15 with a node of the pack."""
    return corrected(rule.about.name, rule.about, (CFG,), **fixed)


ALONE = plain(CFG, "CFG alone")
ROWS = (
    ALONE,
    plain(USUAL, "CFG alone"),
    with_node(GuidanceRescale, amount=0.7),
    with_node(AdaptiveProjectedGuidance, eta=0.0),
    with_node(ZeroStar, amount=1.0, zero_init_steps=0),
    with_node(TangentialCFG, amount=1.0),
    with_node(MagnitudeAware, alpha=8.0),
    with_node(FrequencyDecoupled, high=0.64, low=0.29),  # the paper's w_high 10 and w_low 5
    with_node(Mahiro, amount=1.0),
    with_node(BetaCFG, a=2.0, b=2.0, gamma=1.0),
    with_node(NormCap, norm="whole", ratio=1.0),
    with_node(NormCap, norm="position", ratio=1.0),
    with_node(NormCap, norm="step", ratio=1.1),
    with_node(AngleCap, max_angle=60.0),
    with_node(DynamicThresholding, mimic_scale=USUAL, percentile=1.0),
    with_node(Tonemap, multiplier=1.0),
    with_node(SlidingModeGuidance, smc_k=0.2, smc_lambda=5.0),
    with_node(MomentumGuidance, scale=0.5, beta=0.6),
    with_node(HistoryGuidance, scale=1.75, eta=0.0),
    with_node(EpsilonScaling, scaling_factor=1.005),
    with_node(TemporalScoreRescaling, k=0.95, sigma=1.0),
    Method("CFG Interval", "cfg", (CFG,), (CFG,), cfg_interval, settings="{} to {} of sampling".format(*PERCENT)),
    with_node(AngleCap, max_angle=30.0),
    with_node(NormCap, norm="whole", ratio=1.0, of="velocity"),
    with_node(FrequencyDecoupled, high=2.25, low=1.0),  # its defaults, meant for a lower cfg
    with_node(AdaptiveProjectedGuidance, eta=0.0, norm_threshold=50.0, momentum=-0.5),
)


# ---------------------------------------------------------------------------------------------------- colours of digits


def digit_colours(pictures: np.ndarray) -> np.ndarray:
    """[n, height, width, 3] → [n, 2, 3], of the left digit and the right."""
    n, height, width, _ = pictures.shape
    halves = pictures.reshape(n, height, 2, width // 2, 3).transpose(0, 2, 1, 3, 4).reshape(n, 2, -1, 3)
    ground = np.median(halves, 2, keepdims=True)
    away = np.linalg.norm(halves - ground, axis=-1)  # [n, 2, pixels]
    count = round(OF_DIGIT * away.shape[-1])
    of_digit = np.argpartition(away, -count, axis=-1)[..., -count:]
    return np.median(np.take_along_axis(halves, of_digit[..., None], 2), 2)


def asked(prompts: Sequence[Prompt]) -> np.ndarray:
    """The colour words of left and right, [n, 2]."""
    return np.array([prompt.labels[::2] for prompt in prompts])


def right_colours(pictures: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
    """The mean of each colour word in real pictures, [words, 3]."""
    found, words = digit_colours(pictures), asked(prompts)
    return np.stack([found[words == word].mean(0) for word in range(words.max() + 1)])


def colour_errors(pictures: np.ndarray, prompts: Sequence[Prompt], right: np.ndarray) -> np.ndarray:
    """How far each digit's colour is from what it should be, [n, 2]."""
    return np.linalg.norm(digit_colours(pictures) - right[asked(prompts)], axis=-1)


# --------------------------------------------------------------------------------------------------------- sampling


class Bench:
    """Samples rows and measures them. Where there is no method, real pictures."""

    def __init__(self, folder: Path, pictures: int, seeds: Sequence[int], compute: str, commit: str):
        self.suite, self.pictures, self.seeds, self.commit = DemoDigits(folder), pictures, seeds, commit
        files = demo_files(folder, SETTINGS["better"])
        self.model, sampler = named(files.checkpoint), ("euler", "simple", 128, 128)
        self.rig = Rig(files, STEPS, *sampler, BATCH, compute=compute, decode=self.suite.decode)
        self.reference = reference_of(self.suite)
        self.right = right_colours(*self.suite.real(COLOUR_PICTURES, COLOUR_SEED))
        self.alone: dict[int, dict] = {}  # what is measured of CFG 15 alone, by seed

    def row(self, method: Method | None) -> dict:
        """What stands in the results."""
        names = {"method": REAL, "setting": ""} if method is None else {"method": method.name, "setting": said(method)}
        return {**names, "commit": self.commit, "cells": [self._cell(method, seed) for seed in self.seeds]}

    def _cell(self, method: Method | None, seed: int) -> dict:
        if method is not None and seed not in self.alone:
            self.alone[seed] = self._found(ALONE, seed)
        compared = method not in (None, ALONE)
        found = self.alone[seed] if method is ALONE else self._found(method, seed)
        groups = np.arange(self.pictures) // (1 if method is None else PER_PROMPT)
        base = self.alone[seed] if compared else None
        result = measured(found, groups, self.reference, base, DRAWS, MEASURES)
        return {"seed": seed, "values": result["values"], "against_alone": result["against_none"]}

    def _found(self, method: Method | None, seed: int) -> dict[str, np.ndarray]:
        """All that is measured of the row's pictures."""
        if method is None:
            pictures, prompts = self.suite.real(self.pictures, seed)
            sampled = Sampled(pictures)
        else:
            different = self.suite.prompts(-(-self.pictures // PER_PROMPT), seed)
            prompts = [different[at // PER_PROMPT] for at in range(self.pictures)]
            sampled = self.rig.sample(method, method.strengths[0], prompts, seed)
        errors = colour_errors(sampled.pictures, prompts, self.right)
        return {**features_of(sampled, prompts, self.reference), "colour_error": errors}


# --------------------------------------------------------------------------------------------------------- the page


def shown(row: dict, measure: str) -> str:
    """The mean over the seeds, marked where it is clearly better or worse than CFG 15 alone."""
    text = number(float(np.mean([cell["values"][measure][0] for cell in row["cells"]])))
    return marked(text, [cell["against_alone"].get(measure) for cell in row["cells"]], measure == "accuracy")


def summary(results: dict) -> list[str]:
    rows = [[row["method"], row["setting"], *(shown(row, each) for each in COLUMNS)] for row in results["rows"]]
    return table(["method", "setting", *COLUMNS.values()], rows)


def missing(results: dict) -> list[str]:
    """What the run was ended before."""
    found = {(row["method"], row["setting"]) for row in results["rows"]}
    names = [f"{method.name} ({said(method)})" for method in ROWS if (method.name, said(method)) not in found]
    return [f"Not sampled yet, the same command goes on with them: {'; '.join(names)}.", ""] if names else []


def page(results: dict) -> str:
    """results/high_cfg.md."""
    run = results["run"]
    lines = [
        f"# CFG {CFG:g}, and what corrects it",
        "",
        f"Made by `{run['command']}` at {run['time']}: {facts(results)}. Model {results['model']}.",
        "",
        "**Small model, CPU, not tried on real weights.** Two coloured digits; "
        f"{STEPS} Euler steps; the same prompts and noise for every row. Those that do not help are here too.",
        "",
        *summary(results),
        *missing(results),
        WORDS,
        "",
        "## Each seed",
        "",
        f"Intervals of 95 %. Last: differences from CFG {CFG:g} alone, in paired standard errors.",
        "",
    ]
    rows = []
    for row in results["rows"]:
        for cell in row["cells"]:
            values = [with_interval(cell["values"][each]) for each in COLUMNS]
            apart = [cell["against_alone"].get(each) for each in ("clipped", "colour_error", "fd", "fd_pixel")]
            errors = ", ".join(f"{one[0] / one[3]:+.0f}" if one[3] > 0 else "0" for one in apart if one)
            rows.append([row["method"], row["setting"], str(cell["seed"]), *values, errors])
    header = ["method", "setting", "seed", *COLUMNS.values(), "clipped, colour, FD, FD pixel"]
    return "\n".join([*lines, *table(header, rows)]).rstrip() + "\n"


def in_step(text: str, results: dict) -> str:
    """A README's text with the table made again."""
    made = "\n".join([*summary(results), *missing(results), f"From `results/{RESULTS.name}`: {facts(results)}.", ""])
    return between(text, "high_cfg", made)


# ------------------------------------------------------------------------------------------------------- the command


def main(arguments: Sequence[str]) -> int:
    options = parsed(__doc__ or "", arguments, RESULTS, PICTURES)
    host = start_host(options.comfyui, threads=1)
    run = facts_of_run("high_cfg", arguments, host=f"ComfyUI {host}", draws=DRAWS)
    bench = Bench(options.demo, options.pictures, options.seeds, options.compute, run["commit"])
    same = {"pictures": options.pictures, "seeds": options.seeds, "compute": options.compute}
    results = {"run": run, "model": bench.model, **same, "rows": []}
    known = {(row["method"], row["setting"]): row for row in known_rows(options.results, results)}
    known = {} if options.again else known
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for method in (None, *ROWS):
        name = (REAL, "") if method is None else (method.name, said(method))
        sys.stderr.write(f"{' '.join(name)}\n")
        results["rows"].append(known.get(name) or bench.row(method))
        options.results.write_text(json.dumps(results, indent=1), "utf-8")
        options.results.with_suffix(".md").write_text(page(results), "utf-8")
    if options.results == RESULTS:
        README.write_text(in_step(README.read_text("utf-8"), results), "utf-8")
    return 0

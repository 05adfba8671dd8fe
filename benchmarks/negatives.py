"""What a negative prompt does at cfg 1: NAG, VSF, NASA and Orthogonal Negative on small models of two digits.

    python dev.py benchmark negatives [--pictures N] [--seeds 3 4]

Each case has prompts that leave something open, that the model does not keep, or that ask for what the negative names, and
one negative prompt. Measured is how many digits still are what the negative names, and how much of what the prompt asks for
is right. CFG with the same negative stands beside. 8 Euler steps, the same prompts and noise for every row of a case.
Written to benchmarks/results/negatives.json and .md after each row; rows that are there are not sampled again, but with
--again. Each says of which commit it is.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..patches import FlippedValues, NormalizedAttention, OrthogonalAttention, SubtractedAttention
from .digits.data import COLOUR_NAMES, DIGIT_NAMES
from .provenance import facts_of_run, named
from .rows import CLEAR, between, facts, known_rows, marked, parsed, said
from .study.cells import reference_of
from .study.command import ROOT, SETTINGS, demo_files
from .study.measured import Measure, features_of, mean_of, measured, pixel_distance_of, precision_of
from .study.methods import METHODS, NEGATIVE, Method, cfg, node
from .study.report import number, table, with_interval
from .study.rig import Rig, start_host
from .study.suites import DemoDigits, Prompt

RESULTS, README = ROOT / "benchmarks/results/negatives.json", ROOT / "benchmarks/README.md"
STEPS, BATCH, PER_PROMPT, DRAWS = 8, 40, 2, 200
PICTURES = 200  # of each seed
OPEN = "the"  # a word that the models were never trained with

COLUMNS = {
    "named": "named", "left": "of none's", "accuracy": "accuracy", "precision": "precision", "fd_pixel": "FD pixel",
    "rows": "rows",
}  # fmt: skip
MORE_IS_BETTER = ("accuracy", "precision")
WORDS = (
    "*named*: the share of digits that are what the negative prompt names, as the judge reads them. *of none's*: that "
    "share, of the share without a negative; 1 is no effect, 0 that none is left. *accuracy*: how much of what the "
    "prompt asks for is there. *precision*, *FD pixel*, *rows*: as in the study; precision sees whether a digit looks "
    "like a real one, whichever it is. FD pixel is to pictures of all colours, so that where all digits are blue it falls "
    f"as the blue goes. Means over the seeds. **Bold**: better than none by {CLEAR} paired standard errors on each seed; "
    "~~struck out~~: worse by as much."
)


# ---------------------------------------------------------------------------------------------------------- the cases


ASKED = {"hard": "the digits", "easy": "the colours", "all": "digits and colours"}  # by their name in the features


@dataclass(frozen=True)
class Case:
    """Prompts, and a negative prompt for all of them. Both halves have the same words; None: the word of their label."""

    name: str
    setting: str  # of the study, whose model it is
    words: tuple[str | None, str | None]  # the prompt's, of colour and digit
    negative: tuple[str, str]
    asks: str  # what accuracy is of, a key of ASKED
    about: str

    @property
    def names(self) -> tuple[int, int]:
        """What the negative names: 0 a colour or 1 a digit, and which."""
        colour, digit = self.negative
        return (0, COLOUR_NAMES.index(colour)) if digit == OPEN else (1, DIGIT_NAMES.index(digit))

    @property
    def negative_text(self) -> str:
        return " ".join(self.negative * 2)

    def prompt(self, prompt: Prompt) -> Prompt:
        """The case's prompt in place of that of a whole label. Its labels are right where it asks for something."""
        known = COLOUR_NAMES, DIGIT_NAMES
        texts, labels = [], []
        for at, (word, label) in enumerate(zip(prompt.text.split(), prompt.labels, strict=True)):
            own = self.words[at % 2]
            texts.append(own or word)
            labels.append(known[at % 2].index(own) if own in known[at % 2] else label)
        return Prompt(" ".join(texts), tuple(labels))

    def shows(self, found: np.ndarray) -> np.ndarray:
        """What the judge reads, [n, 4] → whether each digit is what the negative names, [n, 2]."""
        part, which = self.names
        return found[:, part::2] == which


CASES = (
    Case("colour", "better", (OPEN, None), ("blue", OPEN), "hard", "The prompt names two digits and no colour."),
    Case("digit", "better", (None, OPEN), (OPEN, "eight"), "easy", "The prompt names two colours and no digit."),
    Case("mistake", "early", (None, "seven"), (OPEN, "one"), "all",
         "The under-trained model draws many a one where the prompt asks for a seven."),
    Case("asked", "better", ("blue", None), ("blue", OPEN), "hard",
         "The prompt asks for the colour that the negative names."),
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- the rows


def with_negative(guidance: Any, scale: float, **fixed) -> Method:
    """A node of the pack at cfg 1, with the case's negative prompt."""
    about = guidance.about
    settings = ", ".join(f"{name} {value}" for name, value in fixed.items())
    return node(
        about.name, about, (scale,), (), settings=settings, negative=lambda rig: rig.encode(rig.negative), **fixed
    )


def with_cfg(weight: float) -> Method:
    return Method("CFG", "cfg", (weight,), (weight,), cfg, 1.0, (NEGATIVE,))


PLAIN = METHODS[0]
ROWS = (
    PLAIN,
    *map(with_cfg, (1.25, 2.0, 4.0)),
    *(with_negative(NormalizedAttention, scale) for scale in (1.5, 3.0, 5.0)),
    with_negative(NormalizedAttention, 5.0, alpha=0.5),
    *(with_negative(FlippedValues, scale) for scale in (0.1, 0.5, 3.5)),
    *(with_negative(SubtractedAttention, scale) for scale in (0.05, 0.1, 0.2)),
    *(with_negative(OrthogonalAttention, scale) for scale in (0.25, 1.0, 4.0)),
)


# --------------------------------------------------------------------------------------------------------- sampling


def share_left(found, groups, reference):  # noqa: ARG001  as all measures
    """The share of what the negative names, of that without a negative."""
    own, before = (found[name].mean(1) for name in ("named", "named_without"))
    return lambda at: float(own[at].mean() / before[at].mean())


def measures_of(case: Case) -> tuple[Measure, ...]:
    return (
        Measure("named", mean_of("named"), limit=1),
        Measure("left", share_left),
        Measure("accuracy", mean_of(case.asks), limit=1),
        Measure("precision", precision_of, limit=1),
        Measure("fd_pixel", pixel_distance_of),
    )


class Bench:
    """Samples the rows of the cases and measures them."""

    def __init__(self, folder: Path, pictures: int, seeds: Sequence[int], compute: str, commit: str):
        self.folder, self.suite, self.pictures, self.seeds = folder, DemoDigits(folder), pictures, seeds
        self.compute, self.commit = compute, commit
        self.reference = reference_of(self.suite)
        self.groups = np.arange(pictures) // PER_PROMPT
        self.without: dict[tuple, tuple] = {}  # what is found of the pictures without a negative, by case and seed

    @property
    def model(self) -> str:
        """The models by name and content."""
        settings = dict.fromkeys(case.setting for case in CASES)
        return ", ".join(named(demo_files(self.folder, SETTINGS[setting]).checkpoint) for setting in settings)

    @functools.cache  # noqa: B019  it lives as long as its process
    def rig(self, setting: str) -> Rig:
        sampler = "euler", "simple", 128, 128
        files = demo_files(self.folder, SETTINGS[setting])
        return Rig(files, STEPS, *sampler, BATCH, compute=self.compute, decode=self.suite.decode)

    def row(self, case: Case, method: Method) -> dict:
        """What stands in the results."""
        names = {"case": case.name, "method": method.name, "setting": said(method)}
        return {**names, "commit": self.commit, "cells": [self._cell(case, method, seed) for seed in self.seeds]}

    def _cell(self, case: Case, method: Method, seed: int) -> dict:
        if (case.name, seed) not in self.without:
            self.without[case.name, seed] = self._found(case, PLAIN, seed)
        without, _ = self.without[case.name, seed]
        if method is PLAIN:
            found, rows, base = *self.without[case.name, seed], None
        else:
            found, rows = self._found(case, method, seed)
            found["named_without"], base = without["named"], without
        result = measured(found, self.groups, self.reference, base, DRAWS, measures_of(case))
        return {"seed": seed, "rows": rows, "values": result["values"], "against_none": result["against_none"]}

    def _found(self, case: Case, method: Method, seed: int) -> tuple[dict[str, np.ndarray], float]:
        """All that is measured of the row's pictures; how many rows of the network a picture took, per step."""
        rig = self.rig(case.setting)
        rig.negative = case.negative_text
        different = [case.prompt(prompt) for prompt in self.suite.prompts(-(-self.pictures // PER_PROMPT), seed)]
        prompts = [different[at // PER_PROMPT] for at in range(self.pictures)]
        sampled = rig.sample(method, method.strengths[0], prompts, seed)
        shows = case.shows(self.suite.read(sampled.pictures)[0].argmax(-1))
        return {**features_of(sampled, prompts, self.reference), "named": shows}, sampled.rows


# --------------------------------------------------------------------------------------------------------- the page


def value(row: dict, measure: str) -> str:
    """The mean over the seeds, marked where it is clearly better or worse than without a negative."""
    cells = row["cells"]
    if measure == "rows":
        return f"{cells[0]['rows']:g}"
    if any(measure not in cell["values"] for cell in cells):
        return ""
    text = number(float(np.mean([cell["values"][measure][0] for cell in cells])))
    return marked(text, [cell["against_none"].get(measure) for cell in cells], measure in MORE_IS_BETTER)


def heading(case: Case) -> str:
    prompt = " ".join(word or "…" for word in case.words * 2)
    return f'{case.about} Prompt "{prompt}", negative "{case.negative_text}"; accuracy is of {ASKED[case.asks]}.'


def summary(results: dict) -> list[str]:
    """A table for each case that was begun."""
    lines = []
    for case in CASES:
        rows = [
            [row["method"], row["setting"], *(value(row, each) for each in COLUMNS)]
            for row in results["rows"]
            if row["case"] == case.name
        ]
        if rows:
            lines += [heading(case), "", *table(["method", "setting", *COLUMNS.values()], rows)]
    return lines


def missing(results: dict) -> list[str]:
    """What the run was ended before."""
    known = {(row["case"], row["method"], row["setting"]) for row in results["rows"]}
    names = [
        f"{case.name}: {method.name} {said(method)}".rstrip()
        for case in CASES
        for method in ROWS
        if (case.name, method.name, said(method)) not in known
    ]
    return [f"Not sampled yet, the same command goes on with them: {'; '.join(names)}.", ""] if names else []


def page(results: dict) -> str:
    """results/negatives.md."""
    run = results["run"]
    lines = [
        "# A negative prompt at cfg 1",
        "",
        f"Made by `{run['command']}` at {run['time']}: {facts(results)}. Models {results['model']}.",
        "",
        "**Small models, CPU, not tried on real weights.** Two coloured digits; "
        f"{STEPS} Euler steps; the same prompts and noise for every row of a table. Those that do not help are here too.",
        "",
        *summary(results),
        *missing(results),
        WORDS,
        "",
        "## Each seed",
        "",
        "Intervals of 95 %, by prompts drawn anew, each with its pictures with and without a negative. That of a share of "
        "0 has no width: where none of 400 digits shows it, up to 0.008 may. Last: differences from none, in paired "
        "standard errors.",
        "",
    ]
    measures = [each for each in COLUMNS if each != "rows"]
    compared = [each for each in measures if each != "left"]
    for case in CASES:
        rows = []
        for row in (row for row in results["rows"] if row["case"] == case.name):
            for cell in row["cells"]:
                values = [with_interval(cell["values"].get(each)) for each in measures]
                apart = [cell["against_none"].get(each) for each in compared]
                errors = ", ".join(f"{one[0] / one[3]:+.0f}" if one[3] > 0 else "0" for one in apart if one)
                rows.append([row["method"], row["setting"], str(cell["seed"]), *values, errors])
        if rows:
            last = ", ".join(COLUMNS[each] for each in compared)
            header = ["method", "setting", "seed", *(COLUMNS[each] for each in measures), last]
            lines += [f"### {case.name}", "", *table(header, rows)]
    return "\n".join(lines).rstrip() + "\n"


def in_step(text: str, results: dict) -> str:
    """A README's text with the tables made again."""
    made = "\n".join([*summary(results), *missing(results), f"From `results/{RESULTS.name}`: {facts(results)}.", ""])
    return between(text, "negatives", made)


# ------------------------------------------------------------------------------------------------------- the command


def main(arguments: Sequence[str]) -> int:
    options = parsed(__doc__ or "", arguments, RESULTS, PICTURES)
    host = start_host(options.comfyui, threads=1)
    run = facts_of_run("negatives", arguments, host=f"ComfyUI {host}", draws=DRAWS)
    bench = Bench(options.demo, options.pictures, options.seeds, options.compute, run["commit"])
    same = {"pictures": options.pictures, "seeds": options.seeds, "compute": options.compute}
    results = {"run": run, "model": bench.model, **same, "rows": []}
    before = [] if options.again else known_rows(options.results, results)
    known = {(row["case"], row["method"], row["setting"]): row for row in before}
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        for method in ROWS:
            name = case.name, method.name, said(method)
            sys.stderr.write(f"{' '.join(name)}\n")
            results["rows"].append(known.get(name) or bench.row(case, method))
            options.results.write_text(json.dumps(results, indent=1), "utf-8")
            options.results.with_suffix(".md").write_text(page(results), "utf-8")
    if options.results == RESULTS:
        README.write_text(in_step(README.read_text("utf-8"), results), "utf-8")
    return 0

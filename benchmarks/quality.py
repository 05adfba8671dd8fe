"""What each guidance does to pictures, and what it costs: one table from one command.

    python benchmarks/quality.py                      the demo model; resumes where it was stopped
    python benchmarks/quality.py --quick              few pictures, only to show that it runs
    python benchmarks/quality.py --checkpoint my.safetensors --prompts prompts.txt [--weak older.safetensors]
    python benchmarks/quality.py --only-report        the table again, from the results

With a judge (the demo model) every method gets the same number of strengths, tried with `--choose` pictures of one seed;
the one of least Fréchet distance is reported with `--report` pictures of other seeds. Without a judge (your model) every
strength is sampled, and what needs no judge is reported. All methods share prompts and noise, picture by picture.

Results are JSON, one line for each finished cell, written when it is finished: a second run does only what is missing.
The pictures' features, which paired intervals need, lie beside them under output/quality; what is lost there is sampled
again. Needs a ComfyUI (--comfyui, COMFYUI_PATH, or the one that dev.py has fetched) and runs in its Python.
"""

# ruff: noqa: E402  run as a script, it becomes a module of the pack before it imports others

from __future__ import annotations

import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if not __package__:  # run as a script: be a part of the pack, whatever its folder is called
    pack = types.ModuleType("pack")
    pack.__path__ = [str(ROOT)]
    sys.modules["pack"] = pack
    del sys.path[0]  # nothing of ours may hide a module of the host
    from pack.benchmarks import quality

    sys.exit(quality.main(sys.argv[1:]))

import argparse
import contextlib
import functools
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch

from . import metrics
from .truncation import Truncation

RECIPE = 1  # raise it when what a cell means changes: cells of an older recipe are then sampled again
RESULTS = ROOT / "benchmarks/results/quality.jsonl"
CHOOSE_SEED, REPORT_SEEDS = 0, (1, 2)
POOL_SEED, POOL_SIZE = 1000, 16  # of the prompts that ICG draws from
NONE, REAL = "none", "real pictures"
PERCENT = (0.2, 0.75)  # the interval of CFG: on a flow model without shift 0.25 ≤ σ ≤ 0.8
REFERENCE_ROWS = 2000  # of the reference for precision and recall, which compare all with all
EMPTY = ""
DECODED = 1  # pictures at a time: more take longer on a CPU


# ------------------------------------------------------------------------------------------------------------- methods


@dataclass(frozen=True)
class Method:
    """One row of the table. build(rig, model, strength) → (MODEL with it, the sampler's cfg)."""

    name: str
    word: str  # what its strength is called
    strengths: tuple[float, ...]  # those tried on the small demo models
    usual: tuple[float, ...]  # those tried on a model of full size
    build: Callable
    off: float = 0.0  # the strength that does nothing
    needs: frozenset[str] = frozenset()  # "negative": the sampler's cfg and an empty prompt; "weak": another model
    settings: str = ""  # what else is set, as shown in the report
    adds: bool = True  # whether it is a term that others can stand beside


def node(node_id: str, **fixed) -> Callable:
    """build() by one of the pack's own nodes, with its defaults and `fixed`; values may be functions of the rig."""

    def build(rig, model, strength):
        given = {key: value(rig) if callable(value) else value for key, value in fixed.items()}
        return rig.with_node(node_id, model, strength, **given), 1.0

    return build


def cfg(rig, model, strength):
    return model, strength


def cfg_interval(rig, model, strength):
    start, end = PERCENT
    return rig.with_node("BeyondCFGInterval", model, None, start_percent=start, end_percent=end), strength


def truncation(rig, model, strength):
    return rig.with_rule(model, Truncation(strength), "Truncation"), 1.0


def none(rig, model, strength):
    return model, 1.0


METHODS = (
    Method(NONE, "", (0.0,), (0.0,), none, adds=False),
    Method("CFG", "cfg", (1.5, 2, 3, 4), (3, 5, 7, 10), cfg, 1.0, frozenset({"negative"})),
    Method(
        "CFG + interval", "cfg", (2, 3, 4, 6), (3, 5, 7, 10), cfg_interval, 1.0, frozenset({"negative"}),
        settings="{} to {} of sampling".format(*PERCENT),
    ),
    Method("PAG", "scale", (0.25, 0.5, 1, 2), (1, 2, 3, 5), node("BeyondCFGPAG", layers=lambda rig: rig.layers)),
    Method("SEG", "scale", (0.25, 0.5, 1, 2), (1, 2, 3, 5), node("BeyondCFGSEG", layers=lambda rig: rig.layers)),
    Method("SAG", "scale", (0.25, 0.5, 1, 2), (0.25, 0.5, 0.75, 1.5), node("BeyondCFGSAG")),
    Method(
        "ICG", "weight", (1.5, 2, 3, 4), (2, 3, 5, 8), off=1.0, settings=f"{POOL_SIZE} other prompts",
        build=node("BeyondCFGICG", conditions="prompts", prompts=lambda rig: rig.pool),
    ),
    Method("TSG", "weight", (1.5, 2, 3, 4), (1.5, 2, 3, 5), node("BeyondCFGTSG"), off=1.0),
    Method(
        "Autoguidance", "weight", (1.5, 2, 3, 4), (1.5, 2, 2.5, 3), off=1.0, needs=frozenset({"weak"}),
        build=node("BeyondCFGAutoguidance", weak_model=lambda rig: rig.weak),
    ),
    Method("Truncation", "factor", (1.1, 1.2, 1.4, 1.7), (1.02, 1.05, 1.1, 1.2), truncation, off=1.0, adds=False),
)  # fmt: skip
SHARES = (0.25, 0.5, 0.75, 1.0)  # of both chosen strengths, for a pair


def pair(one: Method, one_strength: float, other: Method, other_strength: float) -> Method:
    """Both at a share of their own strength, beyond what does nothing."""

    def build(rig, model, share):
        weights = []
        for method, strength in ((one, one_strength), (other, other_strength)):
            model, weight = method.build(rig, model, method.off + share * (strength - method.off))
            weights.append(weight)
        return model, max(weights)  # one of them is 1, that of a method without the sampler's cfg

    settings = f"1 is {one.name} {one_strength:g} and {other.name} {other_strength:g}"
    needs = one.needs | other.needs
    return Method(f"{one.name} + {other.name}", "share of both", SHARES, SHARES, build, 0.0, needs, settings)


def best_pair(chosen: dict[Method, tuple[float, float]]) -> Method | None:
    """Of the two terms with the least distance that can stand together. chosen: method → (strength, distance)."""
    terms = sorted((method for method in chosen if method.adds), key=lambda method: chosen[method][1])
    pairs = ((one, other) for at, other in enumerate(terms) for one in terms[:at])
    found = next((both for both in pairs if not ({"negative"} <= both[0].needs and {"negative"} <= both[1].needs)), None)
    return pair(found[0], chosen[found[0]][0], found[1], chosen[found[1]][0]) if found else None


# -------------------------------------------------------------------------------------------------- prompts and judge


@dataclass(frozen=True)
class Prompt:
    text: str
    labels: tuple[int, ...] = ()  # what the judge should find


class Suite(Protocol):
    """What is asked for, and what it is compared with."""

    name: str
    judged: bool
    hard: tuple[int, ...]  # which of a prompt's labels accuracy is about; the others are a check that they are easy

    def prompts(self, count: int, seed: int) -> list[Prompt]:
        """The same for the same count and seed."""

    def read(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """pictures [n, height, width, 3] of 0…1 → the judge's logits [n, labels, classes], features [n, parts, d]"""

    def reference(self) -> np.ndarray:
        """Real pictures [n, height, width, 3] of 0…1, of a split that neither generator nor judge has seen."""

    def real(self, count: int, seed: int) -> tuple[np.ndarray, list[Prompt]]:
        """Real pictures of the generator's split with what they show: what a perfect generator could reach."""


@dataclass(frozen=True)
class PromptFile:
    """A user's prompts, in their order, again from the first where more are asked for; no judge."""

    lines: tuple[str, ...]
    name: str = "prompts"
    judged: bool = False
    hard: tuple[int, ...] = ()

    @classmethod
    def load(cls, path: Path) -> PromptFile:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        lines = tuple(line for line in lines if line and not line.startswith("#"))
        if not lines:
            raise SystemExit(f"{path} holds no prompt; write one on each line.")
        return cls(lines, path.name)

    def prompts(self, count: int, seed: int) -> list[Prompt]:
        return [Prompt(self.lines[at % len(self.lines)]) for at in range(count)]


class Reference:
    """Real pictures as the measures see them."""

    def __init__(self, suite: Suite):
        pictures = suite.reference()
        features = suite.read(pictures)[1].astype(np.float64)
        self.suite = suite
        self.unit = features.reshape(-1, features.shape[-1]).std(0).mean()  # of all distances in features
        rows = features.reshape(-1, features.shape[-1]) / self.unit
        self.gaussian = metrics.Gaussian.of(rows)
        thinned = rows[np.random.default_rng(0).permutation(len(rows))[:REFERENCE_ROWS]]
        self.manifold = metrics.Manifold(thinned)
        self.pixels = metrics.PixelSpace.of(pictures)
        self.pixel_gaussian = metrics.Gaussian.of(self.pixels(pictures))


# ----------------------------------------------------------------------------------------------------- what is measured


@dataclass
class Sampled:
    """The pictures of a cell and what they took; counts of calls are of all networks together."""

    pictures: np.ndarray  # [n, height, width, 3] of 0…1
    forwards: float = 0.0  # of a network, per step of the sampler
    rows: float = 0.0  # of those forwards, per step and picture
    cpu_seconds: float = 0.0  # of this process, sampling alone
    wall_seconds: float = 0.0


def features_of(sampled: Sampled, prompts: Sequence[Prompt], reference: Reference | None) -> dict[str, np.ndarray]:
    """All that later measures need of the pictures, one row for each."""
    height = sampled.pictures.shape[1]
    small = metrics.small(sampled.pictures, 16 if height % 16 == 0 else 8)
    found = {"small": small.astype(np.float32), **metrics.appearance(sampled.pictures)}
    if reference is not None:
        logits, features = reference.suite.read(sampled.pictures)
        found["features"] = (features / reference.unit).astype(np.float32)
        found["pixels"] = reference.pixels(sampled.pictures)
        if prompts[0].labels:
            found["all"] = metrics.hits(logits, np.array([prompt.labels for prompt in prompts]))
            hard = np.isin(np.arange(found["all"].shape[1]), reference.suite.hard)
            found["hard"], found["easy"] = found["all"][:, hard], found["all"][:, ~hard]
    return found


@dataclass(frozen=True)
class Measure:
    """A number of a cell. unbroken: by nearest neighbours, so that no picture may be drawn twice."""

    name: str
    of: Callable  # (features of the pictures, groups, reference) → a statistic of indices; KeyError where it has none
    unbroken: bool = False
    limit: float = np.inf  # the most that it can be; the least is 0


def mean_of(key: str, reduce=lambda x: x.reshape(len(x), -1).mean(1)) -> Callable:
    def of(found, groups, reference):
        if not found[key].size:
            raise ValueError(f"no {key}")
        values = reduce(found[key])
        return lambda at: float(values[at].mean())

    return of


def within_prompts(key: str) -> Callable:
    """Mean distance of the pictures of one prompt; for pixels the root of the mean of their squared differences."""

    def of(found, groups, reference):
        rows = found[key].reshape(len(groups), -1)
        known = np.unique(groups)
        spread = metrics.spreads(rows / rows.shape[1] ** (0.5 if key == "small" else 0), groups)
        values = spread[np.searchsorted(known, groups)]
        if np.isnan(values).all():
            raise ValueError("each prompt has one picture")
        return lambda at: float(np.nanmean(values[at]))

    return of


def flat(features: np.ndarray) -> np.ndarray:
    return features.reshape(-1, features.shape[-1]).astype(np.float64)


def distance_of(found, groups, reference):
    features = found["features"].astype(np.float64)
    return lambda at: metrics.frechet(flat(features[at]), reference.gaussian)


def pixel_distance_of(found, groups, reference):
    return lambda at: metrics.frechet(found["pixels"][at], reference.pixel_gaussian)


def precision_of(found, groups, reference):
    features = flat(found["features"])
    held = reference.manifold.holds(features).reshape(len(groups), -1).mean(1)
    return lambda at: float(held[at].mean())


def recall_of(found, groups, reference):
    parts = found["features"].shape[1]
    recall = metrics.Recall(flat(found["features"]), reference.manifold)
    return lambda at: recall((at[:, None] * parts + np.arange(parts)).ravel())


MEASURES = (
    Measure("accuracy", mean_of("hard"), limit=1),
    Measure("easy_accuracy", mean_of("easy"), limit=1),
    Measure("all_right", mean_of("all", lambda hits: hits.all(1)), limit=1),
    Measure("fd", distance_of),
    Measure("fd_pixel", pixel_distance_of),
    Measure("precision", precision_of, limit=1),
    Measure("recall", recall_of, unbroken=True, limit=1),
    Measure("diversity", within_prompts("features")),
    Measure("diversity_pixel", within_prompts("small")),
    Measure("contrast", mean_of("contrast")),
    Measure("saturation", mean_of("saturation")),
    Measure("clipped", mean_of("clipped"), limit=1),
)


def measured(found: dict, groups: np.ndarray, reference: Reference | None, base: dict | None, draws: int) -> dict:
    """{"values": {measure: [value, low, high, standard error]}, "against_none": the same of differences}

    `base`: the features of the same prompts and noise without guidance."""
    values, differences = {}, {}
    for measure in MEASURES:
        sure = metrics.half_samples if measure.unbroken else metrics.bootstrap
        count = max(2, draws // 4) if measure.unbroken else draws
        with contextlib.suppress(KeyError, ValueError):  # what these pictures have no such number for
            statistic = measure.of(found, groups, reference)
            values[measure.name] = listed(sure(statistic, groups, count), 0, measure.limit)
            if base is not None:
                other = measure.of(base, groups, reference)
                difference = functools.partial(lambda at, one, two: one(at) - two(at), one=statistic, two=other)
                differences[measure.name] = listed(sure(difference, groups, count))
    if base is not None:
        change = np.abs(found["small"] - base["small"]).mean(1)
        values["change"] = listed(metrics.bootstrap(lambda at: float(change[at].mean()), groups, draws))
    return {"values": values, "against_none": differences}


def listed(estimate: metrics.Estimate, least: float = -np.inf, most: float = np.inf) -> list[float]:
    low, high = max(least, estimate.low), min(most, estimate.high)
    return [round(float(number), 6) for number in (estimate.value, low, high, estimate.error)]


# --------------------------------------------------------------------------------------------------- cells and results


@dataclass(frozen=True)
class Cell:
    """One setting, sampled for one set of prompts and noise."""

    stage: str  # "choose", "report", or "sample" where there is no judge to choose by
    method: Method
    strength: float
    seed: int
    count: int  # of pictures

    def key(self, common: dict, weak: str) -> dict:
        """All that its result depends on, as it stands in the results."""
        return {
            "stage": self.stage, "method": self.method.name, "word": self.method.word, "strength": self.strength,
            "seed": self.seed, "n": self.count, "settings": self.method.settings,
            "weak": weak if "weak" in self.method.needs else "", **common,
        }  # fmt: skip


def name_of(key: dict) -> str:
    return hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=8).hexdigest()


class Results:
    """The file of JSON lines, and the features of the pictures beside it."""

    def __init__(self, path: Path, arrays: Path):
        self.path, self.arrays = path, arrays
        self.run: str | None = None
        self.records = {record["id"]: record for record in read_records(path) if record["kind"] == "cell"}

    def begin(self, run: dict) -> None:
        """A new run; its line is written with its first cell, so that a run that finds all done leaves no trace."""
        self._run = {"kind": "run", "id": name_of(run), **run}

    def add(self, key: dict, result: dict, found: dict[str, np.ndarray]) -> dict:
        self.keep(key, found)
        if self.run is None:
            self._append(self._run)
            self.run = self._run["id"]
        record = {"kind": "cell", "id": name_of(key), "run": self.run, "key": key, **result}
        self._append(record)
        self.records[record["id"]] = record
        return record

    def keep(self, key: dict, found: dict[str, np.ndarray]) -> None:
        self.arrays.mkdir(parents=True, exist_ok=True)
        path = self.arrays / f"{name_of(key)}.npz"
        part = path.with_suffix(".part.npz")
        np.savez_compressed(part, **found)
        os.replace(part, path)

    def found(self, key: dict) -> dict[str, np.ndarray] | None:
        path = self.arrays / f"{name_of(key)}.npz"
        return dict(np.load(path)) if path.exists() else None

    def _append(self, record: dict) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = self.path.read_bytes() if self.path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]  # without a line that a killed run has left unfinished
        with self.path.open("r+b" if text else "wb") as file:
            file.seek(len(whole))
            file.truncate()
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def read_records(path: Path) -> list[dict]:
    """What is in the file; an unfinished last line is not."""
    text = path.read_text("utf-8") if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def noise_of(shape: Sequence[int], seed: int, pictures: Iterable[int]) -> torch.Tensor:
    """N(0, 1) [pictures, *shape]: that of a picture depends on seed and number alone, not on batch or method."""

    def one(picture: int) -> torch.Tensor:
        key = hashlib.blake2b(f"{seed} {picture}".encode(), digest_size=8).digest()
        return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1))

    return torch.stack([one(picture) for picture in pictures])


class Study:
    """Samples and measures cells, those only that are not in the results."""

    def __init__(self, rig, suite: Suite, results: Results, common: dict, draws: int, progress):
        self.rig, self.suite, self.results, self.common = rig, suite, results, common  # common to the keys of all cells
        self.per_prompt, self.draws, self.progress = common["per_prompt"], draws, progress
        self.now: dict[tuple, dict] = {}  # features without guidance, by seed and count, of this process

    @functools.cached_property
    def reference(self) -> Reference | None:
        return Reference(self.suite) if self.suite.judged else None

    def key(self, cell: Cell) -> dict:
        return cell.key(self.common, self.rig.weak_name)

    def record(self, cell: Cell) -> dict | None:
        return self.results.records.get(name_of(self.key(cell)))

    def do(self, cell: Cell) -> dict:
        """The cell's record, sampled if there is none."""
        return self.record(cell) or self._do(cell)

    def _do(self, cell: Cell) -> dict:
        base = None if cell.method.name in (NONE, REAL) else self._without_guidance(cell)
        sampled, found = self._sample(cell)
        groups = np.arange(cell.count) // (1 if cell.method.name == REAL else self.per_prompt)
        cost = {
            "forwards_per_step": round(sampled.forwards, 4), "rows_per_step": round(sampled.rows, 4),
            "cpu_seconds": round(sampled.cpu_seconds, 3), "wall_seconds": round(sampled.wall_seconds, 3),
            "cpu_ms_per_picture": round(1000 * sampled.cpu_seconds / cell.count, 3),
        }  # fmt: skip
        result = measured(found, groups, self.reference, base, self.draws)
        return self.results.add(self.key(cell), {**cost, **result}, found)

    def _without_guidance(self, cell: Cell) -> dict[str, np.ndarray]:
        """The same prompts and noise without guidance: from beside the results, else sampled again."""
        same = replace(cell, method=METHODS[0], strength=0.0)
        place = (same.stage, same.seed, same.count)
        if place not in self.now:
            self.do(same)
            found = self.results.found(self.key(same))
            if found is None:
                found = self._sample(same)[1]
                self.results.keep(self.key(same), found)
            self.now[place] = found
        return self.now[place]

    def _sample(self, cell: Cell) -> tuple[Sampled, dict[str, np.ndarray]]:
        self.progress.begin(cell)
        if cell.method.name == REAL:
            pictures, prompts = self.suite.real(cell.count, cell.seed)
            sampled = Sampled(pictures)
        else:
            different = self.suite.prompts(-(-cell.count // self.per_prompt), cell.seed)
            prompts = [different[at // self.per_prompt] for at in range(cell.count)]
            sampled = self.rig.sample(cell.method, cell.strength, prompts, cell.seed, self.progress.tick)
        return sampled, features_of(sampled, prompts, self.reference)

    def run(self, methods: Sequence[Method], choose: int, report: int, seeds: Sequence[int], tried: Callable) -> None:
        """Every method, and the best pair of them. tried: method → the strengths to try."""
        if not self.suite.judged:
            self._all([Cell("sample", m, at, seed, report) for seed in seeds for m in methods for at in tried(m)], 0)
            return
        reports = len(seeds) * (len(methods) + 2)
        tries = {m: [Cell("choose", m, at, CHOOSE_SEED, choose) for at in tried(m)] for m in methods}
        self._all([cell for cells in tries.values() for cell in cells], reports + len(SHARES))
        chosen = {m: best for m, cells in tries.items() if (best := self.chosen(cells))}
        if both := best_pair(chosen):
            tries[both] = [Cell("choose", both, at, CHOOSE_SEED, choose) for at in tried(both)]
            self._all(tries[both], reports)
            chosen[both] = self.chosen(tries[both])
        real = Method(REAL, "", (0.0,), (0.0,), none, adds=False)
        strengths = {real: 0.0, **{m: chosen[m][0] if m in chosen else tried(m)[0] for m in tries}}
        self._all([Cell("report", m, at, seed, report) for seed in seeds for m, at in strengths.items()], 0)

    def _all(self, cells: list[Cell], after: int) -> None:
        missing = [cell for cell in cells if self.record(cell) is None]
        self.progress.expect(len(cells) - len(missing), len(missing) + after)
        for cell in missing:
            self.do(cell)

    def chosen(self, cells: list[Cell]) -> tuple[float, float] | None:
        """(the strength of least Fréchet distance, that distance)"""
        found = [(self.do(cell)["values"].get("fd", [np.nan])[0], cell.strength) for cell in cells]
        found = [one for one in found if not np.isnan(one[0])]
        return (min(found)[1], min(found)[0]) if found else None


class Progress:
    """One line on stderr that is written over; a line for each cell where that is no terminal."""

    def __init__(self, stream=sys.stderr):
        self.stream, self.live = stream, stream.isatty()
        self.done, self.left, self.start, self.cell = 0, 0, time.monotonic(), None

    def expect(self, known: int, left: int) -> None:
        self.left = left
        if known:
            self.stream.write(f"{known} cells are in the results already\n")

    def begin(self, cell: Cell) -> None:
        self.cell, self.done, self.left = cell, self.done + 1, max(0, self.left - 1)
        self.tick(0)
        if not self.live:
            self.stream.write(f"{self._cell()}, {self.left} more\n")
            self.stream.flush()

    def tick(self, pictures: int) -> None:
        if not self.live or self.cell is None:
            return
        share = (self.done - 1 + pictures / self.cell.count) / (self.done + self.left)
        left = (time.monotonic() - self.start) * (1 - share) / share if share else 0
        bar = "#" * round(24 * share)
        self.stream.write(f"\r[{bar:24}] {self._cell()}, {pictures} pictures, {left / 60:.0f} min left \033[K")
        self.stream.flush()

    def end(self) -> None:
        self.stream.write("\n" if self.live else "")

    def _cell(self) -> str:
        cell = self.cell
        return f"{cell.stage}: {cell.method.name} {cell.strength:g}, seed {cell.seed}, n = {cell.count}"


# -------------------------------------------------------------------------------------------------------------- report

COLUMNS = (
    ("accuracy", "accuracy"), ("easy_accuracy", "easy part"), ("all_right", "all right"), ("fd", "FD"),
    ("fd_pixel", "FD pixel"), ("precision", "precision"), ("recall", "recall"), ("diversity", "diversity"),
    ("change", "change"),
    ("diversity_pixel", "diversity (pixels)"), ("contrast", "contrast"), ("saturation", "saturation"),
    ("clipped", "clipped"),
)  # fmt: skip
WORDS = (
    "Intervals of 95 %: prompts drawn anew, for recall halves of them. FD: Fréchet distance in the judge's features, in "
    "units of their mean deviation; FD pixel: in 32 components of the pixels. Both are biased upwards, alike for all of "
    "one n. change: mean difference of pixels from none, same noise. forwards and rows: per step, all networks together.",
    "Differences from none on the same prompts and noise; in brackets in paired standard errors. Below 3 it may be chance.",
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
    shown = ("accuracy", "fd", "fd_pixel", "precision", "recall", "diversity", "contrast", "saturation")
    header, rows = ["method", "setting", "seed", *shown], []
    for cell in cells:
        if found := cell["against_none"]:
            values = [in_errors(found.get(name)) for name in shown]
            rows.append([cell["key"]["method"], setting(cell["key"]), str(cell["key"]["seed"]), *values])
    return table(header, rows) if rows else []


def in_errors(estimate: Sequence[float] | None) -> str:
    if estimate is None:
        return ""
    return f"{estimate[0]:+.3f}" + (f" ({estimate[0] / estimate[3]:+.1f})" if estimate[3] > 0 else "")


def at_accuracy(points: Sequence[tuple[float, float]], accuracy: float) -> float | None:
    """A measure at one accuracy, by straight lines between a method's (accuracy, measure) in order of its strengths; the
    first crossing counts. None where its strengths do not reach it."""
    for (low, first), (high, last) in zip(points, points[1:], strict=False):
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
    lines = ["# Quality of guidance", "", "Made by `benchmarks/quality.py` from its results; not to be edited.", ""]
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
    return "\n".join(lines).rstrip() + "\n"


OF_A_CELL = ("stage", "method", "word", "strength", "seed", "n", "settings", "weak")


def common_of(key: dict) -> dict:
    return {name: value for name, value in key.items() if name not in OF_A_CELL}


# ------------------------------------------------------------------------------------------------ the host's side of it


@dataclass
class Files:
    """The files of a model, for the host's loader nodes. What lies in a folder called diffusion_models or text_encoders is
    loaded as such, all else as a checkpoint."""

    checkpoint: Path
    clip: Path | None = None  # a checkpoint here is asked for its text encoder
    clip_type: str = "stable_diffusion"
    vae: Path | None = None
    weak: Path | None = None  # checkpoint of the model to move away from


@dataclass
class Count:
    forwards: int = 0
    rows: int = 0


@dataclass
class Rig:
    """The host in this process, with one model loaded by its own loader nodes."""

    files: Files
    steps: int
    sampler: str
    scheduler: str
    width: int
    height: int
    batch: int
    negative: str = EMPTY
    layers: str = "auto"
    pool_texts: tuple[str, ...] = ()
    conditional: bool = True
    counted: Count = field(default_factory=Count)

    def __post_init__(self):
        import nodes

        self.model, self.clip, self.vae = self._loaded(self.files.checkpoint)
        if self.files.clip:
            self.clip = self._loaded(self.files.clip)[1]
        if self.files.vae:
            (self.vae,) = nodes.VAELoader().load_vae(self._named("vae", self.files.vae))
        for part, option in ((self.clip, "clip"), (self.vae, "vae")):
            if part is None:
                raise SystemExit(f"{self.files.checkpoint.name} has none of its own: give one with --{option}.")
        self.model = self._counting(self.model)
        self._encoded: dict[str, list] = {}

    @property
    def weak_name(self) -> str:
        return named(self.files.weak) if self.files.weak else ""

    @functools.cached_property
    def weak(self):
        return self._counting(self._loaded(self.files.weak)[0])

    @functools.cached_property
    def pool(self) -> list:
        """The prompts that ICG draws from, joined as the host's Conditioning (Combine) does."""
        return [row for text in self.pool_texts for row in self.encode(text)]

    def _named(self, folder: str, path: Path) -> str:
        """The name that the host's loaders know the file by."""
        import folder_paths

        folder_paths.add_model_folder_path(folder, str(path.resolve().parent), is_default=True)
        return path.name

    def _loaded(self, path: Path) -> tuple:
        """(MODEL, CLIP, VAE) of a checkpoint; of a file in a folder of diffusion models, or of text encoders, that only."""
        import nodes

        if path.resolve().parent.name in ("diffusion_models", "unet"):
            name = self._named("diffusion_models", path)
            return nodes.UNETLoader().load_unet(name, "default")[0], None, None
        if path.resolve().parent.name in ("text_encoders", "clip"):
            name = self._named("text_encoders", path)
            return None, nodes.CLIPLoader().load_clip(name, self.files.clip_type)[0], None
        return nodes.CheckpointLoaderSimple().load_checkpoint(self._named("checkpoints", path))

    def _counting(self, model):
        """A clone of MODEL whose forwards are counted, the rows in them too."""
        from comfy.patcher_extension import WrappersMP

        def count(executor, x, *args, **kwargs):
            self.counted.forwards += 1
            self.counted.rows += x.shape[0]
            return executor(x, *args, **kwargs)

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "quality", count)
        return model

    def with_node(self, node_id: str, model, strength: float | None, **settings):
        """MODEL through the pack's own term node, at the node's defaults but for what is given."""
        found = next(one for one in _term_nodes() if one.about.node_id == node_id)
        defaults = {given.id: given.default for given in found.inputs if getattr(given, "default", None) is not None}
        given = {} if strength is None else {found.about.strength: strength}
        return found.execute(model=model, **{**defaults, **given, **settings}).result[0]

    def with_rule(self, model, rule, title: str):
        from ..guiders.host import Term, add_term
        from ..guiders.schedule import Schedule

        return add_term(model, Term(rule, Schedule(), title))

    def encode(self, text: str) -> list:
        import nodes

        if text not in self._encoded:
            with torch.inference_mode():
                self._encoded[text] = nodes.CLIPTextEncode().encode(self.clip, text)[0]
        return self._encoded[text]

    def sample(self, method: Method, strength: float, prompts: Sequence[Prompt], seed: int, tick) -> Sampled:
        """One picture for each prompt; picture i has the noise of number i of the seed."""
        model, weight = method.build(self, self.model, strength)
        texts = [prompt.text if self.conditional else EMPTY for prompt in prompts]
        for text in dict.fromkeys([*texts, self.negative]):
            self.encode(text)
        # Of one picture, since the host splits a batch that its free memory is too small for.
        self.counted.forwards = self.counted.rows = 0
        steps = self._latent(model, weight, texts, [0], seed)[1]
        forwards, rows = self.counted.forwards / steps, self.counted.rows / steps
        pictures, cpu, wall = [], 0.0, 0.0
        for chosen in self._batches(texts):
            started = time.process_time(), time.perf_counter()
            latent, _ = self._latent(model, weight, texts, chosen, seed)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            cpu, wall = cpu + time.process_time() - started[0], wall + time.perf_counter() - started[1]
            with torch.inference_mode():
                decoded = [self.vae.decode(few) for few in latent.split(DECODED)]
            pictures.append(torch.cat(decoded).float().cpu().numpy().clip(0, 1))
            tick(sum(map(len, pictures)))
        return Sampled(np.concatenate(pictures), forwards, rows, cpu, wall)

    def _batches(self, texts: list[str]) -> list[list[int]]:
        """Numbers of pictures that are sampled together: their prompts must have one shape."""
        batches: list[list[int]] = []
        for at, text in enumerate(texts):
            last = batches[-1] if batches else []
            if last and len(last) < self.batch and (texts[last[0]] == text or self._alike(texts[last[0]], text)):
                last.append(at)
            else:
                batches.append([at])
        return batches

    def _alike(self, one: str, other: str) -> bool:
        one, other = self.encode(one), self.encode(other)
        if len(one) != 1 or len(other) != 1 or one[0][0].shape != other[0][0].shape:
            return False
        (first, second) = one[0][1], other[0][1]
        return set(first) == set(second) <= {"pooled_output"}

    def _conditioning(self, texts: list[str]) -> list:
        """The prompts of a batch, one for each picture."""
        if len(set(texts)) == 1:
            return self.encode(texts[0])
        rows = [self.encode(text)[0] for text in texts]
        extra = {}
        if "pooled_output" in rows[0][1]:
            pooled = [row[1]["pooled_output"] for row in rows]
            extra["pooled_output"] = None if pooled[0] is None else torch.cat(pooled)
        return [[torch.cat([row[0] for row in rows]), extra]]

    def _latent(self, model, weight: float, texts: list[str], chosen: list[int], seed: int):
        """(latent [pictures, …], steps)"""
        import comfy.sample
        import comfy.samplers

        from ..guiders.host import make_guider

        empty = torch.zeros(len(chosen), 4, self.height // 8, self.width // 8)
        empty = comfy.sample.fix_empty_latent_channels(model, empty)
        noise = noise_of(empty.shape[1:], seed, chosen)
        sigmas = comfy.samplers.calculate_sigmas(
            model.get_model_object("model_sampling"), self.scheduler, self.steps
        )
        negative = self.encode(self.negative) if weight != 1.0 else None
        guider = make_guider(model, self._conditioning([texts[at] for at in chosen]), negative, weight)
        # What a guidance draws, it draws by the sampler's seed and the place in the batch: each batch has its own seed.
        own = int.from_bytes(hashlib.blake2b(f"{seed} batch {chosen[0]}".encode(), digest_size=4).digest(), "big")
        with torch.inference_mode():
            sampler = comfy.samplers.sampler_object(self.sampler)
            latent = guider.sample(noise, empty, sampler, sigmas, disable_pbar=True, seed=own)
        return latent, len(sigmas) - 1


def _term_nodes() -> list:
    from ..nodes import terms

    return terms.NODES


def named(path: Path) -> str:
    """A file by its name and content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return f"{path.name} sha256:{digest.hexdigest()[:12]}"


def start_host(folder: Path, threads: int) -> str:
    """Make the host importable; its version."""
    if "comfy" not in sys.modules:
        if not (folder / "comfy").is_dir():
            raise SystemExit(f"{folder} is no ComfyUI; say where it is with --comfyui, or run  python dev.py setup")
        kept, sys.argv = sys.argv, [sys.argv[0], *([] if torch.cuda.is_available() else ["--cpu"])]
        sys.path.insert(0, str(folder))
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args  # noqa: F401  reads sys.argv

        sys.argv = kept
    torch.set_num_threads(threads)
    import comfyui_version

    return comfyui_version.__version__


# ----------------------------------------------------------------------------------------------------------- the command


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    own = parser.add_argument_group("your own model")
    own.add_argument("--checkpoint", type=Path, metavar="FILE")
    own.add_argument("--prompts", type=Path, metavar="FILE", help="one on each line")
    own.add_argument("--clip", type=Path, metavar="FILE", help="text encoder, or a checkpoint that has one")
    own.add_argument("--clip-type", default="stable_diffusion", help="as in the host's Load CLIP")
    own.add_argument("--vae", type=Path, metavar="FILE")
    own.add_argument("--weak", type=Path, metavar="FILE", help="a worse version of the model, for Autoguidance")
    own.add_argument("--negative", default=EMPTY, metavar="TEXT")
    parser.add_argument("--demo", type=Path, default=ROOT / "benchmarks/models", metavar="FOLDER", help="the demo model's")
    parser.add_argument("--quick", action="store_true", help="few pictures and steps: shows that it runs, and no more")
    parser.add_argument("--methods", nargs="+", choices=[m.name for m in METHODS], metavar="NAME", help="default: all")
    parser.add_argument("--unconditional", action="store_true", help="the empty prompt for all pictures")
    parser.add_argument("--layers", default="auto", help="of PAG and SEG")
    parser.add_argument("--choose", type=int, default=200, metavar="N", help="pictures for choosing a strength")
    parser.add_argument("--report", type=int, metavar="N", help="pictures for each seed; 1000, or per prompt with yours")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(REPORT_SEEDS))
    parser.add_argument("--per-prompt", type=int, default=2, metavar="N", help="pictures of each prompt")
    parser.add_argument("--steps", type=int, metavar="N")
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--scheduler", default="simple")
    parser.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--batch", type=int, metavar="N", help="pictures sampled together")
    parser.add_argument("--draws", type=int, default=200, metavar="N", help="of the bootstrap")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")), metavar="N")
    parser.add_argument("--results", type=Path, default=None, metavar="FILE.jsonl")
    parser.add_argument("--only-report", action="store_true", help="write the table from the results, and no more")
    parser.add_argument("--comfyui", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    if bool(options.checkpoint) != bool(options.prompts):
        parser.error("--checkpoint and --prompts belong together")
    own_model, quick = options.checkpoint is not None, options.quick
    options.steps = options.steps or (4 if quick else 20 if own_model else 12)
    options.size = options.size or ([512, 512] if own_model else None)
    options.batch = options.batch or (4 if own_model else 40)
    if quick:
        options.choose, options.seeds, options.draws = 36, options.seeds[:1], 20
        options.report = options.report or (None if own_model else 36)
    if options.results is None:
        place = ROOT / "output/quality"
        options.results = place / "own.jsonl" if own_model else place / "quick.jsonl" if quick else RESULTS
    if options.comfyui is None:
        fetched = sorted((ROOT / ".host").glob("*/comfyui_version.py"))
        options.comfyui = Path(os.environ.get("COMFYUI_PATH") or (fetched[-1].parent if fetched else ROOT))
    return options


def facts_of_run(arguments: Sequence[str], options, host: str) -> dict:
    """What made the cells: command, seeds, commit, machine."""

    def git(*command: str) -> str:
        found = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False)
        return found.stdout.strip()

    with contextlib.suppress(OSError):
        dirty = " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        commit = (git("rev-parse", "--short=12", "HEAD") or "unknown") + dirty
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    return {
        "command": " ".join(["python benchmarks/quality.py", *arguments]), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ",
        time.gmtime()), "commit": commit, "machine": f"{platform.machine()} {device}, {options.threads} threads",
        "host": f"ComfyUI {host}", "torch": torch.__version__, "python": platform.python_version(),
        "choose_seed": CHOOSE_SEED, "seeds": list(options.seeds), "draws": options.draws,
    }  # fmt: skip


def write_report(results: Path) -> Path:
    path = results.with_suffix(".md")
    path.write_text(report(read_records(results)), "utf-8")
    return path


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    if options.only_report:
        print(write_report(options.results))
        return 0
    host = start_host(options.comfyui, options.threads)
    suite, files, defaults = own_suite(options) if options.checkpoint else demo_suite(options)
    width, height = options.size or defaults["size"]
    pool = tuple(prompt.text for prompt in suite.prompts(POOL_SIZE, POOL_SEED))
    rig = Rig(
        files, options.steps, options.sampler, options.scheduler, width, height, options.batch, options.negative,
        options.layers, pool, not options.unconditional,
    )  # fmt: skip
    methods = chosen_methods(options, rig, len(set(pool)))
    common = {
        "model": named(files.checkpoint), "suite": suite.name, "steps": options.steps, "sampler": options.sampler,
        "scheduler": options.scheduler, "width": width, "height": height, "batch": options.batch,
        "per_prompt": options.per_prompt, "layers": options.layers, "negative": options.negative,
        "conditional": not options.unconditional, "recipe": RECIPE,
    }  # fmt: skip
    count = options.report or (options.per_prompt * len(suite.lines) if options.checkpoint else 1000)
    results = Results(options.results, ROOT / "output/quality" / options.results.stem)
    results.begin(facts_of_run(arguments, options, host))
    progress = Progress()

    def tried(method: Method) -> tuple[float, ...]:
        strengths = method.usual if options.checkpoint else method.strengths
        return strengths[:: -2][::-1] if options.quick else strengths

    study = Study(rig, suite, results, common, options.draws, progress)
    try:
        study.run(methods, options.choose, count, options.seeds, tried)
    finally:
        progress.end()
        if options.results.exists():
            print(f"{options.results}\n{write_report(options.results)}")
    return 0


def chosen_methods(options, rig: Rig, prompts: int) -> list[Method]:
    """Those that can be sampled here; says which cannot, and why."""
    methods = [method for method in METHODS if not options.methods or method.name in (NONE, *options.methods)]
    for method in list(methods):
        why = ""
        if "weak" in method.needs and not rig.files.weak:
            why = "no weaker model is given (--weak)"
        elif "negative" in method.needs and options.unconditional and options.negative == EMPTY:
            why = "the empty prompt would be guided away from itself"
        elif method.name == "ICG" and prompts < 2:
            why = "it draws from other prompts, and there is one only"
        if why:
            sys.stderr.write(f"{method.name} is left out: {why}\n")
            methods.remove(method)
    return methods


def own_suite(options):
    return PromptFile.load(options.prompts), Files(
        options.checkpoint, options.clip, options.clip_type, options.vae, options.weak
    ), {}


class DemoDigits:
    """Two coloured digits, as benchmarks/demo_data.py draws them, and the judge that train_demo_model.py has trained."""

    judged, hard = True, (1, 3)  # colours are learned at once: the digits are what can go wrong
    REFERENCE = 2500  # pictures

    def __init__(self, folder: Path):
        from safetensors.torch import load_file

        from . import train_demo_model as trained

        self.name, self._trained = f"demo digits, judge {named(folder / 'judge.safetensors')}", trained
        self._judge = trained.Judge().eval()
        weights = load_file(folder / "judge.safetensors")
        self._judge.load_state_dict({name: tensor.float() for name, tensor in weights.items()})

    def prompts(self, count: int, seed: int) -> list[Prompt]:
        digits = self._trained.Digits("reference")
        labels = [digits.label(10**6 * (seed + 1) + at) for at in range(count)]  # of pictures that are not drawn
        return [Prompt(self._trained.prompt_of(label), tuple(label)) for label in labels]

    @torch.inference_mode()
    def read(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, features = [], []
        for start in range(0, len(pictures), 250):
            chunk = torch.from_numpy(pictures[start : start + 250]).float().permute(0, 3, 1, 2)
            seen = self._judge.features(chunk)  # [2n, 32]: left halves, then right
            colour, digit = self._judge.colour(seen.relu()), self._judge.digit(seen.relu())
            colour = torch.nn.functional.pad(colour, (0, digit.shape[1] - colour.shape[1]), value=-torch.inf)
            both = torch.stack([colour, digit], 1).unflatten(0, (2, -1))  # [half, n, colour or digit, classes]
            logits.append(both.transpose(0, 1).flatten(1, 2))  # [n, 4, classes]
            features.append(seen.unflatten(0, (2, -1)).transpose(0, 1))
        return torch.cat(logits).numpy(), torch.cat(features).numpy()

    def reference(self) -> np.ndarray:
        return self._trained.pictures_of("reference", self.REFERENCE)[0].permute(0, 2, 3, 1).numpy()

    def real(self, count: int, seed: int) -> tuple[np.ndarray, list[Prompt]]:
        """Training pictures through encoder and decoder."""
        pictures, labels = self._trained.pictures_of("generator", count, 10_000 * seed)
        seen = torch.cat([self._trained.decode(self._trained.encode(chunk)) for chunk in pictures.split(250)])
        prompts = [Prompt(self._trained.prompt_of(label), tuple(label)) for label in labels.tolist()]
        return seen.permute(0, 2, 3, 1).numpy(), prompts


def demo_suite(options):
    folder = options.demo
    files = Files(
        folder / "diffusion_models/demo_flux.safetensors", folder / "text_encoders/demo_text.ckpt", "stable_diffusion",
        folder / "vae/demo_vae.ckpt", options.weak or folder / "diffusion_models/demo_flux_025.safetensors",
    )  # fmt: skip
    needed = (files.checkpoint, files.clip, files.vae, folder / "judge.safetensors")
    missing = [path for path in needed if not path.exists()]
    if missing:
        raise SystemExit(f"There is no demo model in {folder} ({missing[0].name} is missing). Say where it is with --demo, "
                         "or sample a model of yours: --checkpoint FILE --prompts FILE.")  # fmt: skip
    return DemoDigits(folder), replace(files, weak=files.weak if files.weak.exists() else None), {"size": (128, 128)}

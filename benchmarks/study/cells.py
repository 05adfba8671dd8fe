"""Cells, one setting each, sampled and measured once; what is in the results is not sampled again.

The fleet's pool does them: in this process, or by workers that have a study each (worker.py)."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...fleet import cells as units
from ...fleet.pool import Pool
from ...fleet.store import Store
from ...tools.console import Failure
from .measured import features_of, measured
from .methods import ALL, METHODS, NONE, REAL, Method, best_pair, none, pair
from .rig import Sampled
from .suites import Reference, Suite

CHOOSE_SEED = 0
KINDS = {"study": "pack.benchmarks.study.worker:Cells"}


@dataclass(frozen=True)
class Cell:
    """One setting, sampled for one set of prompts and noise."""

    stage: str  # "choose", "report", or "sample" where there is no judge to choose by
    method: Method
    strength: float
    seed: int
    count: int  # of pictures

    def key(self, common: dict, files: str, layers: str) -> dict:
        """All that its result depends on, as it stands in the results."""
        return {
            "stage": self.stage, "method": self.method.name, "word": self.method.word, "strength": self.strength,
            "seed": self.seed, "n": self.count, "settings": self.method.settings.format(layers=layers),
            "files": files, **common,
        }  # fmt: skip


REAL_PICTURES = Method(REAL, "", (0.0,), (0.0,), none, adds=False)


def cell_of(about: Mapping) -> Cell:
    """The cell in a unit of the fleet's work."""
    known = {method.name: method for method in (*ALL, REAL_PICTURES)}
    parts = about["method"].get("parts")
    if parts:
        (one, first), (other, second) = parts
        method = pair(known[one], first, known[other], second)
    else:
        method = known[about["method"]["name"]]
    return Cell(about["stage"], method, about["strength"], about["seed"], about["count"])


def name_of(key: dict) -> str:
    return hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=8).hexdigest()


class Results:
    """The file of JSON lines, and the features of the pictures beside it."""

    def __init__(self, path: Path, arrays: Path):
        self.path, self.arrays = path, arrays
        self.run: str | None = None
        known = read_records(path)
        self.records = {record["id"]: record for record in known if record["kind"] == "cell"}
        self.comparisons = {record["id"]: record for record in known if record["kind"] == "comparison"}

    def forget(self, methods: Sequence[str] = ()) -> list[str]:
        """All is sampled again, or what is of some methods or was compared with them; those of them that have nothing."""
        known = [*self.records.values(), *self.comparisons.values()]
        found = {record["id"]: {record["key"]["method"], record["key"].get("than")} for record in known}
        stale = {name for name, about in found.items() if not methods or about & {*methods}}
        for path in self.arrays.glob("*.npz"):
            if not methods or path.stem in stale:
                path.unlink()
        kept = [record for record in read_records(self.path) if record["id"] not in stale]
        runs = {record.get("run") for record in kept}
        kept = [record for record in kept if record["kind"] != "run" or record["id"] in runs]
        if self.path.exists():
            self.path.write_bytes(b"".join(map(line_of, kept)))
        self.records = {name: record for name, record in self.records.items() if name not in stale}
        self.comparisons = {name: record for name, record in self.comparisons.items() if name not in stale}
        return [method for method in methods if not any(method in about for about in found.values())]

    def begin(self, run: dict) -> None:
        """A new run; its line is written with its first cell, so that a run that finds all done leaves no trace."""
        self._run = {"kind": "run", "id": name_of(run), **run}

    def add(self, key: dict, result: dict) -> dict:
        """A finished cell, whose features were kept before."""
        record = self._append({"kind": "cell", "id": name_of(key), "key": key, **result})
        self.records[record["id"]] = record
        return record

    def compare(self, key: dict, result: dict) -> None:
        """How a cell differs from another of the same prompts and noise."""
        record = self._append({"kind": "comparison", "id": name_of(key), "key": key, **result})
        self.comparisons[record["id"]] = record

    def keep(self, key: dict, found: dict[str, np.ndarray]) -> None:
        self.arrays.mkdir(parents=True, exist_ok=True)
        path = self.arrays / f"{name_of(key)}.npz"
        part = path.with_suffix(".part.npz")
        np.savez_compressed(part, **found)
        os.replace(part, path)

    def found(self, key: dict) -> dict[str, np.ndarray] | None:
        path = self.arrays / f"{name_of(key)}.npz"
        return dict(np.load(path)) if path.exists() else None

    def _append(self, record: dict) -> dict:
        if self.run is None:
            self.run = self._run["id"]
            self._write(self._run)
        record["run"] = self.run
        self._write(record)
        return record

    def _write(self, record: dict) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = self.path.read_bytes() if self.path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]  # without a line that a killed run has left unfinished
        with self.path.open("r+b" if text else "wb") as file:
            file.seek(len(whole))
            file.truncate()
            file.write(line_of(record))
            file.flush()
            os.fsync(file.fileno())


def line_of(record: dict) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def read_records(path: Path) -> list[dict]:
    """What is in the file; an unfinished last line is not."""
    text = path.read_text("utf-8") if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


class Kept(Store):
    """The results, as the fleet sees them."""

    def __init__(self, results: Results):
        super().__init__(results.path.parent)
        self.results = results

    def done(self, cell: units.Cell) -> units.Result | None:
        """The record of a cell as the only value of a result; None where there is none."""
        record = self.results.records.get(name_of(cell.work["key"]))
        return units.Result({RECORD: json.dumps(record)}) if record else None

    def keep(self, cell: units.Cell, result: units.Result) -> None:
        """Write the record. Raises OSError."""
        self.results.add(cell.work["key"], json.loads(str(result.values[RECORD])))


RECORD = "record"  # the value of a result that holds all measures, as JSON
reference_of = functools.cache(Reference)
HERE: dict[str, Study] = {}  # those of this process, by how they are made


class Study:
    """Samples and measures cells, those only that are not in the results.

    pool: who does the cells; this process without one. made: how a worker makes the same study (worker.py)."""

    def __init__(
        self,
        rig,
        suite: Suite,
        results: Results,
        common: dict,
        draws: int,
        progress=None,
        pool: Pool | None = None,
        made: dict | None = None,
    ):
        self.rig, self.suite, self.results, self.common = rig, suite, results, common  # common to the keys of all cells
        self.per_prompt, self.draws = common["per_prompt"], draws
        self.now: dict[tuple, dict] = {}  # features without guidance, by seed and count, of this process
        self.pool = pool or Pool((), progress=progress, tries=1, kinds=KINDS)
        self.made = made or {"here": id(self)}
        HERE[name_of(self.made)] = self

    @functools.cached_property
    def reference(self) -> Reference | None:
        return reference_of(self.suite) if self.suite.judged else None

    def key(self, cell: Cell) -> dict:
        return cell.key(self.common, self.rig.names(cell.method.needs), self.rig.layers)

    def record(self, cell: Cell) -> dict | None:
        return self.results.records.get(name_of(self.key(cell)))

    def do(self, cell: Cell) -> dict:
        """The cell's record, sampled if there is none."""
        if self.record(cell) is None:
            self._work([cell])
        return self.results.records[name_of(self.key(cell))]

    def _work(self, cells: Sequence[Cell]) -> None:
        """Raises Failure where a cell has failed, when all others are done."""
        self.pool.store = Kept(self.results)
        without = [cell for cell in cells if cell.method.name == NONE]  # which the others are compared with
        others = [cell for cell in cells if cell.method.name != NONE]
        failed = []
        with self.pool.entered() as pool:
            for wave in (without, others) if pool.size > 1 else (cells,):
                failed += pool.work([self.unit(cell) for cell in wave])
        if failed:
            reasons = "\n".join(dict.fromkeys(one.reason for one in failed))
            raise Failure(
                f"{reasons}\n{len(failed)} of {len(cells)} cells have failed; the same command tries them again."
            )

    def unit(self, cell: Cell) -> units.Cell:
        """The cell for the fleet."""
        method = {"parts": cell.method.parts} if cell.method.parts else {"name": cell.method.name}
        about = {
            "stage": cell.stage,
            "method": method,
            "strength": cell.strength,
            "seed": cell.seed,
            "count": cell.count,
        }
        shown = {"stage": cell.stage, "method": cell.method.name, "strength": cell.strength, "seed": cell.seed}
        work = {"key": self.key(cell), "cell": about, "study": self.made, "layers": self.rig.layers}
        return units.Cell("study", json.loads(json.dumps(work)), shown)

    def measure(self, cell: Cell) -> dict:
        """Sample a cell and keep its features; what goes into its record."""
        base = None if cell.method.name in (NONE, REAL) else self._without_guidance(cell)
        sampled, found = self._sample(cell)
        cost = {
            "forwards_per_step": round(sampled.forwards, 4), "rows_per_step": round(sampled.rows, 4),
            "cpu_seconds": round(sampled.cpu_seconds, 3), "wall_seconds": round(sampled.wall_seconds, 3),
            "cpu_ms_per_picture": round(1000 * sampled.cpu_seconds / cell.count, 3),
        }  # fmt: skip
        result = measured(found, self._groups(cell), self.reference, base, self.draws)
        self.results.keep(self.key(cell), found)
        return {**cost, **result}

    def _without_guidance(self, cell: Cell) -> dict[str, np.ndarray]:
        """The same prompts and noise without guidance: from beside the results, else sampled again."""
        same = replace(cell, method=METHODS[0], strength=0.0)
        place = (same.stage, same.seed, same.count)
        if place not in self.now:
            self.now[place] = self._features(same)
        return self.now[place]

    def _features(self, cell: Cell) -> dict[str, np.ndarray]:
        """What is measured of the cell's pictures: from beside the results, else sampled again."""
        found = self.results.found(self.key(cell))
        if found is None:
            found = self._sample(cell)[1]
            self.results.keep(self.key(cell), found)
        return found

    def _compare(self, one: Cell, other: Cell) -> None:
        names = {"method": one.method.name, "than": other.method.name, "seed": one.seed, "n": one.count}
        key = {**names, "cells": [name_of(self.key(cell)) for cell in (one, other)]}
        if name_of(key) not in self.results.comparisons:
            found, base = self._features(one), self._features(other)
            result = measured(found, self._groups(one), self.reference, base, self.draws)
            self.results.compare(key, {"differences": result["against_none"]})

    def _groups(self, cell: Cell) -> np.ndarray:
        """Of each picture the number of its prompt."""
        return np.arange(cell.count) // (1 if cell.method.name == REAL else self.per_prompt)

    def _sample(self, cell: Cell) -> tuple[Sampled, dict[str, np.ndarray]]:
        if cell.method.name == REAL:
            pictures, prompts = self.suite.real(cell.count, cell.seed)
            sampled = Sampled(pictures)
        else:
            different = self.suite.prompts(-(-cell.count // self.per_prompt), cell.seed)
            prompts = [different[at // self.per_prompt] for at in range(cell.count)]
            sampled = self.rig.sample(cell.method, cell.strength, prompts, cell.seed)
        return sampled, features_of(sampled, prompts, self.reference)

    def run(self, methods: Sequence[Method], choose: int, report: int, seeds: Sequence[int], tried: Callable) -> None:
        """Every method, and the best pair of them; without seeds to report, only the strengths of each method. tried:
        method → the strengths to try."""
        if not self.suite.judged:
            self._work([Cell("sample", m, at, seed, report) for seed in seeds for m in methods for at in tried(m)])
            return
        tries = {m: [Cell("choose", m, at, CHOOSE_SEED, choose) for at in tried(m)] for m in methods}
        self._work([cell for cells in tries.values() for cell in cells])
        if not seeds:
            return
        chosen = {m: best for m, cells in tries.items() if (best := self.chosen(cells))}
        if both := best_pair(chosen):
            tries[both] = [Cell("choose", both, at, CHOOSE_SEED, choose) for at in tried(both)]
            self._work(tries[both])
            chosen[both] = self.chosen(tries[both])
        strengths = {REAL_PICTURES: 0.0, **{m: chosen[m][0] if m in chosen else tried(m)[0] for m in tries}}
        self._work([Cell("report", m, at, seed, report) for seed in seeds for m, at in strengths.items()])
        reported = {m.name: (m, at) for m, at in strengths.items()}
        for name, (method, _) in reported.items():
            for other in (one for one in method.made_of if one in reported):
                for seed in seeds:
                    self._compare(*(Cell("report", *reported[each], seed, report) for each in (name, other)))

    def chosen(self, cells: list[Cell]) -> tuple[float, float] | None:
        """(the strength of least Fréchet distance, that distance)"""
        found = [(self.do(cell)["values"].get("fd", [np.nan])[0], cell.strength) for cell in cells]
        found = [one for one in found if not np.isnan(one[0])]
        return (min(found)[1], min(found)[0]) if found else None

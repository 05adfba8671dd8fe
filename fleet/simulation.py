"""What the fleet itself costs: many tiny workers on this machine, whose cells do nothing; and real work by more workers."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..tools.console import Failure
from ..tools.places import ROOT
from .cells import Cell, Failed, Result
from .kinds.base import Worker
from .pool import Pool, Post
from .sweeps import loaded

RESULTS = ROOT / "benchmarks/results"
PEAK_UNITS = 1 << (20 if sys.platform == "darwin" else 10)  # of the peak of memory that the system tells, in one MB
CPUS = 0.001  # of a tiny worker, so that Ray places a thousand of them on two cores


class Crowd(Pool):
    """A pool whose workers share few processes, as threads of them: a thousand processes are more than a machine holds."""

    def __init__(self, *given, processes: int):
        super().__init__(*given)
        self.processes = processes

    def _hire(self, post: Post) -> None:
        at = self._posts.index(post)
        if at < self.processes:
            super()._hire(post, max_concurrency=-(-len(self._posts) // self.processes))
        else:
            post.actor = self._posts[at % self.processes].actor

    def _start_again(self, run, post: Post, why: str, dead: bool):  # noqa: ARG002  others share its process
        raise Failure(f"{post.name} of the simulation has failed: {why}")


def one(workers: int, cells_each: int, seconds: float, processes: int) -> dict:
    """One run with so many workers: its times, in seconds, and the memory of this process, in MB. Not on Windows."""
    import resource

    cells = [Cell("sleep", {"seconds": seconds, "values": {"at": at}}) for at in range(workers * cells_each)]
    found = [Worker(f"worker {at + 1}", cpus=CPUS) for at in range(workers)]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, Crowd(found, folder, processes=processes) as pool:
        pool.work([Cell("echo", {"values": {"warm": at}}) for at in range(workers)])
        up = time.perf_counter()
        failed = pool.work(cells)
        done = time.perf_counter()
    overhead = 1000 * (done - up - seconds * cells_each) / len(cells)
    return {
        "workers": workers, "processes": min(workers, processes), "cells": len(cells), "failed": len(failed),
        "start_seconds": round(up - start, 2), "run_seconds": round(done - up, 2),
        "overhead_ms_per_cell": round(overhead, 3),
        "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / PEAK_UNITS, 1),
    }  # fmt: skip


def simulated(counts: Sequence[int], cells_each: int, seconds: float, processes: int) -> list[Path]:
    """Run each count, and write the table; where it is."""
    runs = []
    for workers in counts:
        runs.append(one(workers, cells_each, seconds, processes))
        print(json.dumps(runs[-1]), flush=True)
    options = (
        f"--workers {','.join(map(str, counts))} --cells {cells_each} --seconds {seconds:g} --processes {processes}"
    )
    said = (
        "The cells do nothing; each is written to the disk and synced. Where there are more workers than processes, they "
        "are threads of those."
    )
    header = [
        "workers",
        "processes",
        "cells",
        "failed",
        "start, s",
        "run, s",
        "overhead per cell, ms",
        "memory of the head, MB",
    ]
    return _written("fleet", "What scheduling costs", options, said, header, runs)


def worked(file: Path, counts: Sequence[int], cells: int, workers_of: Callable[[int], Sequence[Worker]]) -> list[Path]:
    """Do a workflow with so many seeds by each count of workers, after a cell for each of them, which loads the models.
    The table has whether the pictures are the same, bit for bit; where it is. Raises Failure."""
    runs, first, first_seconds = [], None, 0.0
    for count in counts:
        before, work = (loaded(file, (), range(at, at + many)) for at, many in ((cells, count), (0, cells)))
        with tempfile.TemporaryDirectory() as folder, Pool(workers_of(count), folder) as pool:
            if failed := pool.work(before):
                raise Failure(f"{file} cannot be run: {failed[0].reason}")
            start = time.perf_counter()
            results = pool.run(work)
            seconds = time.perf_counter() - start
        found = [(one.values, one.pictures) if isinstance(one, Result) else one.reason for one in results]
        first = found if first is None else first
        first_seconds = first_seconds or seconds
        failed = [one for one in results if isinstance(one, Failed)]
        runs.append({
            "workers": count, "cells": cells, "failed": len(failed),
            "run_seconds": round(seconds, 2), "cells_per_second": round(cells / seconds, 3),
            "throughput": round(first_seconds / seconds, 2), "same": "yes" if found == first and not failed else "no",
        })  # fmt: skip
        print(json.dumps(runs[-1]), flush=True)
    options = f"--workflow {file} --workers {','.join(map(str, counts))} --cells {cells}"
    said = "Each worker is a ComfyUI on one core; the times begin when all have loaded the models."
    header = [
        "workers",
        "cells",
        "failed",
        "run, s",
        "cells per second",
        "of the first row",
        "the same pictures, bit for bit",
    ]
    return _written("fleet_work", "What more workers bring", options, said, header, runs)


def _written(name: str, title: str, options: str, said: str, header: Sequence[str], runs: Sequence[dict]) -> list[Path]:
    """The table as JSON and as a page; where they are."""
    import ray

    load = round(os.getloadavg()[0], 1)
    about = {
        "command": f"python dev.py fleet simulate {options}",
        "machine": f"{platform.machine()} {os.cpu_count()} cores, load {load} at the end", "ray": ray.__version__,
        "python": platform.python_version(), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "runs": runs,
    }  # fmt: skip
    lines = [
        f"# {title}", "",
        f"`{about['command']}` ({about['machine']}, Ray {about['ray']}). {said}", "",
        "| " + " | ".join(header) + " |",
        "|" + "---:|" * len(header),
        *("| " + " | ".join(str(value) for value in run.values()) + " |" for run in runs),
    ]  # fmt: skip
    paths = [RESULTS / f"{name}.json", RESULTS / f"{name}.md"]
    paths[0].write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    paths[1].write_text("\n".join(lines) + "\n", "utf-8")
    return paths

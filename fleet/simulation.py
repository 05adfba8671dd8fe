"""What scheduling costs: many tiny workers on this machine, whose cells do nothing."""

from __future__ import annotations

import json
import os
import platform
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ..tools.places import ROOT
from .cells import Cell
from .kinds.base import Worker
from .pool import Pool

RESULTS = ROOT / "benchmarks/results"
CPUS = 0.001  # of a tiny worker, so that Ray places a thousand of them on two cores


def one(workers: int, cells_each: int, seconds: float) -> dict:
    """One run with so many workers: its times, in seconds, and the memory of this process, in MB."""
    cells = [Cell("sleep", {"seconds": seconds, "values": {"at": at}}) for at in range(workers * cells_each)]
    found = [Worker(f"worker {at + 1}", cpus=CPUS) for at in range(workers)]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, Pool(found, folder) as pool:
        pool.work([Cell("echo", {"values": {"warm": at}}) for at in range(workers)])
        up = time.perf_counter()
        failed = pool.work(cells)
        done = time.perf_counter()
    overhead = 1000 * (done - up - seconds * cells_each) / len(cells)
    return {
        "workers": workers, "cells": len(cells), "failed": len(failed), "start_seconds": round(up - start, 2),
        "run_seconds": round(done - up, 2), "overhead_ms_per_cell": round(overhead, 3),
        "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }  # fmt: skip


def simulated(counts: Sequence[int], cells_each: int, seconds: float) -> list[Path]:
    """Run each count, and write the table; where it is."""
    import ray

    runs = []
    for workers in counts:
        runs.append(one(workers, cells_each, seconds))
        print(json.dumps(runs[-1]), flush=True)
    load = round(os.getloadavg()[0], 1)
    options = f"--workers {','.join(map(str, counts))} --cells {cells_each} --seconds {seconds:g}"
    about = {
        "command": f"python dev.py fleet simulate {options}",
        "machine": f"{platform.machine()} {os.cpu_count()} cores, load {load} at the end", "ray": ray.__version__,
        "python": platform.python_version(), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "runs": runs,
    }  # fmt: skip
    lines = [
        "# What scheduling costs", "",
        f"`{about['command']}` ({about['machine']}, Ray {about['ray']}). The cells do nothing; each is written to "
        "the disk and synced.", "",
        "| workers | cells | failed | start, s | run, s | overhead per cell, ms | memory of the head, MB |",
        "|---:|---:|---:|---:|---:|---:|---:|",
        *("| " + " | ".join(str(value) for value in run.values()) + " |" for run in runs),
    ]  # fmt: skip
    paths = [RESULTS / "fleet.json", RESULTS / "fleet.md"]
    paths[0].write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    paths[1].write_text("\n".join(lines) + "\n", "utf-8")
    return paths

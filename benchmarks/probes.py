"""What it costs to look into a network: the probes that find the layers of one without a row, and that which checks a row.

    python dev.py benchmark probes [--runs N]

Counted: floating-point operations of the probes on networks of full size, without weights (meta tensors), over those of a
run of PAG without CFG. Measured: the time of a first run over that of later ones, on networks of the same kind with random
weights, at reduced width. Written to benchmarks/results/probes.json and .md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import torch

from .cost import networks_of
from .provenance import facts_of_run
from .study.rig import start_host

RESULTS = Path(__file__).resolve().parent / "results/probes.json"
STEPS, SEED = 20, 0
COUNTED = ("Flux", "Lumina 2", "Wan 2.1 1.3B")
PAG = {"scale": 3.0, "layers": "0.5", "start_percent": 0.0, "end_percent": 1.0}
KNOWN, UNKNOWN = "with a row, checked", "without a row, layers found"


def counted(name: str, probes: list[int]) -> dict:
    """Shares of a run's operations that probes of so many rows each have; the last is the one that checks a row."""
    from ..patches import IdentityAttention
    from ..tests.host import full_size

    step = full_size.Step(name)
    run = STEPS * step.shared(False, IdentityAttention(step.layers("0.5")))
    rows = {count: step.forward((None,) * count, attention=False) for count in {*probes, 2}}
    return {"network": name, KNOWN: rows[2] / run, UNKNOWN: sum(rows[count] for count in probes) / run}


def measured(name: str, kind: str, make, latent: torch.Tensor, runs: int) -> tuple[dict, list[int]]:
    """(the time that a first run takes more than later ones, over that of a later one; rows of each probe)."""
    from ..patches import architectures
    from ..patches.host import probe
    from ..tests.host import harness

    line, rows = {"network": name}, []
    call = probe.Prober._forward

    def noted(self, change, put_back=True):
        rows.append(1 if change.alone else 2)
        return call(self, change, put_back)

    def seconds(model) -> float:
        start = time.perf_counter()
        harness.sample(model, kind, 1.0, latent=latent, steps=STEPS)
        return time.perf_counter() - start

    for case, find in ((KNOWN, architectures.find), (UNKNOWN, lambda network: None)):
        with mock.patch.object(architectures, "find", find), mock.patch.object(probe.Prober, "_forward", noted):
            shares = []
            for _ in range(runs):
                model = harness.TERM_NODES["BeyondCFGPAG"].execute(model=make(), **PAG)[0]
                rows.clear()
                first = seconds(model)
                of_first = [*rows]
                rows.clear()
                later = min(seconds(model), seconds(model))
                if rows:
                    raise RuntimeError("a later run has made a probe")
                shares.append(first / later - 1)
        line |= {case: statistics.median(shares), f"probes {case}": len(of_first), f"rows {case}": sum(of_first)}
    return line, of_first


def page(results: dict) -> str:
    """results/probes.md."""
    run = results["run"]

    def share(line: dict, case: str) -> str:
        return f"{100 * line[case]:.1f} %"

    lines = [
        "# What it costs to look into a network",
        "",
        f"`{run['command']}` at {run['commit']}, {run['host']}, {run['machine']}, torch {run['torch']}, "
        f"seed {run['seed']}.",
        "",
        f"Over a run of {STEPS} steps of PAG half way through the network, without CFG. Later runs of the same network, "
        "size and kinds of conditionings make no probe.",
        "",
        "## Counted",
        "",
        "Operations of the probes, in which no attention is computed, on networks of full size without weights.",
        "",
        f"| network | {KNOWN} | {UNKNOWN} |",
        "|---|---|---|",
        *(f"| {line['network']} | {share(line, KNOWN)} | {share(line, UNKNOWN)} |" for line in results["counted"]),
        "",
        "## Measured",
        "",
        f"Time that the first run takes more than the second, median of {results['runs']} fresh networks, and the probes. "
        "Small networks with random weights, CPU: hooks on the modules weigh more here than they would on large ones.",
        "",
        f"| network | {KNOWN} | probes (rows) | {UNKNOWN} | probes (rows) |",
        "|---|---|---|---|---|",
        *(
            f"| {line['network']} | {share(line, KNOWN)} | {line[f'probes {KNOWN}']} ({line[f'rows {KNOWN}']}) "
            f"| {share(line, UNKNOWN)} | {line[f'probes {UNKNOWN}']} ({line[f'rows {UNKNOWN}']}) |"
            for line in results["measured"]
        ),
    ]
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str]) -> int:
    """Count, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="fresh networks of each kind, for the median")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    host = start_host(None, threads=torch.get_num_threads())
    from ..tests.host import full_size

    lines, probes = [], []
    for name in ("Flux with 256 channels, 256 × 256", "Wan 2.1 with 256 channels, 128 × 128, 9 frames"):
        kind, _, latent = networks_of()[name]
        line, probes = measured(name, kind, lambda name=name: networks_of()[name][1], latent, options.runs)
        lines.append(line)
    with full_size.without_values():
        of_full_size = [counted(name, probes) for name in COUNTED]
    run = facts_of_run("probes", arguments, host=f"ComfyUI {host}", seed=SEED)
    results = {"run": run, "runs": options.runs, "counted": of_full_size, "measured": lines}
    options.results.write_text(json.dumps(results, indent=1), "utf-8")
    options.results.with_suffix(".md").write_text(page(results), "utf-8")
    print(page(results))
    return 0

"""What a guidance costs in model calls in which it does not act: time with PAG whose schedule is 0, over time without.

    python dev.py benchmark overhead [--pairs N]

Small networks of the host's own classes with random weights, so that what is ours is as large a part as it can be; runs
of 8 steps, in turn, and the ratio of each pair.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch

from .study.rig import start_host

PAIRS, STEPS, SEED = 30, 8, 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=PAIRS)
    pairs = parser.parse_args(arguments).pairs
    start_host(None, threads=torch.get_num_threads())
    from ..guiders.host import KEY, add_term
    from ..guiders.schedule import Curve, Schedule
    from ..tests.host import harness, networks

    print(f"network   a call without   ratio: median (quartiles) of {pairs} pairs, seed {SEED}")
    for kind in ("unet", "sd3", "flux"):
        model, latent = getattr(networks, kind)(seed=SEED), networks.latent(kind, 2, 32, 32)
        (term,) = harness.pag(model).model_options[KEY]
        idle = add_term(model, replace(term, schedule=Schedule(curve=Curve(((0.0, 0.0),)))))

        def seconds(model, kind=kind, latent=latent) -> float:
            start = time.perf_counter()
            harness.sample(model, kind, latent=latent, steps=STEPS)
            return time.perf_counter() - start

        seconds(model), seconds(idle)
        times = [(seconds(model), seconds(idle)) for _ in range(pairs)]
        low, middle, high = statistics.quantiles((ours / plain for plain, ours in times), n=4)
        call = statistics.median(plain for plain, _ in times) / STEPS * 1000
        print(f"{kind:8}  {call:8.1f} ms      {middle:.3f} ({low:.3f} to {high:.3f})")
    return 0

"""What a guidance costs in model calls in which it does not act: time with PAG whose schedule is 0, over time without.

    COMFYUI_PATH=… python benchmarks/overhead.py [--pairs N]

Small networks of the host's own classes with random weights, so that what is ours is as large a part as it can be; runs
of 8 steps, in turn, and the ratio of each pair.
"""

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAIRS, STEPS, SEED = 30, 8, 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=PAIRS)
    pairs = parser.parse_args(arguments).pairs
    sys.path.insert(0, str(ROOT / "tests"))
    import conftest  # noqa: F401  finds the pack and the host

    sys.path.insert(0, str(ROOT / "tests" / "host"))
    import harness
    import networks
    from pack.guiders.host import KEY, add_term
    from pack.guiders.schedule import Curve, Schedule

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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

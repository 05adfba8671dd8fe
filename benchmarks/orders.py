"""How the error of sampling falls with the number of steps, where guidance is computed in some of them alone.

    python dev.py benchmark orders

Every sampler of the host that draws no noise of its own, on Gaussians, whose denoiser is exact: CFG 2 of two widths.
The error is against the same sampler with REFERENCE steps that all compute. Seconds, on a CPU. Written to
benchmarks/results/orders.json and .md.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from .provenance import facts_of_run
from .study.report import table
from .study.rig import start_host

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results/orders.json"
STEPS, REFERENCE, CFG = (20, 40, 80), 1280, 2.0
POSITIVE, NEGATIVE = (0.3, 0.5), (0.0, 1.0)  # mean and width
HIGH, LOW = 10.0, 0.1  # σ of the first step and of the end: the last step to 0 is of first order for all
SAVINGS = {
    "every step": None,
    "every 2nd, linear": (2, "linear"),
    "every 3rd, linear": (3, "linear"),
    "every 2nd, held": (2, "held"),
}


def errors_of(sampler: str, seed: int = 7) -> dict[str, list[float]] | None:
    """The errors with each of STEPS, for each of SAVINGS; None for a sampler that draws noise, or ends nowhere."""
    import comfy.samplers

    from ..guiders import host
    from ..guiders.reuse import Reuse
    from ..tests.host.exact import condition, exact

    latent = torch.zeros(1, 4, 6, 5)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))

    def end(steps: int, saving, seed: int = seed) -> torch.Tensor:
        model = exact("eps")
        if saving:
            model = host.with_reuse(model, Reuse(every=saving[0], between=saving[1]))
        ends = HIGH ** (1 / 7), LOW ** (1 / 7)
        sigmas = torch.tensor([(ends[0] + at / steps * (ends[1] - ends[0])) ** 7 for at in range(steps + 1)])
        guider = host.make_guider(model, condition(POSITIVE), condition(NEGATIVE), CFG)
        chosen = comfy.samplers.sampler_object(sampler)
        return guider.sample(noise, latent, chosen, sigmas, disable_pbar=True, seed=seed).double()

    if not torch.equal(end(4, None), end(4, None, seed + 1)):
        return None
    true = end(REFERENCE, None)
    size = true.norm()
    return {
        name: [((end(steps, saving) - true).norm() / size).item() for steps in STEPS]
        for name, saving in SAVINGS.items()
    }


def order(errors: Sequence[float]) -> float:
    """The power of the number of steps that the error falls with, between the last two."""
    return math.log2(errors[-2] / errors[-1])


def page(results: dict) -> str:
    run = results["run"]
    rows = []
    for sampler, found in results["samplers"].items():
        each = [f"{found[name][1]:.1e} ({order(found[name]):.1f})" for name in SAVINGS]
        rows.append([sampler, *each])
    lines = [
        "# The error of sampling where guidance is computed in some steps alone",
        "",
        f"Made by `{run['command']}` at {run['time']}, commit {run['commit']}, {run['machine']}, {run['host']}.",
        "",
        f"Gaussians, whose denoiser is exact; CFG {CFG:g}; σ from {HIGH:g} to {LOW:g}. Relative error with {STEPS[1]} "
        f"steps, against the same sampler with {REFERENCE} steps that all compute. In brackets the order: the power of "
        f"the number of steps that it falls with, from {STEPS[1]} to {STEPS[2]}. A direction that goes on in a straight "
        "line has an error of second order, one that is held of first: a sampler keeps its own order up to that. Samplers "
        "that draw noise of their own are not here.",
        "",
        *table(["sampler", *SAVINGS], rows),
    ]
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE.json")
    parser.add_argument("--comfyui", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    host = start_host(options.comfyui, threads=1)
    import comfy.samplers

    left_out = {"dpm_adaptive", "dpm_fast", "ar_video"}  # choose their own steps, or want a video model
    names = [name for name in comfy.samplers.SAMPLER_NAMES if name not in left_out and not name.endswith("_cfg_pp")]
    results: dict = {"run": facts_of_run("orders", arguments, host=f"ComfyUI {host}"), "samplers": {}}
    for name in names:
        found = errors_of(name)
        if found is not None:
            results["samplers"][name] = found
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(results, indent=1), "utf-8")
    options.results.with_suffix(".md").write_text(page(results), "utf-8")
    return 0

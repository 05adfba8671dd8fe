"""What a guided step costs, by each guidance and by the host's own nodes.

    python dev.py benchmark cost [--pairs N]

Counted: floating-point operations of a step of networks of full size, without weights (meta tensors). Measured: time and
memory of sampling with the host, on networks of the same kind with random weights, of full depth where it says so, at
reduced width; times in turn, each over the same run without guidance. Written to benchmarks/results/cost.json and .md.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from .provenance import facts_of_run
from .study.rig import start_host

ROOT = Path(__file__).resolve().parent.parent

RESULTS, README = ROOT / "benchmarks/results/cost.json", ROOT / "README.md"
EVERY = 3  # of Guidance Reuse
STEPS, SEED, CFG = EVERY, 0, 4.0
REUSED = f", every {EVERY}rd step"
FORKS = {  # where each network's perturbations are in the count: PAG, SEG, Skip Layer; a UNet has no layer to skip
    "SD 1.5": ("middle", "output.3", None),
    "SDXL": ("middle", "output.0", None),
    "Flux": ("0.5", "0.6", "0.75"),
    "Lumina 2": ("0.5", "0.6", "0.75"),
    "Wan 2.1 1.3B": ("0.5", "0.6", "0.75"),
}


# ------------------------------------------------------------------------------------------------------------- counted


def counted(name: str) -> list[dict]:
    """Lines {"run", "rows", "forwards", "flops"} of one step of a network of full size."""
    from ..guiders.sliding_window import SlidingWindowGuidance
    from ..patches import BlurredQuery, FlippedValues, IdentityAttention, NormalizedAttention, SkippedLayer
    from ..tests.host import full_size

    step = full_size.Step(name)
    pag_at, seg_at, skip_at = FORKS[name]
    pag = IdentityAttention(step.layers(pag_at))
    all_three = [pag, BlurredQuery(step.layers(seg_at), -1.0)]
    all_three += [SkippedLayer(step.layers(skip_at))] if skip_at else []
    more = " + Skip Layer" if skip_at else ""

    def whole(cfg: bool, *perturbations) -> int:
        return step.forward((None,) * (2 if cfg else 1) + perturbations)

    one, two = whole(False), whole(True)
    windows, of_windows = step.windowed(SlidingWindowGuidance().branches()[0].windows)
    lines = [
        ("no guidance", 1, 1, one),
        ("CFG", 2, 1, two),
        ("PAG, the host's node", 2, 2, one + step.forward((pag,))),
        ("PAG, rows computed whole", 2, 1, whole(False, pag)),
        ("PAG", 2, 1, step.shared(False, pag)),
        ("CFG + PAG, the host's node", 3, 2, two + step.forward((pag,))),
        ("CFG + PAG, rows computed whole", 3, 1, whole(True, pag)),
        ("CFG + PAG", 3, 1, step.shared(True, pag)),
        (f"CFG + PAG + SEG{more}, rows computed whole", 2 + len(all_three), 1, whole(True, *all_three)),
        (f"CFG + PAG + SEG{more}", 2 + len(all_three), 1, step.shared(True, *all_three)),
        ("CFG + Autoguidance by a network of this size", 3, 2, two + one),
        ("SWG", 1 + windows, 2, one + of_windows),
        ("NAG", 1, 1, step.negative(NormalizedAttention)),
        ("VSF", 1, 1, step.negative(FlippedValues)),
    ]
    # Of as many steps as lie between two that compute, one does; the others evaluate the positive alone.
    for name in ("CFG", "CFG + PAG", f"CFG + PAG + SEG{more}", "CFG + Autoguidance by a network of this size"):
        _, rows, forwards, flops = next(line for line in lines if line[0] == name)
        of_period = ((each + (EVERY - 1) * plain) / EVERY for each, plain in ((rows, 1), (forwards, 1), (flops, one)))
        lines.append((name + REUSED, *of_period))
    return [dict(zip(("run", "rows", "forwards", "flops"), line, strict=True)) for line in lines]


# ------------------------------------------------------------------------------------------------------------ measured


def networks_of() -> dict[str, tuple[str, Callable, torch.Tensor]]:
    """Name → (kind, MODEL, latent): of full depth, narrow enough for a CPU."""
    import comfy.model_base
    import comfy.supported_models

    from ..tests.host import full_size, networks

    def made(name: str, **narrower):
        model_class, config_class, settings, _, _ = full_size.NETWORKS[name]
        config = getattr(comfy.supported_models, config_class)({**settings, **narrower})
        return networks.patcher(getattr(comfy.model_base, model_class), config, SEED)

    text = {"context_in_dim": networks.CONTEXT, "vec_in_dim": networks.POOLED}
    unet = made("SD 1.5", model_channels=64, context_dim=networks.CONTEXT)
    flux = made("Flux", hidden_size=256, num_heads=2, **text)
    wan = made("Wan 2.1 1.3B", dim=256, ffn_dim=1024, num_heads=2, text_dim=networks.CONTEXT)
    return {
        "SD 1.5 with 64 channels, 256 × 256": ("unet", unet, torch.zeros(1, 4, 32, 32)),
        "Flux with 256 channels, 256 × 256": ("flux", flux, torch.zeros(1, 16, 32, 32)),
        "Wan 2.1 with 256 channels, 128 × 128, 9 frames": ("wan", wan, torch.zeros(1, 16, 3, 16, 16)),
    }


def guided(kind: str, model) -> dict[str, tuple]:
    """Run → (MODEL, cfg)."""
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance
    from comfy_extras.nodes_sag import SelfAttentionGuidance

    from ..guiders.host import with_options, with_reuse
    from ..guiders.reuse import Reuse
    from ..tests.host import harness

    def ours(node: str, given, **settings):
        found = harness.TERM_NODES[f"BeyondCFG{node}"]
        defaults = {one.id: one.default for one in found.inputs if getattr(one, "default", None) is not None}
        return found.execute(**{**defaults, "model": given, **settings}).result[0]

    layers = "middle" if kind == "unet" else "0.5"
    pag = ours("PAG", model, layers=layers)
    three = ours("SEG", pag, layers="output.3" if kind == "unet" else "0.6")
    runs = {"no guidance": (model, 1.0), "CFG": (model, CFG)}
    if kind == "unet":
        runs["CFG + PAG, the host's node"] = (PerturbedAttentionGuidance.execute(model, 3.0).result[0], CFG)
        runs["CFG + SAG, the host's node"] = (SelfAttentionGuidance.execute(model, 0.5, 2.0).result[0], CFG)
    else:
        three = ours("SkipLayer", three, layers="0.75", start_percent=0.0, end_percent=1.0)
    runs["CFG + PAG, rows computed whole"] = (with_options(pag, "off"), CFG)
    runs["CFG + PAG"] = (pag, CFG)
    runs["CFG + PAG" + REUSED] = (with_reuse(pag, Reuse(every=EVERY)), CFG)
    runs["CFG + SAG"] = (ours("SAG", model, layers=layers), CFG)
    name = "CFG + PAG + SEG" + ("" if kind == "unet" else " + Skip Layer")
    runs[f"{name}, rows computed whole"] = (with_options(three, "off"), CFG)
    runs[name] = (three, CFG)
    runs["CFG + SWG"] = (ours("SlidingWindow", model, start_percent=0.0, end_percent=1.0), CFG)
    weak = model.clone()
    weak.model_options["transformer_options"] = {"weak": True}  # else it would be the main model, and say so
    runs["CFG + Autoguidance by itself"] = (ours("Autoguidance", model, weak_model=weak), CFG)
    return runs


def measured(kind: str, model, latent, pairs: int) -> list[dict]:
    """Lines {"run", "rows", "forwards", "time": [median, least, most], "memory"}: time and memory over no guidance's."""
    from ..tests.host import harness

    runs = guided(kind, model)

    def sample(model, cfg):
        harness.sample(model, kind, cfg=cfg, latent=latent, steps=STEPS)

    def seconds(run: str) -> float:
        start = time.process_time()
        sample(*runs[run])
        return time.process_time() - start

    def peak(run: str) -> int:
        """Most bytes of tensors at once that the run has made."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            sample(*runs[run])
        events = [one for one in profile.profiler.kineto_results.events() if one.name() == "[memory]"]
        held = most = 0
        for event in sorted(events, key=lambda one: one.start_ns()):
            held += event.nbytes()
            most = max(most, held)
        return most

    lines = []
    for run, (guided_model, cfg) in runs.items():
        counter = harness.Counter(guided_model)
        sample(counter.model, cfg)  # the first run of each also warms it up
        weak = STEPS if "Autoguidance" in run else 0  # whose network is another, and not counted
        lines.append({
            "run": run, "rows": (sum(counter.rows) + weak) / STEPS, "forwards": (len(counter.rows) + weak) / STEPS,
        })  # fmt: skip
    times = [{run: seconds(run) for run in runs} for _ in range(pairs)]
    base = peak("no guidance")
    for line in lines:
        ratios = [each[line["run"]] / each["no guidance"] for each in times]
        line["time"] = [statistics.median(ratios), min(ratios), max(ratios)]
        line["memory"] = peak(line["run"]) / base
    return lines


# ------------------------------------------------------------------------------------------------------------- the page


def page(results: dict) -> str:
    run = results["run"]
    parts = [
        "# What a guided step costs",
        f"Made by `{run['command']}` at {run['time']}, commit {run['commit']}, on {run['machine']}, {run['host']}, torch "
        f"{run['torch']}. Written by benchmarks/cost.py from cost.json.",
        "No GPU was at hand: no time of a GPU, of bf16 or of a compiled network is known.",
        "## Counted, networks of full size",
        "Floating-point operations of a step (torch's own counter), over those without guidance; in brackets over as many "
        "rows computed whole by a network that nothing perturbs. PAG is in the UNets' middle and half way through "
        "transformers; SEG, with blur_sigma -1, and Skip Layer later. *rows computed whole*: Guidance Options with sharing "
        f"off. *every {EVERY}rd step*: Guidance Reuse, the mean of the steps from one that computes to the next.",
    ]
    for name, lines in results["counted"].items():
        one = lines[0]["flops"]
        rows = []
        for line in lines:
            saved = "" if line["run"] in ("no guidance", "CFG") else f" ({line['flops'] / (line['rows'] * one):.3f})"
            rows.append(
                (
                    line["run"],
                    *(f"{line[each]:.3g}" for each in ("rows", "forwards")),
                    f"{line['flops'] / one:.3f}{saved}",
                )
            )
        parts += [f"### {name}: {one / 1e12:.2f} TFLOP without guidance", table(("", "rows", "forwards", "FLOP"), rows)]
    parts += [
        "## Measured, narrower networks",
        f"CPU time of {STEPS} steps of sampling, over that without guidance: median (least to most) of {results['pairs']} "
        "runs in turn; one sample, fp32, random weights, one thread of a machine that others used too. Memory: the most "
        "that a run holds beyond what was there, likewise.",
    ]
    for name, lines in results["measured"].items():
        rows = [
            (
                line["run"],
                *(f"{line[each]:.3g}" for each in ("rows", "forwards")),
                "{:.2f} ({:.2f} to {:.2f})".format(*line["time"]),
                f"{line['memory']:.2f}",
            )
            for line in lines
        ]
        parts += [f"### {name}", table(("", "rows", "forwards", "time", "memory"), rows)]
    return "\n\n".join(parts) + "\n"


SHOWN = {  # what the pack's README shows, and by which runs
    "CFG": ("CFG",),
    "NAG": ("NAG",),
    "PAG": ("PAG",),
    "CFG + PAG, the host's node": ("CFG + PAG, the host's node",),
    "CFG + PAG": ("CFG + PAG",),
    "CFG + PAG, every 3rd step": ("CFG + PAG" + REUSED,),
    "CFG + PAG + SEG + Skip Layer": ("CFG + PAG + SEG + Skip Layer", "CFG + PAG + SEG"),
    "CFG + Autoguidance": ("CFG + Autoguidance by a network of this size",),
}


def in_step(text: str, results: dict) -> str:
    """A README's text with the table of operations, over those without guidance, made again."""
    rows = []
    for title, runs in SHOWN.items():
        cells = []
        for lines in results["counted"].values():
            line = next(line for run in runs for line in lines if line["run"] == run)
            cells.append(f"{line['flops'] / lines[0]['flops']:.2f}")
        rows.append((title, *cells))
    made = table(("", *results["counted"]), rows)
    return re.sub(
        r"(<!-- cost -->\n).*?(<!-- /cost -->)", lambda mark: f"{mark[1]}{made}\n{mark[2]}", text, flags=re.DOTALL
    )


def table(head: Sequence[str], rows) -> str:
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (head, ["---"] * len(head), *rows))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="runs of each, in turn")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE.json")
    parser.add_argument("--comfyui", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    host = start_host(options.comfyui, threads=1)
    from ..tests.host import full_size

    results = {"run": facts_of_run("cost", arguments, host=f"ComfyUI {host}", seed=SEED), "pairs": options.pairs}
    with full_size.without_values():
        results["counted"] = {name: counted(name) for name in FORKS}
    results["measured"] = {name: measured(*given, options.pairs) for name, given in networks_of().items()}
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(results, indent=1), "utf-8")
    options.results.with_suffix(".md").write_text(page(results), "utf-8")
    if options.results == RESULTS:
        README.write_text(in_step(README.read_text("utf-8"), results), "utf-8")
    print(options.results, options.results.with_suffix(".md"), sep="\n")
    return 0

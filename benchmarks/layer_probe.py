"""Layer Probe against what is known: do its measures rank the layers as the measured Fréchet distances do?

    python dev.py benchmark layer_probe

The under-trained model of two digits, 40 prompts, 8 Euler steps. For PAG and SEG the probe measures each layer, and the
setting `layers` of the study knows the best distance of four strengths in each. The rank correlation of the two is
written for every measure, though the probe suggests by `ahead` alone. And the work of one probe is counted on networks
of full size, against the work of guiding each layer in a run of its own. Written to benchmarks/results/layer_probe.json
and .md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from .provenance import facts_of_run, named
from .rows import between, parsed
from .study.cells import read_records
from .study.command import ROOT, SETTINGS, demo_files
from .study.report import number, table
from .study.rig import EMPTY, Rig, start_host
from .study.suites import DemoDigits

RESULTS, README = ROOT / "benchmarks/results/layer_probe.json", ROOT / "benchmarks/README.md"
KNOWN = ROOT / "benchmarks/results/quality_layers.jsonl"
SETTING, STEPS, PICTURES, SEEDS = "layers", 8, 40, (0,)
GUIDANCES = ("PAG", "SEG")
MEASURES = ("moved", "fine", "ahead", "angle to CFG", "effective cfg")
NETWORKS = ("SDXL", "Flux")  # of full size, whose work is counted


def distances(guidance: str) -> dict[str, float]:
    """Layer → the least Fréchet distance of the strengths that the study has tried there."""
    found: dict[str, float] = {}
    for record in read_records(KNOWN):
        if record["kind"] == "cell" and record["key"]["method"] == guidance:
            layer, distance = record["key"]["settings"], record["values"]["fd"][0]
            found[layer] = min(distance, found.get(layer, distance))
    return found


def sampling_of(rig: Rig, steps: int, seed: int) -> Any:
    """How the probe samples: cfg 1, with the negative to measure its direction."""
    import comfy.samplers

    from ..guiders.host.distillation import Sampling

    sigmas = comfy.samplers.calculate_sigmas(rig.model.get_model_object("model_sampling"), "simple", STEPS)
    return Sampling(comfy.samplers.sampler_object("euler"), sigmas[: steps + 1], 1.0, rig.encode(EMPTY), seed)


def probed(rig: Rig, guidance: str, prompts: Sequence[list], steps: int = STEPS, seed: int = 0):
    """(the names of the rows, what was measured): every layer by itself, then auto."""
    from ..guiders.host.layer_probe import probe_layers
    from ..nodes.layer_probe import layers_of, single_layers
    from ..patches import PERTURBATIONS

    method = next(one for one in PERTURBATIONS if one.about.name == guidance)
    rows = [(str(layer), method(layers=(layer,))) for layer in single_layers(rig.model, method, "all")]
    rows += [("auto", method(layers=layers_of(rig.model, method, "auto")))]
    latent, sampling = torch.zeros(1, 4, 16, 16), sampling_of(rig, steps, seed)
    found = probe_layers(rig.model, prompts, latent, len(prompts), sampling, rows, "Layer Probe")
    return [name for name, _ in rows], found.measures


def costs(network: str) -> dict[str, float]:
    """Operations of a step of a network of full size, in parts of the model alone: of CFG with PAG in every layer at once,
    a row for each, and in each layer apart."""
    from ..patches import IdentityAttention
    from ..tests.host.full_size import Step, without_values

    with without_values():
        step = Step(network)
        each = [IdentityAttention((layer,)) for layer in step.layers("all")]
        alone = step.forward((None,))
        apart = sum(step.shared(True, one) for one in each)
        return {"layers": len(each), "together": step.shared(True, *each) / alone, "apart": apart / alone}


# --------------------------------------------------------------------------------------------------------- the page


def correlations(results: dict) -> list[str]:
    from scipy.stats import spearmanr

    rows = []
    for guidance, found in results["guidances"].items():
        layers = [line for line in found["layers"] if line["layer"] != "auto"]
        known = [line["fd"] for line in layers]
        shown = [number(float(spearmanr([line[name] for line in layers], known).statistic)) for name in MEASURES]
        rows.append([guidance, *shown])
    return table(["rank correlation with FD", *MEASURES], rows)


def summary(results: dict) -> list[str]:
    rows = []
    for guidance, found in results["guidances"].items():
        chosen = max((line for line in found["layers"] if line["layer"] != "auto"), key=lambda line: line["ahead"])
        by_distance = sorted(line["fd"] for line in found["layers"] if line["layer"] != "auto")
        best = min((line for line in found["layers"] if line["layer"] != "auto"), key=lambda line: line["fd"])
        place = f"{by_distance.index(chosen['fd']) + 1} of {len(by_distance)}"
        rows.append([guidance, chosen["layer"], place, best["layer"]])
    counted = [
        [network, str(cost["layers"]), f"{cost['together']:.1f}", f"{cost['apart']:.1f}", _times(cost)]
        for network, cost in results["costs"].items()
    ]
    return [
        *table(["", "furthest ahead", "its place by FD", "least FD"], rows),
        *correlations(results),
        *table(["work of a step", "layers", "one probe", "each layer apart", "times less"], counted),
    ]


def _times(cost: dict) -> str:
    return f"{cost['apart'] / cost['together']:.1f}"


def page(results: dict) -> str:
    """results/layer_probe.md."""
    run, lines = results["run"], []
    for guidance, found in results["guidances"].items():
        rows = [
            [line["layer"], number(line["fd"]), *(number(line[name]) for name in MEASURES)]
            for line in sorted(found["layers"], key=lambda line: line["fd"])
        ]
        lines += [f"## {guidance}", "", *table(["layer", "FD", *MEASURES], rows)]
    return (
        "\n".join(
            [
                "# Layer Probe and the measured distances",
                "",
                f"Made by `{run['command']}` at {run['time']}: commit {run['commit']}; {run['machine']}, {run['host']}, "
                f"torch {run['torch']}. Model {results['model']}; {results['pictures']} prompts, {STEPS} steps, "
                f"{results['compute']}; distances from "
                f"`results/{KNOWN.name}`, of 200 pictures, bf16.",
                "",
                "**Small model with seven layers, CPU, not tried on real weights.**",
                "",
                *summary(results),
                WORDS,
                "",
                *lines,
            ]
        ).rstrip()
        + "\n"
    )


WORDS = (
    "*FD*: the least of four strengths. *rank correlation*: Spearman's, over the layers; below 0, a larger measure goes "
    "with a smaller distance, which is better. *work of a step*: operations of the network at full size, counted, in parts "
    "of the model alone: CFG and PAG in all layers at once, a row for each, and CFG and PAG in each layer by itself."
)


def in_step(text: str, results: dict) -> str:
    """A README's text with the tables made again."""
    return between(text, "layer_probe", "\n".join([*summary(results), WORDS, ""]))


# ------------------------------------------------------------------------------------------------------- the command


def main(arguments: Sequence[str]) -> int:
    options = parsed(__doc__ or "", arguments, RESULTS, PICTURES, SEEDS, compute="fp32", least=1)
    host = start_host(options.comfyui, threads=1)
    run = facts_of_run("layer_probe", arguments, host=f"ComfyUI {host}")
    suite, files = DemoDigits(options.demo), demo_files(options.demo, SETTINGS[SETTING])
    rig = Rig(files, STEPS, "euler", "simple", 128, 128, 1, compute=options.compute, decode=suite.decode)
    prompts = [rig.encode(prompt.text) for prompt in suite.prompts(options.pictures, options.seeds[0])]
    same = {"pictures": options.pictures, "compute": options.compute}
    results: dict = {"run": run, "model": named(files.checkpoint), **same, "guidances": {}}
    for guidance in GUIDANCES:
        names, measures = probed(rig, guidance, prompts)
        known = distances(guidance)
        lines = [{"layer": name, "fd": known[name], **measures.line(at)} for at, name in enumerate(names)]
        results["guidances"][guidance] = {"layers": lines}
    results["costs"] = {network: costs(network) for network in NETWORKS}
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(results, indent=1), "utf-8")
    options.results.with_suffix(".md").write_text(page(results), "utf-8")
    if options.results == RESULTS:
        README.write_text(in_step(README.read_text("utf-8"), results), "utf-8")
    return 0

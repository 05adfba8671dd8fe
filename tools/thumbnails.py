"""Draw the thumbnails of the example workflows, their own output by the small demo model, and the pictures of help pages.

    python dev.py docs --pictures [NAME ...]

Runs workflows/api/NAME.json (all without names) on a host of its own and writes workflows/TITLE.jpg, and the same as the
picture of the nodes that it is about, web/docs/NODE.jpg. The demo model takes the place of the checkpoints, with its
prompts, 128 x 128 pixels and 12 Euler steps. Seeds and strengths below were chosen by eye on these very pictures; the
labels say what was set.
"""

from __future__ import annotations

import io
import json
import tempfile
import urllib.parse
from pathlib import Path

from . import examples, hosts, workflows
from .console import busy
from .places import MODELS, ROOT
from .server import running

WIDTH, WIDE = 400, 620  # of thumbnails, and at most of help pages' pictures
LARGEST = {WIDTH: 40_000, WIDE: 60_000}  # bytes
QUALITIES = (1, 85), (1, 65), (0.75, 70), (0.75, 50)  # share of the width, of JPEG: the first that is small enough
PROMPTS = {
    "Positive prompt": "red seven blue two",
    "Another prompt": "white four green nine",
    "And another": "yellow one red five",
}
MAIN, EARLY = "demo_flux.safetensors", "demo_flux_early.safetensors"
SNAPSHOTS = f"demo_flux_weak.safetensors @ 560\n{EARLY} @ 1400\n{MAIN} @ 5600"
SAMPLING = {"steps": 12, "sampler_name": "euler", "scheduler": "simple"}
SAME = {  # class_type, or title: what is set in every example
    "KSampler": SAMPLING,
    "KSamplerSelect": SAMPLING,
    "BasicScheduler": SAMPLING,
    "ImageFromBatch": {"batch_index": 0},
    "CLIPVisionLoader": {"clip_name": "random_clip.ckpt"},
    "Load CLIP: the labels": {"clip_name": "random_clip.ckpt"},
    "TrainLoraNode": {"steps": 60, "training_dtype": "fp32", "learning_rate": 0.002},
}
MIDDLE = {"start_percent": 0.2, "end_percent": 0.75}
AT = {"layers": "single.2"}
PERTURBED, SKIPPED = {"scale": 1, **AT}, {"scale": 1, **AT, "end_percent": 0.9}
AVERAGE = {"snapshots": SNAPSHOTS, "snapshot_ema": 0.05}
OWN = {"Load Checkpoint": {"unet_name": EARLY}, "BeyondCFGSIMS": {"scale": 1}}  # what it is trained on, EARLY has drawn
RED_SEVEN = {"classifier": "demo_left.safetensors", "label": "red seven", "scale": 8}
WITHOUT_BLUE = {"Positive prompt": {"text": "the seven the two"}, "Negative prompt": {"text": "blue the blue the"}}
EXAMPLES = {  # name: seed, cfg, labels of the columns, and by class_type or title what is set besides
    "autoguidance": (1, 1, ["Autoguidance 2", "no guidance"], {"BeyondCFGAutoguidanceGuider": {"weight": 2}}),
    "cfg": (9, 3, ["CFG 3", "no guidance"], {}),
    "cfg_interval_pag": (9, 2, ["CFG 2, 0.2 to 0.75 + PAG 1, single.2", "CFG 2 all the way"],
                         {"BeyondCFGInterval": MIDDLE, "BeyondCFGPAG": PERTURBED}),
    "cfg_interval_sdxl": (1, 8, ["CFG 8, 0.2 to 0.75", "CFG 8 all the way"], {"BeyondCFGInterval": MIDDLE}),
    "cfg_pag_seg_compose": (9, 1.5, ["CFG 1.5, 0.2 to 0.75 + PAG 1, fading + SEG 1, single.2, rescaled 0.7", "CFG 1.5"],
                            {"BeyondCFGInterval": MIDDLE, "BeyondCFGPAG": PERTURBED, "BeyondCFGSEG": PERTURBED}),
    "classifier_guidance": (1, 1, ["Classifier 300, a random CLIP", "no guidance"],
                            {"BeyondCFGClassifier": {"scale": 300}}),
    "degraded_autoguidance": (7, 1, ["Autoguidance 3 (dropout 0.2)", "no guidance"],
                              {"BeyondCFGAutoguidance": {"weight": 3}, "BeyondCFGDegradedModel": {"amount": 0.2}}),
    "distil": (9, 1.5, ["the LoRA, cfg 1", "CFG 1.5 + PAG 1, single.2"],
               {"BeyondCFGPAG": PERTURBED, "KSampler: the LoRA alone": {"cfg": 1},
                "BeyondCFGDistil": {"cfg": 1.5, "pictures": 30, "iterations": 300, "learning_rate": 0.002}}),
    "easy_app": (7, 1, ["shapes and anatomy, 0.2", "no guidance"], {"BeyondCFGGuidance": {"strength": 0.2}}),
    "easy_sdxl": (1, 1, ["shapes and anatomy, 0.2", "no guidance"], {"BeyondCFGGuidance": {"strength": 0.2}}),
    "guidance_report": (1, 1.5, [], {"BeyondCFGPAG": PERTURBED}),
    "high_cfg": (7, 6, ["CFG 6, Adaptive Projected", "CFG 6, Rescale 0.7", "CFG 6"],
                 {"BeyondCFGAdaptiveProjected": {"norm_threshold": 0, "momentum": 0}}),
    "icg_guider": (9, 1, ["ICG 2, prompts", "no guidance"], {"BeyondCFGICGGuider": {"weight": 2, "conditions": "prompts"}}),
    "layer_map": (1, 1, [], {"BeyondCFGLayerMap": {"layers": "single.2-3", "width": 128, "height": 128}}),
    "layer_probe": (1, 1, [], {"BeyondCFGLayerProbe": {"scale": 1, "pictures": 4, "keep": False}}),
    "masked_attention": (5, 1, ["Masked Attention 6, single.2", "no guidance"],
                         {"BeyondCFGMaskedAttention": {**AT, "scale": 6}}),
    "negative_flux": (7, 1, ["NAG 3, without blue", "no guidance"], {"BeyondCFGNAG": {"scale": 3}, **WITHOUT_BLUE}),
    "negative_turbo": (5, 1, ["NAG 3, without blue", "no guidance"], {"BeyondCFGNAG": {"scale": 3}, **WITHOUT_BLUE}),
    "negative_wan": (3, 1, ["NAG 3, without blue", "no guidance"], {"BeyondCFGNAG": {"scale": 3}, **WITHOUT_BLUE}),
    "noisy_classifier": (9, 1, ["Classifier 8, red seven", "no guidance"], {"BeyondCFGNoisyClassifier": RED_SEVEN}),
    "pag_flux": (9, 1, ["PAG 1, single.2", "no guidance"], {"BeyondCFGPAG": PERTURBED}),
    "pag_guider": (7, 1, ["PAG 1, single.2", "no guidance"], {"BeyondCFGPAGGuider": PERTURBED}),
    "pag_ksampler": (1, 1, ["PAG 1, single.2", "no guidance"], {"BeyondCFGPAG": PERTURBED}),
    "pag_sdxl": (5, 1, ["PAG 1, single.2", "no guidance"], {"BeyondCFGPAG": PERTURBED}),
    "post_hoc_ema": (7, 1, ["Autoguidance 4, EMA 0.25", "no guidance"],
                     {"BeyondCFGAutoguidance": {"weight": 4}, "Post-hoc EMA: main model": {**AVERAGE, "ema": 0.1},
                      "Post-hoc EMA: weak model": {**AVERAGE, "ema": 0.25}}),
    "region_sdxl": (1, 1, ["PAG 1, single.2, right half", "no guidance"], {"BeyondCFGPAG": PERTURBED}),
    "reuse_sdxl": (5, 1.5, ["every 3rd step", "every step"], {"BeyondCFGPAG": PERTURBED}),
    "sag_guider": (7, 1, ["SAG 1", "no guidance"], {"BeyondCFGSAGGuider": {"scale": 1}}),
    "seg_ksampler": (9, 1, ["SEG 2, single.2", "no guidance"], {"BeyondCFGSEG": {**AT, "scale": 2}}),
    "sims_lora": (5, 1, ["SIMS 2", "no guidance"],
                  {**OWN, "BeyondCFGSIMS": {"scale": 2},
                   "LoraLoaderModelOnly": {"lora_name": "demo_own_pictures_lora.safetensors"}}),
    "sims_training": (7, 1, ["SIMS 1, 60 steps", "no guidance"], OWN),
    "skip_layer_sd3": (1, 1, ["Skip Layer 1, single.2, to 0.9", "no guidance"], {"BeyondCFGSkipLayer": SKIPPED}),
    "skip_layer_wan": (7, 1, ["Skip Layer 1, single.2, to 0.9", "no guidance"], {"BeyondCFGSkipLayer": SKIPPED}),
    "sweep_sdxl": (1, 1, [], {"BeyondCFGPAG": AT, "BeyondCFGSweep": {"values": "0, 0.5, 1, 2"}}),
    "swg_sdxl": (1, 1, ["SWG 1", "no guidance"], {"BeyondCFGSlidingWindow": {"scale": 1, "end_percent": 1}}),
    "tsg": (9, 1, ["TSG 2, noise 0.5", "no guidance"], {"BeyondCFGTSG": {"weight": 2, "noise": 0.5}}),
}  # fmt: skip

SHOWN = {  # example: the title of the node whose picture it is, where that is not Guidance Grid
    "guidance_report": "Guidance Report", "layer_map": "Layer Map: a choice", "layer_probe": "Which Layers? (Layer Probe)",
    "sweep_sdxl": "Guidance Sweep",
}  # fmt: skip
SHOWS = {  # example: the nodes, without BeyondCFG, whose help page it illustrates
    "autoguidance": ("Autoguidance", "AutoguidanceGuider"), "cfg": ("Guider",), "cfg_interval_sdxl": ("Interval",),
    "classifier_guidance": ("Classifier",), "degraded_autoguidance": ("DegradedModel",),
    "distil": ("Distil",), "easy_sdxl": ("Guidance",),
    "guidance_report": ("Recorder", "Report"), "high_cfg": ("AdaptiveProjected", "Rescale"),
    "icg_guider": ("ICG", "ICGGuider"), "layer_map": ("LayerMap",), "layer_probe": ("LayerProbe",),
    "masked_attention": ("MaskedAttention",),
    "negative_flux": ("NAG",), "noisy_classifier": ("NoisyClassifier",),
    "pag_guider": ("PAGGuider",), "pag_ksampler": ("PAG",),
    "post_hoc_ema": ("PostHocEMA",), "reuse_sdxl": ("Reuse",), "sag_guider": ("SAG", "SAGGuider"),
    "seg_ksampler": ("SEG", "SEGGuider"), "sims_lora": ("SIMS",), "skip_layer_sd3": ("SkipLayer",),
    "sweep_sdxl": ("Grid", "Sweep"), "swg_sdxl": ("SlidingWindow",), "tsg": ("TSG",),
}  # fmt: skip
SCHEDULE = {
    "curve_type": "points",
    "points": "0: 0, 0.3: 1, 0.6: 0",
    "start": 1,
    "end": 0,
    "power": 2,
    "over": "percent",
}


def title_of(node: dict) -> str:
    return node.get("_meta", {}).get("title", "")


def on_demo_model(workflow: dict) -> dict:
    """The same with the demo's three loaders in place of its own, its prompts, and the smallest pictures."""
    texts = {"class_type": "CLIPLoader", "inputs": {"clip_name": "demo_text.ckpt", "type": "stable_diffusion"}}
    demo = {"demo text": texts, "demo vae": {"class_type": "VAELoader", "inputs": {"vae_name": "demo_vae.ckpt"}}}
    instead = {}  # (node, output): the output that takes its place
    for key, node in workflow.items():
        kind, inputs = node["class_type"], node["inputs"]
        if kind in ("CheckpointLoaderSimple", "UNETLoader"):
            name = EARLY if title_of(node).startswith("Weak") else MAIN
            demo[key] = {**node, "class_type": "UNETLoader", "inputs": {"unet_name": name, "weight_dtype": "default"}}
            if kind == "CheckpointLoaderSimple":
                instead |= {(key, 1): ["demo text", 0], (key, 2): ["demo vae", 0]}
        elif kind == "VAELoader":
            instead[key, 0] = ["demo vae", 0]
        elif kind == "CLIPLoader" and inputs["type"] == "wan":
            instead[key, 0] = ["demo text", 0]
        elif kind == "ModelSamplingSD3":
            instead[key, 0] = inputs["model"]
        elif kind.startswith("Empty"):
            size = {"width": 128, "height": 128, "batch_size": inputs["batch_size"]}
            demo[key] = {**node, "class_type": "EmptySD3LatentImage", "inputs": size}
        elif kind == "CLIPTextEncode":
            demo[key] = {**node, "inputs": {**inputs, "text": PROMPTS.get(title_of(node), "")}}
        else:
            demo[key] = node
    for node in demo.values():
        links = {
            key: instead.get(tuple(value), value) for key, value in node["inputs"].items() if isinstance(value, list)
        }
        node["inputs"] = {**node["inputs"], **links}
    return demo


def what_it_needs(workflow: dict, target: str) -> dict:
    kept, ahead = {}, [target]
    while ahead:
        kept[key] = node = workflow[key := ahead.pop()]
        ahead += [value[0] for value in node["inputs"].values() if isinstance(value, list)]
    return kept


def as_drawn(name: str, workflow: dict) -> dict:
    """The example as its thumbnail shows it: one output, and what that needs."""
    seed, cfg, columns, settings = EXAMPLES[name]
    workflow = on_demo_model(workflow)
    shown = SHOWN.get(name, "Guidance Grid")
    target = next(key for key, node in workflow.items() if title_of(node) == shown)
    workflow = what_it_needs(workflow, target)
    for node in workflow.values():
        kind, inputs = node["class_type"], node["inputs"]
        known = (
            SAME.get(kind, {})
            | SAME.get(title_of(node), {})
            | settings.get(kind, {})
            | settings.get(title_of(node), {})
        )
        known |= {"cfg": cfg, "seed": seed, "noise_seed": seed, "filename_prefix": ""}
        known |= {"value": seed} if kind == "PrimitiveInt" else {}
        inputs |= {key: value for key, value in known.items() if key in inputs and not isinstance(inputs[key], list)}
        if kind == "BeyondCFGGrid":
            side = max(128, WIDTH // len(columns) - 8)
            scale = {
                "image": inputs["images"],
                "width": side,
                "height": side,
                "upscale_method": "bicubic",
                "crop": "disabled",
            }
            inputs |= {"columns": "\n".join(columns), "images": ["larger", 0], "title": ""}
    if columns:
        workflow["larger"] = {"class_type": "ImageScale", "inputs": scale}
    return workflow


def jpeg(content: bytes, width: int = WIDTH) -> bytes:
    from PIL import Image

    picture = Image.open(io.BytesIO(content)).convert("RGB")
    wide = width if picture.width > width * 1.4 else picture.width
    for share, quality in QUALITIES:
        size = round(wide * share), round(picture.height * wide * share / picture.width)
        smaller = picture.resize(size, Image.Resampling.LANCZOS) if size != picture.size else picture
        smaller.save(out := io.BytesIO(), "JPEG", quality=quality, optimize=True)
        if out.tell() < LARGEST[width]:
            break
    return out.getvalue()


def picture_of_curve(drawn: dict) -> bytes:
    """The curve of a Guidance Schedule, as the host tells the page to draw it, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.7), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*drawn["line"], strict=True), color="#e8590c", linewidth=2.5)
    axes.plot(*zip(*drawn["points"], strict=True), "o", color="#e8590c", markersize=5)
    axes.set(xlim=(drawn["low"], drawn["high"]), xlabel="fraction of sampling", ylabel="× strength")
    figure.savefig(out := io.BytesIO(), dpi=100)
    return out.getvalue()


def write(host: hosts.Host, names: tuple[str, ...]) -> None:
    """Draw them on a host of their own; all where there are no names."""
    import torch

    from . import tiny_models

    names = names or tuple(examples.names())
    with tempfile.TemporaryDirectory() as folder:
        torch.save(tiny_models.half(tiny_models.clip_l(0)), Path(folder) / "random_clip.ckpt")
        paths = MODELS / "extra_model_paths.yaml"  # the next setup writes it anew
        known = json.loads(paths.read_text("utf-8"))
        known["thumbnails"] = dict.fromkeys(("clip_vision", "text_encoders"), folder)
        paths.write_text(json.dumps(known), "utf-8")
        with running(host) as server:
            for name in names:
                workflow = as_drawn(name, workflows.load(examples.api_of(name)))
                with busy(f"Drawing {name}") as detail:
                    *_, (_, content) = server.run(workflow, detail)  # the last, if a node on the way shows one too
                examples.picture_of(name).write_bytes(jpeg(content))
                for node in SHOWS.get(name, ()):
                    (ROOT / f"web/docs/BeyondCFG{node}.jpg").write_bytes(jpeg(content, WIDE))
            curve = json.loads(server.get("/beyond_cfg_schedule?" + urllib.parse.urlencode(SCHEDULE)))
            (ROOT / "web/docs/BeyondCFGSchedule.jpg").write_bytes(jpeg(picture_of_curve(curve), WIDE))

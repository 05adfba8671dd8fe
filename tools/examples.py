"""The example workflows: in which order to learn from them, and their titles, which are their files' names in the page.

workflows/TITLE.json and its picture are what the page shows; workflows/api/NAME.json is the same for ComfyUI's server.
"""

from __future__ import annotations

from pathlib import Path

from .places import ROOT

FOLDER = ROOT / "workflows"
TITLES = {  # name → title, in the order of learning
    "easy_sdxl": "Start here, Guidance (easy) for SDXL",
    "easy_app": "Guidance (easy) as an app",
    "pag_sdxl": "PAG for SDXL",
    "pag_ksampler": "PAG with KSampler, SD 1.5",
    "cfg_interval_sdxl": "CFG Interval for SDXL, faster and more varied",
    "cfg_interval_pag": "CFG Interval and PAG together",
    "high_cfg": "High cfg without burnt colours",
    "negative_flux": "A negative prompt for Flux",
    "negative_turbo": "A negative prompt for SDXL Turbo",
    "negative_wan": "A negative prompt for Wan",
    "pag_flux": "PAG for Flux, without cfg",
    "skip_layer_sd3": "Skip Layer for SD3.5, better anatomy",
    "skip_layer_wan": "Skip Layer for Wan, video",
    "seg_ksampler": "SEG, clearer structure",
    "sag_guider": "SAG, more detail",
    "swg_sdxl": "SWG for SDXL, a picture that holds together",
    "tsg": "TSG without a prompt",
    "icg_guider": "ICG in place of a negative prompt",
    "masked_attention": "Masked Attention, gentler than PAG",
    "cfg_pag_seg_compose": "Three guidances on one model",
    "region_sdxl": "Guidance in a part of the picture, SDXL",
    "reuse_sdxl": "Guidance Reuse for SDXL, faster",
    "sweep_sdxl": "Guidance Sweep, many values in one node",
    "guidance_report": "Guidance Report, what each guidance did",
    "layer_map": "Layer Map, which layers there are",
    "layer_probe": "Layer Probe, which layers suit your model",
    "pag_guider": "PAG Guider, one node with cfg",
    "cfg": "CFG Interval Guider",
    "autoguidance": "Autoguidance with an earlier checkpoint",
    "degraded_autoguidance": "Autoguidance from one file",
    "post_hoc_ema": "Post-hoc EMA, two models of one training",
    "sims_lora": "SIMS with a LoRA file",
    "sims_training": "SIMS, trained here",
    "classifier_guidance": "Classifier Guidance with words",
    "noisy_classifier": "Noise-Aware Classifier Guidance",
    "distil": "Distil Guidance, a LoRA in place of guidance",
}


def title_of(name: str) -> str:
    """The title of an example, with its place in the order."""
    return f"{[*TITLES].index(name) + 1:02} {TITLES[name]}"


def names() -> list[str]:
    """All examples that there are."""
    return sorted(path.stem for path in (FOLDER / "api").glob("*.json"))


def page_of(name: str) -> Path:
    """The file that the page opens."""
    return FOLDER / f"{title_of(name)}.json"


def picture_of(name: str) -> Path:
    """Its thumbnail."""
    return page_of(name).with_suffix(".jpg")


def api_of(name: str) -> Path:
    """The same for ComfyUI's server."""
    return FOLDER / "api" / f"{name}.json"

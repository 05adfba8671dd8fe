"""Which family of models a MODEL is of, as presets tell them apart."""

from __future__ import annotations

import comfy.model_base
import comfy.supported_models

from .. import architectures
from .lookup import network_of

SDXL_DEPTH = [0, 0, 2, 2, 10, 10]  # its transformers at each level; smaller ones made of it have fewer


def family_of(model) -> str:
    """The name of the network's row in the table of architectures, or of UNets the model: SD 1.5, SD 2, SDXL. Empty for a
    network without a row."""
    row, config = architectures.find(network_of(model)), model.model.model_config
    if row is None:
        return ""
    if row.stacks:
        return row.name
    if isinstance(model.model, comfy.model_base.SDXL) and config.unet_config.get("transformer_depth") == SDXL_DEPTH:
        return "SDXL"
    kinds = {comfy.supported_models.SD15: "SD 1.5", comfy.supported_models.SD20: "SD 2"}
    return next((name for kind, name in kinds.items() if isinstance(config, kind)), row.name)

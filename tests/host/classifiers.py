"""Classifiers of pictures for tests: a CLIP vision and a VAE with random weights, and heads."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import comfy.clip_vision
import comfy.ldm.models.autoencoder
import comfy.sd
import comfy.utils
import torch
from pack.nodes.classifier import NODES
from pack.tests.host import networks

ClassifierGuidance = NODES[0]
FEATURES = 16
LABELS = ["cat", "dog", "bird"]


def clip_vision(features: int | None = FEATURES, kind: str = "clip_vision_model"):
    """Of the host's own class, as its loader makes one: in whatever mode the caller is in."""
    config = {
        "model_type": kind,
        "image_size": 32,
        "patch_size": 8,
        "num_channels": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": "quick_gelu",
    }
    with tempfile.TemporaryDirectory() as folder:  # older hosts take no dict
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config | ({"projection_dim": features} if features else {})))
        vision = comfy.clip_vision.ClipVisionModel(str(path))
    networks.fill(vision.model, seed=3)
    return vision


def whole_vae(seed: int = 4):
    """The KL autoencoder of SD, small."""
    shape = {"ch": 32, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 1, "z_channels": 4, "double_z": True}
    shape |= {"in_channels": 3, "out_ch": 3, "resolution": 64, "attn_resolutions": [], "dropout": 0.0}
    config = {"params": {"ddconfig": shape, "embed_dim": 4}}
    network = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=shape, embed_dim=4)
    networks.fill(network, seed)
    return comfy.sd.VAE(sd=network.state_dict(), config=config)


def save(path: Path, labels=LABELS, **changes):
    generator = torch.Generator().manual_seed(0)
    save_tensors(
        path, {"weight": torch.randn(3, FEATURES, generator=generator), "bias": torch.zeros(3)}, labels, changes
    )


def save_tensors(path: Path, tensors: dict, labels, changes: dict):
    tensors = {key: tensor for key, tensor in (tensors | changes).items() if tensor is not None}
    labels = labels if labels is None or isinstance(labels, str) else json.dumps(labels)
    comfy.utils.save_torch_file(tensors, str(path), metadata=None if labels is None else {"labels": labels})


def guided(model, vae, vision=None, **changes):
    given = {"label": "dog", "other_labels": "", "head": "pets.safetensors", "scale": 50.0}
    given |= {"start_percent": 0.0, "end_percent": 1.0, "vae": vae, "clip_vision": vision or clip_vision()}
    return ClassifierGuidance.execute(model=model, **(given | changes)).result[0]

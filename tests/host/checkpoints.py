"""Small files of models that a running host can load."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import torch
from pack.tools import tiny_models


def tiny_wan() -> dict:
    """Network and VAE of Wan 2.1 as a checkpoint, by the host's own classes."""
    from comfy import ops
    from comfy.ldm.wan import model, vae

    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = {"dim": 128, "ffn_dim": 128, "num_heads": 1, "num_layers": 9}  # Skip Layer's auto is the last of them
        network = model.WanModel(**size, in_dim=16, out_dim=16, text_dim=4096, operations=ops.manual_cast)
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=0.02)
        decoder = vae.WanVAE(dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], temperal_downsample=[False, True, True])
        for weight in decoder.parameters():
            torch.nn.init.normal_(weight, std=0.1)
    parts = {"model.diffusion_model.": network, "vae.": decoder}
    return {prefix + key: value.half() for prefix, part in parts.items() for key, value in part.state_dict().items()}


@contextlib.contextmanager
def small_files(server) -> Iterator[dict[str, str]]:
    """The names of a CLIP with text and vision and of a Wan, of 1 MB and 7, in the host's own folders while the
    context lasts."""
    folders = {folder["name"]: Path(folder["folders"][0]) for folder in server.ask("/experiment/models")}
    unique = uuid.uuid4().hex
    names = {kind: f"beyond_cfg_test_{kind}_{unique}.ckpt" for kind in ("CLIP", "WAN")}
    clip = tiny_models.half(tiny_models.clip_l(0))
    made = {folders[kind] / names["CLIP"]: clip for kind in ("clip_vision", "text_encoders")}
    made[folders["checkpoints"] / names["WAN"]] = tiny_wan()
    try:
        for place, tensors in made.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            torch.save(tensors, place)
        yield names
    finally:
        for place in made:
            place.unlink(missing_ok=True)

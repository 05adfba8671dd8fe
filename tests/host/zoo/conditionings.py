"""Conditionings of the specimens, as the host's text encoders and nodes give them: the host makes the conditions of it."""

from types import SimpleNamespace

import comfy.nested_tensor
import torch
from pack.tests.host import networks

from .specimen import Specimen

# Conditions of the network that a text makes → the conditioning's key
TEXT = {
    "c_crossattn": "cross_attn",
    "clip_text": "cross_attn",
    "y": "pooled_output",
    "clip": "pooled_output",
    "clip_text_pooled": "pooled_output",
    "txt_byt5": "conditioning_byt5small",
    "encoder_hidden_states_llama3": "conditioning_llama3",
    "encoder_hidden_states_t5": "conditioning_mt5xl",
}
MASKS = {
    "attention_mask": "cross_attn",
    "num_tokens": "cross_attn",
    "text_embedding_mask": "cross_attn",
    "text_embedding_mask_t5": "conditioning_mt5xl",
}
MASK_OF = {"cross_attn": "attention_mask", "conditioning_mt5xl": "attention_mask_mt5xl"}
FIXED = ("HunyuanDiT", "HiDream I1, E1")  # rows whose texts have one length
FULL = ("OmniGen 2", "Boogu")  # rows whose texts hold no padding
GIVEN = {  # condition of the network → what a node adds for it
    "ref_latents": ("reference_latents", lambda shapes: [torch.ones(1, *shape) for shape in shapes]),
    "lq_latent": ("lq_latent", lambda shape: torch.ones(1, *shape)),
    "degrade_sigma": ("degrade_sigma", lambda value: value(1)),
    "clip_img": ("unclip_conditioning", lambda shape: [_seen_picture(torch.ones(1, shape[-1]))]),
}


def _seen_picture(embeds: torch.Tensor) -> dict:
    return {"strength": 1.0, "noise_augmentation": 0.0, "clip_vision_output": SimpleNamespace(image_embeds=embeds)}


def latent(specimen: Specimen, batch: int = 1):
    """Zeros, packed where the specimen's latents are several."""
    shapes = specimen.conds["latent_shapes"](batch) if "latent_shapes" in specimen.conds else []
    if len(shapes) < 2:
        return torch.zeros(batch, *specimen.latent)
    return comfy.nested_tensor.NestedTensor([torch.zeros(shape) for shape in shapes])


def has_text(specimen: Specimen) -> bool:
    return bool({*TEXT, "input_ids"} & specimen.conds.keys())


def conditioning(specimen: Specimen, seed: int, **more) -> list:
    """One prompt: its text, and how long that is, by `seed`; what nodes add is as in all others of the specimen, but for
    `more`."""
    generator = torch.Generator().manual_seed(seed)
    text = {}
    for name, key in TEXT.items():
        if name in specimen.conds:
            *shape, width = specimen.conds[name]
            if key == "pooled_output":
                shape, width = [], networks.POOLED
            elif specimen.row not in FIXED:
                shape[-1] -= seed % 3
            text[key] = torch.randn(1, *shape, width, generator=generator)
    for name, key in MASKS.items():
        if name in specimen.conds:
            length = text[key].shape[1]
            tokens = length if specimen.row in FULL else length - 2 - seed % 2
            text[MASK_OF[key]] = (torch.arange(length) < tokens).long()[None]
    if "input_ids" in specimen.conds:
        ids = torch.randint(1, 60, (1, 12 - seed % 3), generator=generator)
        text = {"text_input_ids": torch.cat([ids, torch.tensor([[63]])], 1), "cross_attn": ids[..., None].float()}
    given = {key: make(specimen.conds[name]) for name, (key, make) in GIVEN.items() if name in specimen.conds}
    return [[text.pop("cross_attn", None), {"pooled_output": None, **text, **given, **more}]]

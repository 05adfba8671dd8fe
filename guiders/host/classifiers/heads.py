"""A head: a linear layer on CLIP's picture embedding e,   log p(y | picture) = log_softmax(weight e + bias)[y]

Of words, by CLIP's text encoder: weight holds the labels' directions times CLIP's own temperature, and e is only a
direction. Of a file: see files.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ....patches.texts import shown

TEMPERATURE = 100.0  # CLIP's learned one, the same in all its sizes; the host does not load it
MOST_LABELS = 1000  # each goes through the text encoder


@dataclass(frozen=True, eq=False)
class Head:
    """A linear layer on a picture embedding, and the class that is wanted."""

    weight: Tensor  # [classes, features]
    bias: Tensor  # [classes]
    wanted: int  # the class y
    of_direction: bool = False  # whether it is a layer on e / |e|

    def log_probability(self, embedding: Tensor) -> Tensor:  # [batch, features] → [batch]
        """log p(y | picture) of each picture, [batch], from their embeddings, [batch, features]."""
        if self.of_direction:
            embedding = torch.nn.functional.normalize(embedding, dim=-1)
        return torch.nn.functional.linear(embedding, self.weight, self.bias).log_softmax(-1)[:, self.wanted]

    def to(self, device) -> Head:
        """A copy there, in float32."""
        weight, bias = (tensor.to(device, torch.float32, copy=True) for tensor in (self.weight, self.bias))
        return Head(weight, bias, self.wanted, self.of_direction)


def features_of(clip_vision) -> int:
    """The width of its picture embedding. Raises ValueError where it is none of CLIP's."""
    kind = getattr(clip_vision, "model_type", "clip_vision_model")
    if kind != "clip_vision_model":
        raise ValueError(f"clip_vision is a {kind}; use one of CLIP, such as ViT-L/14")
    config = clip_vision.config
    return config.get("projection_dim", config["hidden_size"])


def labels_of(label: str, others: str) -> list[str]:
    """A label and those that it is told apart from, one per line. Raises ValueError where one of both is missing."""
    label = label.strip()
    labels = [label, *dict.fromkeys(line for line in map(str.strip, others.splitlines()) if line not in ("", label))]
    if not label:
        raise ValueError("label is empty; write what the picture should be taken for, such as a photo of a cat")
    if len(labels) == 1:
        raise ValueError("other_labels is empty; write at least one that label is told apart from, such as a photo")
    if len(labels) > MOST_LABELS:
        raise ValueError(f"other_labels has {len(labels) - 1:,} lines; at most {MOST_LABELS - 1:,} are told apart")
    return labels


def zero_shot(clip_vision, clip, label: str, others: str) -> Head:
    """The head of a label against `others`, one per line, from CLIP's text encoder."""
    labels = labels_of(label, others)
    width = features_of(clip_vision)
    if "projection_dim" not in clip_vision.config:
        raise ValueError("clip_vision has no projection to where words and pictures meet. Use another, or a head")
    name, encoder = _text_encoder(clip, width)
    directions = torch.cat([_embed_text(clip, name, encoder, text) for text in labels])
    weight = TEMPERATURE * torch.nn.functional.normalize(directions.float(), dim=-1)
    return Head(weight, torch.zeros(len(labels)), wanted=0, of_direction=True)


def _text_encoder(clip, width: int):
    """The one of CLIP's text encoders that has the picture embedding's width, and a projection that was trained."""
    encoders = {
        name: encoder
        for name, encoder in clip.cond_stage_model.named_children()
        if name.startswith("clip_") and hasattr(getattr(encoder, "transformer", None), "text_projection")
    }
    widths = {name: encoder.transformer.text_projection.weight.shape[0] for name, encoder in encoders.items()}
    name = next((name for name in encoders if widths[name] == width), None)
    if name is None:
        has = ", ".join(f"{name} of {widths[name]}" for name in widths) or "no text encoder of CLIP's"
        raise ValueError(
            f"clip has {has}, and clip_vision gives {width} features; the two must be halves of one CLIP. "
            "Load the text encoder that clip_vision was trained with, or use a head"
        )
    if not _is_trained(clip, name, encoders[name].transformer.text_projection.weight):
        raise ValueError(
            f"the {name} of this clip has no trained projection (the text encoders of SD 1.5 and SDXL checkpoints have "
            "none of CLIP-L, and the usual clip_l.safetensors has none either): its words do not lie where pictures do. "
            "Load a whole CLIP, such as model.safetensors of openai/clip-vit-large-patch14, with CLIPLoader, or use a head"
        )
    return name, encoders[name]


def _is_trained(clip, name: str, projection: Tensor) -> bool:
    """Where a file lacks the projection the host leaves zeros, or whatever the memory held."""
    source = getattr(clip.patcher, "cached_patcher_init", None)
    of_checkpoint = source is not None and "checkpoint" in source[0].__name__
    without = ("comfy.sd1_clip", "comfy.sdxl_clip")
    if of_checkpoint and name == "clip_l" and type(clip.cond_stage_model).__module__ in without:
        return False
    projection = projection.detach().float().cpu()
    norms = projection.norm(dim=1)  # of trained ones from 0.3 to 2
    is_one = torch.equal(projection, torch.eye(*projection.shape))
    return bool(projection.isfinite().all() and ((norms > 0.02) & (norms < 50)).all()) and not is_one


def _embed_text(clip, name: str, encoder, text: str) -> Tensor:
    """[1, features]; of the first 77 tokens."""
    try:
        tokens = clip.tokenize(text)
    except RecursionError:
        raise ValueError(f'the label "{shown(text)}" has too many brackets within brackets') from None
    clip.load_model()
    clip.cond_stage_model.reset_clip_options()
    encoder.set_clip_options({"projected_pooled": True, "execution_device": clip.patcher.load_device})
    try:
        return encoder.encode_token_weights(tokens[name.removeprefix("clip_")])[1].cpu()
    finally:
        clip.cond_stage_model.reset_clip_options()

"""Perturbed-Attention Guidance.   A → I:   PSA(Q, K, V) = V

Ahn et al. 2024, "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance", arXiv:2403.17377.
Every image token attends to itself alone; the layer's output projection still acts. Where image and text share one
attention (SD3, Flux), only the image-to-image part of the map becomes the identity:

    out_i = softmax([q_i·k_i, q_i·K_text]) [v_i; V_text]

Paper: written for a UNet, whose self-attention sees no text. Here: text stays attended to, as a UNet's cross-attention
leaves it, which is also how diffusers' SD3 PAG pipeline masks the joint map. Without text tokens it is V.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import About, AttentionCall
from .layers import Layer

CHUNK_ELEMENTS = (
    2**24
)  # logits held at once in a joint attention; a whole image × text map would be larger than K and V


@dataclass(frozen=True)
class IdentityAttention:
    layers: tuple[Layer, ...]

    about: ClassVar[About] = About(
        node_id="BeyondCFGPAG",
        title="PAG",
        summary=(
            "Perturbed-Attention Guidance: moves away from what the model predicts when every image token may only "
            "look at itself. Sharpens structure, with or without a negative prompt. One more row per step."
        ),
        paper="arXiv:2403.17377",
        guider=True,
        aliases=("perturbed attention guidance", "pag", "identity attention", "guidance without cfg"),
    )

    def attention(self, call: AttentionCall) -> Tensor:
        others = call.others
        if not others:
            return call.v
        out = torch.empty_like(call.v)
        for tokens in others:
            out[:, :, tokens] = call.attend(call.q[:, :, tokens], tokens)
        k_other = torch.cat([call.k[:, :, tokens] for tokens in others], 2)  # [rows, heads, others, head_dim]
        v_other = torch.cat([call.v[:, :, tokens] for tokens in others], 2)
        rows, heads, count, _ = k_other.shape
        chunk = max(1, CHUNK_ELEMENTS // (rows * heads * (count + 1)))
        for start in range(call.image.start, call.image.stop, chunk):
            tokens = slice(start, min(start + chunk, call.image.stop))
            out[:, :, tokens] = _self_and_others(call, tokens, k_other, v_other)
        return out


def _self_and_others(call: AttentionCall, tokens: slice, k_other: Tensor, v_other: Tensor) -> Tensor:
    """The output for image `tokens`, each attending to itself and to the tokens of `k_other`, `v_other`."""
    q, k, v = call.q[:, :, tokens] * call.scale, call.k[:, :, tokens], call.v[:, :, tokens]
    exact = torch.promote_types(q.dtype, torch.float32)
    to_self = (q.to(exact) * k).sum(-1, keepdim=True)  # [rows, heads, chunk, 1]
    to_others = (q @ k_other.mT).to(exact)  # [rows, heads, chunk, others]
    if call.bias is not None:
        bias = call.bias.expand(*call.bias.shape[:-2], call.q.shape[2], call.k.shape[2])[..., tokens, :]
        to_self = to_self + torch.diagonal(bias[..., tokens], dim1=-2, dim2=-1).unsqueeze(-1)
        to_others = to_others + torch.cat([bias[..., other] for other in call.others], -1)
    weights = torch.cat([to_self, to_others], -1).softmax(-1).to(v.dtype)
    return weights[..., :1] * v + weights[..., 1:] @ v_other

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

from torch import Tensor

from .base import About, AttentionCall, AttentionPerturbation, attend_to_self
from .layers import Layer


@dataclass(frozen=True)
class IdentityAttention(AttentionPerturbation):
    """Each token of the picture attends to itself and to the text."""

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
        return attend_to_self(call)

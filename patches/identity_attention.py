"""Perturbed-Attention Guidance.   A → (1 − u) A + u I:   PSA(Q, K, V) = V at u = 1

Ahn et al. 2024, "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance", arXiv:2403.17377.
Every image token attends to itself alone; the layer's output projection still acts. Where image and text share one
attention (SD3, Flux), only the image-to-image part of the map becomes the identity:

    out_i = softmax([q_i·k_i, q_i·K_text]) [v_i; V_text]

Paper: written for a UNet, whose self-attention sees no text. Here: text stays attended to, as a UNet's cross-attention
leaves it, which is also how diffusers' SD3 PAG pipeline masks the joint map. Without text tokens it is V.

SoftPAG, Ahn et al. 2025, "Where and How to Perturb: On the Design of Perturbation Guidance in Diffusion and Flow Models",
arXiv:2506.10978, mixes the map with another, A → (1 − u) A + u A′. Its A′ are `target`: the identity, which in the
authors' code hides the text too; the same with the text in sight, as above; and the uniform map, 1/n for each of n keys.
Their code changes the rows of text as well. Here these stay, as in the authors' II_identity_IT_mask. Where keys are
masked, the uniform map is that of the others: softmax(0 · QKᵀ + mask). Neutral at u = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import About, AttentionCall, AttentionPerturbation, attend_to_self, check_params, param
from .layers import Layer


@dataclass(frozen=True)
class IdentityAttention(AttentionPerturbation):
    """Each token of the picture attends to itself and to the text. Raises ValueError for a parameter out of range."""

    layers: tuple[Layer, ...]
    blend: float = param(
        1.0,
        "How far the network is made worse. 1 is PAG. Lower is gentler and has fewer artifacts (SoftPAG); "
        "0.5 is a good start. 0 is off.",
        low=0.0,
        high=1.0,
        step=0.01,
        added=True,
    )
    target: str = param(
        "identity",
        "What each part of the picture still sees. identity: itself and the text. identity without text: "
        "itself alone. uniform: everything equally. The first two differ only in networks that mix text and "
        "picture, such as SD3 and Flux.",
        choices=("identity", "identity without text", "uniform"),
        added=True,
    )

    about: ClassVar[About] = About(
        node_id="BeyondCFGPAG",
        name="PAG",
        title="Perturbed-Attention Guidance (PAG)",
        summary=(
            "Makes shapes and structure clearer, with or without a negative prompt. It moves away from what the "
            "model predicts when every part of the picture sees only itself. Takes as much extra time as CFG, or "
            "less."
        ),
        paper="arXiv:2403.17377",
        guider=True,
        aliases=(
            "perturbed attention guidance",
            "pag",
            "identity attention",
            "guidance without cfg",
            "SoftPAG",
            "HeadHunter",
            "uniform attention",
            "better quality",
            "anatomy",
            "flat",
            "flat colours",
            "detail",
        ),
    )

    def __post_init__(self):
        check_params(self)

    @property
    def neutral(self) -> bool:
        return self.blend == 0

    def attention(self, call: AttentionCall) -> Tensor:
        if self.blend == 0:
            return call.attend(call.q, slice(0, call.q.shape[2]))
        replaced = self._replaced(call)
        if self.blend == 1:
            return replaced
        image, out = call.image, replaced.clone()
        kept = call.attend(call.q[:, :, image], image)
        out[:, :, image] = (1 - self.blend) * kept + self.blend * replaced[:, :, image]
        return out

    def _replaced(self, call: AttentionCall) -> Tensor:
        """The attention by A′ alone."""
        if self.target == "identity":
            return attend_to_self(call)
        image, out = call.image, call.attended()
        if self.target == "identity without text":
            own = call.own_values
            out[:, :, image] = call.v[:, :, call.keys_of(image)] if own is None else own
        elif call.bias is not None and call.bias.shape[-2] > 1:  # equal logits, but each query has a bias of its own
            out[:, :, image] = call.attend(torch.zeros_like(call.q[:, :, image]), image)
        else:
            first = slice(image.start, image.start + 1)
            out[:, :, image] = call.attend(torch.zeros_like(call.q[:, :, first]), first)  # one for all of them
        return out

"""Normalized Attention Guidance.   Z = α Ẑ + (1 − α) Z₊,   Ẑ = Z̃ · min(‖Z̃‖₁, τ ‖Z₊‖₁) / ‖Z̃‖₁,   Z̃ = φ Z₊ − (φ − 1) Z₋

Chen et al. 2025, "Normalized Attention Guidance: Universal Negative Guidance for Diffusion Models", arXiv:2505.21179. Z₊ is
what the picture's tokens get of the prompt in one attention, Z₋ the same with the negative prompt in its place. ‖·‖₁ is of
one token, over the channels of all heads.

The paper writes Z̃ = Z₊ + φ (Z₊ − Z₋). Its code and the host's node write the above, whose φ is larger by 1; people know
that φ, so it is followed. The authors' code for Flux has the length ‖·‖₂; the paper, their code for all other networks and
the host have ‖·‖₁, which is followed. Neutral at φ = 1 and at α = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import About, PromptCall, PromptGuidance, check_params, param
from .layers import Layer


@dataclass(frozen=True)
class NormalizedAttention(PromptGuidance):
    """Z₊ pushed away from Z₋ and held near its own length. Raises ValueError for a parameter out of range."""

    layers: tuple[Layer, ...]
    scale: float = param(
        5.0,
        "How strongly the picture avoids the negative prompt. Here 1 is off and takes no extra time, as the "
        "authors count it. They use 3 to 11. Higher is stronger. Change this one first.",
        low=1.0,
        high=100.0,
        step=0.05,
        off=1.0,
    )
    tau: float = param(
        2.5,
        "The limit on how strong the effect may become in each place. The authors use 2.5 for nearly all "
        "models. Higher allows a stronger effect; too high burns colours.",
        low=0.0,
        high=100.0,
        step=0.05,
    )
    alpha: float = param(
        0.25,
        "How much of the effect is mixed in. 0 is off, 1 is all. The authors use 0.25 for most transformers, "
        "and 0.5 for SDXL and for Wan in 4 steps. Lower keeps more of a reference picture.",
        low=0.0,
        high=1.0,
        step=0.01,
    )

    about: ClassVar[About] = About(
        node_id="BeyondCFGNAG",
        name="NAG",
        title="Normalized Attention Guidance (NAG)",
        group="Negative prompts",
        summary=(
            "A negative prompt that works at cfg 1, for Flux, Turbo, Lightning and other fast models, and beside CFG "
            "too. It acts in the attention to the prompt, so it takes less extra time than CFG."
        ),
        paper="arXiv:2505.21179",
        aliases=(
            "nag",
            "normalized attention guidance",
            "negative prompt without cfg",
            "negative at cfg 1",
            "negative for flux",
            "negative for turbo",
            "wan nag",
            "negative prompt",
        ),
    )

    def __post_init__(self):
        check_params(self)

    @property
    def neutral(self) -> bool:
        return self.scale == 1 or self.alpha == 0

    def attention(self, call: PromptCall) -> Tensor:
        positive = call.positive()
        exact = positive.to(torch.promote_types(positive.dtype, torch.float32))
        away = torch.lerp(call.negative().to(exact), exact, self.scale)
        length, own = (part.abs().sum((1, 3), keepdim=True) for part in (away, exact))
        held = away * (torch.minimum(length, self.tau * own) / length.clamp(min=torch.finfo(exact.dtype).tiny))
        return torch.lerp(exact, held, self.alpha).to(positive.dtype)

"""Orthogonal negative guidance.   Z = Z₊ − α (Z₋ − ⟨Z₋, Z₊⟩ / ⟨Z₊, Z₊⟩ Z₊)

Ko et al. 2026, "Orthogonal Negative Guidance in Attention Feature Space for Text-to-Image Generation", arXiv:2605.29390.
Z₊ is what the picture's tokens get of the prompt in one attention, Z₋ the same with the negative prompt in its place. Only
what the negative prompt has and the prompt has not is taken away. The products are of one token, over the channels of all
heads; where Z₊ is 0, Z₋ is taken away whole. Neutral at α = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import About, PromptCall, PromptGuidance, check_params, param
from .layers import Layer


@dataclass(frozen=True)
class OrthogonalAttention(PromptGuidance):
    """Z₊ − α Z₋⊥. Raises ValueError for a scale out of range."""

    layers: tuple[Layer, ...]
    scale: float = param(
        4.0,
        "How strongly the picture avoids what only the negative prompt asks for. 0 is off and takes no extra "
        "time. The paper uses 4. Higher is stronger; too high breaks the picture.",
        low=0.0,
        high=100.0,
        step=0.05,
        off=0.0,
    )

    about: ClassVar[About] = About(
        node_id="BeyondCFGOrthogonalNegative",
        name="Orthogonal Negative",
        group="Negative prompts",
        summary=(
            "A negative prompt that works at cfg 1, and takes away only what the prompt does not ask for. Use it "
            "where both prompts have something in common. It acts inside the network's attention, so it takes less "
            "extra time than CFG."
        ),
        paper="arXiv:2605.29390",
        aliases=(
            "orthogonal negative guidance",
            "ong",
            "negative prompt without cfg",
            "negative at cfg 1",
            "negative prompt",
        ),
    )

    def __post_init__(self):
        check_params(self)

    @property
    def neutral(self) -> bool:
        return self.scale == 0

    def attention(self, call: PromptCall) -> Tensor:
        given = call.positive()
        positive, negative = (
            part.to(torch.promote_types(part.dtype, torch.float32)) for part in (given, call.negative())
        )
        square = (positive * positive).sum((1, 3), keepdim=True)
        along = (negative * positive).sum((1, 3), keepdim=True) / square.clamp(min=torch.finfo(square.dtype).tiny)
        return (positive - self.scale * (negative - along * positive)).to(given.dtype)

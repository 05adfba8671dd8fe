"""Negative-Away Steer Attention.   Z = Z₊ − α Z₋

Nguyen et al. 2024, "SNOOPI: Supercharged One-step Diffusion Distillation with Proper Guidance", arXiv:2412.02687 (NASA),
for models of one step. Z₊ is what the picture's tokens get of the prompt in one attention, Z₋ the same with the negative
prompt in its place. Z becomes shorter by about α, which the paper leaves so. Neutral at α = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import About, PromptCall, PromptGuidance, check_params, param
from .layers import Layer


@dataclass(frozen=True)
class SubtractedAttention(PromptGuidance):
    """Z₊ − α Z₋. Raises ValueError for a scale out of range."""

    layers: tuple[Layer, ...]
    scale: float = param(
        0.2,
        "How strongly the picture avoids the negative prompt. 0 is off and takes no extra time; 0.2 is a "
        "good start. Too high breaks the picture.",
        low=0.0,
        high=10.0,
        step=0.01,
        off=0.0,
    )

    about: ClassVar[About] = About(
        node_id="BeyondCFGNASA",
        name="NASA",
        title="Negative-Away Steer Attention (NASA)",
        group="Negative prompts",
        summary=(
            "A negative prompt that works at cfg 1, for models of one step. For more steps use NAG. It takes the "
            "attention to the negative prompt away from the attention to the prompt, which takes less extra time "
            "than CFG."
        ),
        paper="arXiv:2412.02687",
        aliases=(
            "nasa",
            "negative-away steer attention",
            "snoopi",
            "negative prompt one step",
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
        return call.positive() - self.scale * call.negative()

"""Value Sign Flip.   Z = softmax([Q K₊ᵀ, Q K₋ᵀ + b]) [V₊; −α V₋]

Guo & Du 2025, "VSF: Simple, Efficient, and Effective Negative Guidance in Few-Step Image Generation Models By Value Sign
Flip", arXiv:2508.10931. The picture's tokens see the prompt's tokens and those of the negative prompt at once, and get
the values of the latter with the other sign: the more a token of the picture has of the negative prompt, the more is taken
away there. K₋, V₋ are of the negative prompt's tokens alone; those of the picture and of the prompt are in K₊, V₊. The
text's own tokens see no negative, as in the paper.

Paper: α = 3.5, b = −0.1 for SD3.5, 1.7 and −0.2 for Wan. Neutral at α = 0, where nothing is evaluated, though the formula
there would still hold the prompt back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import About, PromptCall, PromptGuidance, check_params, param
from .layers import Layer


@dataclass(frozen=True)
class FlippedValues(PromptGuidance):
    """One attention to both prompts. Raises ValueError for a parameter out of range."""

    layers: tuple[Layer, ...]
    scale: float = param(
        3.5,
        "How strongly the picture avoids the negative prompt. 0 is off and takes no extra time. The authors "
        "use 3.5 for SD3.5, 6 for Flux Schnell and 1.7 for Wan. Higher is stronger.",
        low=0.0,
        high=100.0,
        step=0.05,
        off=0.0,
    )
    offset: float = param(
        0.1,
        "How much less the picture looks at the negative prompt than at the prompt. Higher is gentler and "
        "keeps more of the picture. The authors use 0.1 for SD3.5 and 0.2 for Wan.",
        low=-100.0,
        high=100.0,
        step=0.05,
    )

    about: ClassVar[About] = About(
        node_id="BeyondCFGVSF",
        name="VSF",
        title="Value Sign Flip (VSF)",
        group="Negative prompts",
        summary=(
            "A negative prompt that works at cfg 1, for models of few steps such as SD3.5 Turbo and Flux Schnell. It "
            "acts most where the picture would show what the negative names. It takes less extra time than CFG."
        ),
        paper="arXiv:2508.10931",
        aliases=(
            "vsf",
            "value sign flip",
            "negative prompt without cfg",
            "negative at cfg 1",
            "negative for turbo",
            "negative prompt",
        ),
    )

    def __post_init__(self):
        check_params(self)

    @property
    def neutral(self) -> bool:
        return self.scale == 0

    def attention(self, call: PromptCall) -> Tensor:
        return call.joined(-self.scale, -self.offset)

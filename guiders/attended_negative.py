"""A negative prompt inside the network.   D = D₊ with Z in place of Z₊ in its attention

Z₊ is what the picture gets of the prompt in one attention, and Z what a PromptGuidance (patches/base.py) makes of that and
of what it would get of the negative prompt. D₊ itself moves away from the negative prompt, so this acts without CFG and
adds no row. Where the schedule or a region is k, an attention goes k of its way, Z₊ + k (Z − Z₊). All predictions of the
positive have it: those that a perturbation makes worse too, so that a guidance away from them moves by the perturbation
alone. Weak models have it not. Neutral where the PromptGuidance is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .base import Apply, Branch, Conditioning, GuidanceRule, PromptGuidance


@dataclass(frozen=True)
class AttendedNegative(GuidanceRule):
    """Changes how the positive is evaluated, and nothing that is made of it."""

    guidance: PromptGuidance | None = None
    prompt: Conditioning = "negative"  # the negative prompt: the guider's, or one that the node brings along

    changes: ClassVar[Literal["positive"]] = "positive"

    def branches(self) -> tuple[Branch, ...]:
        """The negative prompt. It is needed as a text, and not evaluated."""
        return () if self.guidance is None or self.guidance.neutral else (Branch(self.prompt),)

    def begin(self) -> Apply:
        return lambda denoised, predictions, step: denoised

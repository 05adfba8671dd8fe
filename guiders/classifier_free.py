"""Classifier-free guidance.   D_w = D₊ + (w − 1)(D₊ − D₋)

Ho & Salimans 2022, arXiv:2207.12598, in denoised form (their w is our w − 1). Neutral at w = 1. Linear, so it is the
same in ε, v and x₀.

In the host CFG belongs to the sampler: its `cfg` is w, and the host evaluates and combines the negative itself. What is
left to the pack is where along the noise axis it acts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import NEGATIVE, POSITIVE, About, Apply, Branch, GuidanceRule, check_params, param


@dataclass(frozen=True)
class ClassifierFreeGuidance(GuidanceRule):
    """D + (w − 1)(D₊ − D₋), in the pack. Raises ValueError for a weight out of range."""

    weight: float = param(1.0, low=0, high=100, off=1.0)

    def __post_init__(self):
        check_params(self)

    def branches(self) -> tuple[Branch, ...]:
        return () if self.weight == 1 else (NEGATIVE,)

    def begin(self) -> Apply:
        return lambda denoised, predictions, step: (
            denoised + (self.weight - 1) * (predictions[POSITIVE] - predictions[NEGATIVE])
        )


@dataclass(frozen=True)
class PositiveAlone(GuidanceRule):
    """D₊, which takes back what the sampler's CFG has made. In the region 1 − m it leaves the CFG where m is 1."""

    corrects_cfg: ClassVar[bool] = True

    def branches(self) -> tuple[Branch, ...]:
        return (POSITIVE,)

    def begin(self) -> Apply:
        return lambda denoised, predictions, step: predictions[POSITIVE]


@dataclass(frozen=True)
class SamplerCFG:
    """w(σ) = 1 + k(σ) (cfg − 1): with k = 0 outside an interval, where the negative is then not evaluated, it is the
    limited interval of arXiv:2404.07724."""

    about: ClassVar[About] = About(
        node_id="BeyondCFGInterval",
        name="CFG Interval",
        summary=(
            "Makes sampling faster and pictures more varied. It lets the sampler's cfg act in a part of sampling "
            "only: cfg harms most at the very beginning, and does little at the end. Where it is off, the negative "
            "prompt takes no time."
        ),
        paper="arXiv:2404.07724",
        aliases=(
            "guidance interval",
            "limited interval",
            "cfg schedule",
            "cfg start end",
            "skip cfg",
            "faster cfg",
            "variety",
            "burnt",
        ),
        window=(0.2, 0.9),
    )

    @staticmethod
    def weight(cfg: float, strength: float) -> float:
        """The sampler's own weight where its CFG acts with `strength` k, from `cfg` = w."""
        return cfg if strength == 1 else 1 + (cfg - 1) * strength

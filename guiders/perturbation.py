"""Guidance by a perturbed prediction.   D = D₊ + s (D₊ − D₋ₖ)

D₋ₖ is the positive prompt's prediction of the same network, made worse by a perturbation (PAG, arXiv:2403.17377;
SEG and Skip Layer are the same rule). Added to the result so far: with CFG that is
D₋ + cfg (D₊ − D₋) + s (D₊ − D₋ₖ). Neutral at s = 0. Linear, so it is the same in ε, v and x₀.
"""

from __future__ import annotations

from dataclasses import dataclass

from .base import POSITIVE, Apply, Branch, GuidanceRule, Perturbation, check_params, param


@dataclass(frozen=True)
class PerturbationGuidance(GuidanceRule):
    """s (D₊ − D₋ₖ). Raises ValueError for a scale out of range."""

    scale: float = param(3.0, low=-1.0, high=100.0, off=0.0)  # −1 gives the perturbed prediction itself
    perturbation: Perturbation | None = None

    def __post_init__(self):
        check_params(self)

    def branches(self) -> tuple[Branch, ...]:
        if self.scale == 0 or self.perturbation is None or self.perturbation.neutral:
            return ()
        return (Branch(perturbation=self.perturbation),)

    def begin(self) -> Apply:
        weak = Branch(perturbation=self.perturbation)
        return lambda denoised, predictions, step: denoised + self.scale * (predictions[POSITIVE] - predictions[weak])

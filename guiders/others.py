"""What nodes of other packs do and no node of this pack does. Their old workflows keep their pictures with it, where those
packs are missing (nodes/stand_ins.py). These rules are written from the packs' formulas, and are for pictures alone,
[batch, channels, height, width]. Δ = D₊ − D₋, w is the sampler's cfg, t the host's timestep.

    AdaptivePerturbation   D' = D + g (φ std(D₊)/std(D + g) + 1 − φ),   g = s max(0, 1 − a⁴ (1000 − t)) (D₊ − D₋ₖ)
                           with D₊ + g in place of D + g where it is `of_positive`   (sd-perturbed-attention)
    NoiseLimit             D' = D where low < σ ≤ high, else D₊                      (ComfyUI-ppm)
    OwnCFG                 D' = D₊ + (w' − 1)(D₊ − D₋), with a w' in place of w      (ComfyUI-SEGAttention)
    MomentumProjection     D' = D₊ + (w − 1)(Δ⊥ + η Δ∥),   Δ = clip(D₊ − D₋ + β(t) Δ₋₁, r)   (APG_ImYourCFGNow)

In the last one Δ₋₁ is of the call before, β(t) = β max(0, 1 − a⁴ (1000 − t)), and clip shortens to the length r. ∥ and ⊥
are to x − D₊, the noise. There it goes on from one run to the next; here a run begins anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import NEGATIVE, POSITIVE, REFERENCE, Apply, Branch, GuidanceRule, Step, param
from .linalg import exact, norm, project, std
from .perturbation import PerturbationGuidance
from .schedule import Interval


def fading(step: Step, amount: float) -> float:
    """max(0, 1 − a⁴ (1000 − t)) for a = amount."""
    return max(0.0, 1 - amount**4 * (1000 - step.timestep(step.sigma))) if amount else 1.0


@dataclass(frozen=True)
class AdaptivePerturbation(PerturbationGuidance):
    """s (D₊ − D₋ₖ), weaker along sampling, and with its contrast set back."""

    adaptive: float = 0.0  # a
    rescale: float = 0.0  # φ
    of_positive: bool = False

    def begin(self) -> Apply:
        weak = Branch(perturbation=self.perturbation)

        def apply(denoised, predictions, step):
            positive = exact(predictions[POSITIVE])
            added = self.scale * fading(step, self.adaptive) * (positive - exact(predictions[weak]))
            if self.rescale:
                spread = std((positive if self.of_positive else exact(denoised)) + added)
                added = added * (self.rescale * std(positive) / spread + 1 - self.rescale)
            return (exact(denoised) + added).to(denoised.dtype)

        return apply


@dataclass(frozen=True)
class NoiseLimit(GuidanceRule):
    """What the rules before it and the sampler's CFG have made, between two noise levels alone."""

    interval: Interval

    def branches(self) -> tuple[Branch, ...]:
        return (POSITIVE,)

    def begin(self) -> Apply:
        return lambda denoised, predictions, step: denoised if step.sigma in self.interval else predictions[POSITIVE]


@dataclass(frozen=True)
class OwnCFG(GuidanceRule):
    """CFG with a weight of its own, in place of all that the sampler's CFG and the rules before it have made. Without a
    negative in the call it is D₊."""

    weight: float = param(1.0, low=-1.0, high=100.0)

    def branches(self) -> tuple[Branch, ...]:
        return (POSITIVE, REFERENCE)

    def begin(self) -> Apply:
        def apply(_denoised, predictions, _step):
            positive, reference = predictions[POSITIVE], predictions[REFERENCE]
            return positive + (self.weight - 1) * (positive - reference)

        return apply


@dataclass(frozen=True)
class MomentumProjection(GuidanceRule):
    """In place of the sampler's CFG, and of what the rules before it have made."""

    momentum: float = 0.0  # β
    adaptive: float = 0.0  # a
    norm_threshold: float = 0.0  # r; 0 is no clip
    eta: float = 1.0

    corrects_cfg: ClassVar[bool] = True

    def branches(self) -> tuple[Branch, ...]:
        return (NEGATIVE,)

    def begin(self) -> Apply:
        before = None  # Δ₋₁

        def apply(denoised, predictions, step):
            nonlocal before
            positive = exact(predictions[POSITIVE])
            delta = positive - exact(predictions[NEGATIVE])
            if before is not None:
                delta = delta + self.momentum * fading(step, self.adaptive) * before
            before = delta
            if self.norm_threshold:
                delta = delta * (self.norm_threshold / norm(delta)).clamp(max=1)
            parallel, orthogonal = project(delta, exact(step.x) - positive)
            return (positive + (step.cfg - 1) * (orthogonal + self.eta * parallel)).to(denoised.dtype)

        return apply

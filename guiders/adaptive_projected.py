"""Adaptive Projected Guidance.   D_η = D₊ + Δ⊥ + η Δ∥,   Δ = clip(D − D₊ + β Δ₋₁, r)

Sadat et al. 2024, arXiv:2410.02416, in x₀ as there. Δ₋₁ is what clip was given in the sampler's step before; clip
shortens to norm r; ∥ and ⊥ are to D₊; all per sample (and modality). Neutral at η = 1, β = 0, r = 0 (which is no clip).

Paper: D₊ + (w − 1) f(D₊ − D₋), f being all this. Here: D₊ + f(D − D₊), on the whole direction so far, because a sum of
terms has no one w to divide by; r bounds how far from D₊ the result lies. With CFG alone it is the paper's r (w − 1).
Evaluations of one step add the same Δ₋₁; its first one makes the next step's. A step back in the schedule begins anew.
With warm-up Δ gathers in steps before the rule acts, too: Hunyuan Image 2.1 has CFG alone in the first ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import POSITIVE, About, Apply, Branch, GuidanceRule, check_params, param
from .linalg import exact, norm, project
from .memory import Memory

ETA = (
    "How much is kept of the part that only makes colours stronger. 1 keeps all of it. 0 takes it out, "
    "which is the paper's."
)
NORM = (
    "The limit on how strong all guidance together may be. 0 is no limit. Lower is calmer. The paper's "
    "limit depends on cfg: for SDXL it is 15 × (cfg - 1)."
)
MOMENTUM = (
    "How much of the guidance of earlier steps is added. 0 is off. The paper uses -0.5, which brings out "
    "other detail in each step."
)
WARM_UP = (
    "When momentum begins to collect. On: from the first step of sampling, as for Hunyuan Image 2.1. "
    "Off: from start_percent."
)


@dataclass(frozen=True)
class AdaptiveProjectedGuidance(GuidanceRule):
    """Changes the direction that the rules before it have made. Raises ValueError for a parameter out of range."""

    eta: float = param(0.0, ETA, low=-10.0, high=10.0, step=0.05, off=1.0)
    norm_threshold: float = param(0.0, NORM, low=0.0, high=10000.0, step=0.5)
    momentum: float = param(0.0, MOMENTUM, low=-1.0, high=1.0, step=0.05)
    warm_up: bool = param(False, WARM_UP, added=True)

    about: ClassVar[About] = About(
        node_id="BeyondCFGAdaptiveProjected",
        name="Adaptive Projected",
        title="Adaptive Projected Guidance (APG)",
        group="CFG corrections",
        summary=(
            "Keeps colours natural at a high cfg. It takes out the part of the guidance that only makes colours "
            "stronger, and can limit the rest. It acts on all guidance nodes before it. Takes no extra time."
        ),
        paper="arXiv:2410.02416",
        aliases=(
            "apg",
            "adaptive projected guidance",
            "oversaturation",
            "high cfg",
            "norm threshold",
            "momentum",
            "burnt",
        ),
    )

    def __post_init__(self):
        check_params(self)

    @property
    def remembers(self) -> bool:
        return self.warm_up and self.momentum != 0

    def branches(self) -> tuple[Branch, ...]:
        return () if (self.eta, self.norm_threshold, self.momentum) == (1, 0, 0) else (POSITIVE,)

    def begin(self) -> Apply:
        memory = Memory()  # of Δ

        def apply(denoised, predictions, step):
            positive = exact(predictions[POSITIVE])
            delta = denoised - positive
            if self.momentum:
                before = memory.recall(step)
                delta = delta if before is None else delta + self.momentum * before
                memory.keep(delta)
            if self.norm_threshold:
                delta = delta * (self.norm_threshold / norm(delta, shapes=step.shapes)).clamp(max=1)
            parallel, orthogonal = project(delta, positive, step.shapes)
            return (positive + orthogonal + self.eta * parallel).to(denoised.dtype)

        return apply

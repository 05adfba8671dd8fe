"""CFG-Zero*.   v = α v₋ + w (v₊ − α v₋),   α = ⟨v₊, v₋⟩ / ‖v₋‖²,   and v = 0 in the first steps

Fan et al. 2025, "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models", arXiv:2503.18886. v is the
velocity of the sampler's path, v = (x − D)/σ: what a flow network gives, and ε where x = x₀ + σ n. So in x₀

    D_zero = D + (1 − w)(1 − α)(x − D₋),   and D_zero = x in the first steps,

where D is the result so far, w the sampler's cfg, and α of one sample (and modality). Neutral at amount 0, and at cfg 1.

Paper: velocity, for flow networks alone. The authors' code and diffusers scale whatever the network gives, which is not
this for v prediction. The host's CFGZeroStar gives α D₋ + w (D₊ − α D₋), which lacks (1 − w)(1 − α) x: it scales x₀
where it should scale the velocity, and has no first steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import NEGATIVE, POSITIVE, About, Apply, Branch, GuidanceRule, check_params, param
from .linalg import exact, project

AMOUNT = "How much of the correction is applied. 0 is off, 1 is the paper's."
ZERO_STEPS = (
    "How many first steps leave the picture as it is, because the model is least right there. 0 is none, "
    "1 is the paper's. It has no effect when you start from a picture."
)


@dataclass(frozen=True)
class ZeroStar(GuidanceRule):
    """Changes the sampler's own CFG. Raises ValueError for a parameter out of range."""

    amount: float = param(1.0, AMOUNT, low=0.0, high=1.0, step=0.05, off=0.0)
    zero_init_steps: int = param(1, ZERO_STEPS, low=0, high=100, step=1)

    corrects_cfg: ClassVar[bool] = True
    about: ClassVar[About] = About(
        node_id="BeyondCFGZeroStar",
        name="CFG-Zero*",
        group="CFG corrections",
        summary=(
            "Makes CFG cleaner for flow models (SD3, Flux, Wan). It scales the negative prediction until it fits the "
            "positive one, and lets the first step stand still. Takes no extra time."
        ),
        paper="arXiv:2503.18886",
        aliases=(
            "cfg zero star",
            "cfgzerostar",
            "cfg-zero",
            "zero init",
            "optimized scale",
            "flow matching cfg",
            "better quality",
        ),
    )

    def __post_init__(self):
        check_params(self)

    def branches(self) -> tuple[Branch, ...]:
        return () if self.amount == 0 else (NEGATIVE,)

    def begin(self) -> Apply:
        from_noise = None  # whether the run began at full noise

        def apply(denoised, predictions, step):
            nonlocal from_noise
            from_noise = step.time > 0.99 if from_noise is None else from_noise
            if from_noise and step.index < self.zero_init_steps:
                corrected = exact(step.x)
            else:
                positive, negative = (exact(step.x) - exact(predictions[branch]) for branch in (POSITIVE, NEGATIVE))
                scaled, _ = project(positive, negative, step.shapes)  # α v₋ σ
                corrected = exact(denoised) + (1 - step.cfg) * (negative - scaled)
            return torch.lerp(exact(denoised), corrected, self.amount).to(denoised.dtype)

        return apply

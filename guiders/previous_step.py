"""Self-Guidance by the previous step.   v' = v + s (v₊ − v₊₋₁),   v₊ = (x − D₊)/σ

Li et al. 2024, "Self-Guidance: Boosting Flow and Diffusion Generation on Their Own", arXiv:2412.05827, which calls this
form SG-prev. The prediction of the step before, at more noise, stands for one of this x at more noise. v is the velocity
of the sampler's path: what a flow network gives, and ε where x = x₀ + σ n. So in x₀

    D' = D + s (D₊ − (x − σ v₊₋₁)),

where D₊ is the positive prediction and v₊₋₁ its velocity in the step before. Added to the result so far. Neutral at
s = 0, linear in s, nothing in the first step.

The authors' code adds what the network gives, also where that is a v prediction, and does so below timestep 500 of 1000.
Evaluations of one step have the same v₊₋₁; the first makes the next step's. A step back begins anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import POSITIVE, About, Apply, Branch, GuidanceRule, check_params, param
from .linalg import exact
from .memory import Memory

SCALE = (
    "How strongly it acts. 0 is off; the authors use 3. With few steps take less, because each step then changes more."
)


@dataclass(frozen=True)
class PreviousStepGuidance(GuidanceRule):
    """Away from the positive prediction of the step before. Raises ValueError for a scale out of range."""

    scale: float = param(3.0, SCALE, low=0.0, high=100.0, step=0.05, off=0.0)

    about: ClassVar[About] = About(
        node_id="BeyondCFGPreviousStep",
        name="Self-Guidance (previous)",
        summary=(
            "Makes hands and faces better, with the sampler Euler. It moves away from what the step before "
            "predicted, where there was more noise. Takes no extra time."
        ),
        paper="arXiv:2412.05827",
        aliases=(
            "self-guidance",
            "sg-prev",
            "sg_prev",
            "self guidance",
            "hands",
            "previous step",
            "anatomy",
            "detail",
            "faces",
        ),
        window=(0.5, 1.0),
    )

    def __post_init__(self):
        check_params(self)

    @property
    def remembers(self) -> bool:
        return True

    def branches(self) -> tuple[Branch, ...]:
        return () if self.scale == 0 else (POSITIVE,)

    def begin(self) -> Apply:
        memory = Memory()  # of v₊

        def apply(denoised, predictions, step):
            noise, before = exact(step.x) - exact(predictions[POSITIVE]), memory.recall(step)  # σ v₊, v₊₋₁
            memory.keep(noise / step.sigma)
            if before is None:
                return denoised
            return (exact(denoised) - self.scale * (noise - step.sigma * before)).to(denoised.dtype)

        return apply

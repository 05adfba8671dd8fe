"""Momentum Guidance.   v' = v + s (v − m),   m ← (1 − β) v + β m,   v = (x − D)/σ

Liao et al. 2026, "Momentum Guidance: Plug-and-Play Guidance for Flow Models", arXiv:2602.20360. v is the velocity of the
sampler's path, of the result so far: what a flow network gives, and ε where x = x₀ + σ n. m begins as the first step's
v, and is of v as it was before this rule. So in x₀

    D' = D + s (D − (x − σ m)),

where x − σ m is what the average of earlier velocities predicts. Neutral at s = 0, linear in s. With β = 0, s = 1/2 and
Euler's steps of one length it is the two-step method of Adams and Bashforth.

Paper: flow networks alone; its SD3 and FLUX tables also scale m to the length of v, which is not done here. The node in
sd-perturbed-attention averages D, which is another method: as x moves, an average of D is not one of velocities.
Evaluations of one step have the same m; the first makes the next step's. A step back begins anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import POSITIVE, About, Apply, Branch, GuidanceRule, check_params, param
from .linalg import exact
from .memory import Memory

SCALE = (
    "How strongly it acts. 0 is off. The paper uses 0.5, and 1 to 1.5 at a low cfg. With samplers such "
    "as dpmpp_2m take less."
)
BETA = "How far back it looks. 0: only the step before. Nearer to 1: more steps. The paper uses 0.6."


@dataclass(frozen=True)
class MomentumGuidance(GuidanceRule):
    """Away from the average of earlier velocities. Raises ValueError for a parameter out of range."""

    scale: float = param(0.5, SCALE, low=0.0, high=100.0, step=0.05, off=0.0)
    beta: float = param(0.6, BETA, low=0.0, high=1.0, step=0.05)

    about: ClassVar[About] = About(
        node_id="BeyondCFGMomentum",
        name="Momentum",
        title="Momentum Guidance (MG)",
        summary=(
            "Gives more detail with flow models (SD3, Flux), in few steps or at a low cfg. It moves away from the "
            "average direction of the steps before. Takes no extra time."
        ),
        paper="arXiv:2602.20360",
        aliases=(
            "momentum guidance",
            "mg",
            "MomentumGuidance",
            "few steps",
            "flow",
            "history",
            "detail",
            "sharp",
        ),
    )

    def __post_init__(self):
        check_params(self)

    @property
    def remembers(self) -> bool:
        return True

    def branches(self) -> tuple[Branch, ...]:
        return () if self.scale == 0 else (POSITIVE,)

    def begin(self) -> Apply:
        memory = Memory()  # of m

        def apply(denoised, _predictions, step):
            noise, average = exact(step.x) - exact(denoised), memory.recall(step)  # σ v, m
            velocity = noise / step.sigma
            memory.keep(velocity if average is None else torch.lerp(velocity, average, self.beta))
            if average is None:
                return denoised
            return (exact(denoised) - self.scale * (noise - step.sigma * average)).to(denoised.dtype)

        return apply

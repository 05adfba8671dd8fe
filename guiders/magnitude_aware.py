"""Magnitude-aware CFG (MAMBO-G).   v = v₋ + w' (v₊ − v₋),   w' = 1 + (w − 1) exp(−α r),   r = ‖v₊ − v₋‖ / ‖v₋‖

Zhu et al. 2025, "MAMBO-G: Magnitude-Aware Mitigation for Boosted Guidance", arXiv:2508.03442, first known as RAAG. v is
the velocity of the sampler's path, v = (x − D)/σ: what a flow network gives, and ε where x = x₀ + σ n. So in x₀

    D_m = D + (w − 1)(exp(−α r) − 1)(D₊ − D₋),   r = ‖D₊ − D₋‖ / ‖x − D₋‖,

where D is the result so far and w the sampler's cfg; all per sample (and modality). Neutral at α = 0, and at cfg 1.

Paper: velocities of flow networks. Diffusers takes what the network gives, which is not this for v prediction. The
authors' README has w in place of w − 1; the paper and diffusers, which the authors name as theirs, have w − 1. Where
v₋ is 0 there is no CFG.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import NEGATIVE, POSITIVE, About, Apply, Branch, GuidanceRule, check_params, param
from .linalg import exact, norm

ALPHA = (
    "How strongly CFG is held back where it is large. 0 is off. The authors use 8 with cfg 10. Higher is "
    "calmer in the first steps."
)


@dataclass(frozen=True)
class MagnitudeAware(GuidanceRule):
    """Changes the sampler's own CFG. Raises ValueError for an alpha out of range."""

    alpha: float = param(8.0, ALPHA, low=0.0, high=100.0, step=0.05, off=0.0)

    corrects_cfg: ClassVar[bool] = True
    about: ClassVar[About] = About(
        node_id="BeyondCFGMagnitudeAware",
        name="Magnitude-Aware",
        title="Magnitude-Aware Guidance (MAMBO-G)",
        group="CFG corrections",
        summary=(
            "Keeps pictures whole at a high cfg with few steps. It holds CFG back in the steps where CFG is large, "
            "mostly the first ones. Takes no extra time."
        ),
        paper="arXiv:2508.03442",
        aliases=(
            "mambo-g",
            "mambog",
            "magnitude aware guidance",
            "raag",
            "ratio aware adaptive guidance",
            "few steps",
            "burnt",
            "high cfg",
        ),
    )

    def __post_init__(self):
        check_params(self)

    def branches(self) -> tuple[Branch, ...]:
        return () if self.alpha == 0 else (NEGATIVE,)

    def begin(self) -> Apply:
        def apply(denoised, predictions, step):
            positive, negative = (exact(predictions[branch]) for branch in (POSITIVE, NEGATIVE))
            delta = positive - negative
            length, moved = (norm(d, shapes=step.shapes) for d in (delta, exact(step.x) - negative))
            ratio = length / moved.clamp(min=torch.finfo(moved.dtype).tiny)
            changed = (step.cfg - 1) * torch.expm1(-self.alpha * ratio) * delta
            return (exact(denoised) + changed).to(denoised.dtype)

        return apply

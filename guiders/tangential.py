"""Tangential CFG.   v = v₋' + w (v₊ − v₋'),   v₋' = ⟨v₋, e⟩ e,   e the first right singular vector of [v₊; v₋]

Kwon et al. 2025, "TCFG: Tangential Damping Classifier-free Guidance", arXiv:2503.18137. v is the velocity of the
sampler's path, v = (x − D)/σ: what a flow network gives, and ε where x = x₀ + σ n. So in x₀

    D_t = D + (1 − w)(v₋ − v₋') σ,

where D is the result so far and w the sampler's cfg; all per sample (and modality). Neutral at amount 0, and at cfg 1.

e is the direction that the two have most in common. It needs no decomposition: with a = ‖v₊‖², b = ⟨v₊, v₋⟩,
d = ‖v₋‖² the 2×2 matrix [[a, b], [b, d]] turns by the angle θ into a diagonal one, tan 2θ = 2b / (a − d), and

    v₋' = sin θ (cos θ v₊ + sin θ v₋) = (2b v₊ + (h − a + d) v₋) / 2h,   h = √((a − d)² + 4b²).

Paper: scores, that is ε. The authors' listing and diffusers take what the network gives, which is not this for v
prediction. The host's TCFG takes x − D, and is this. Where h is 0 no direction is the first, and v₋ stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import NEGATIVE, POSITIVE, About, Apply, Branch, GuidanceRule, check_params, param
from .linalg import dot, exact

AMOUNT = (
    "How much of the correction is applied. 0 is off, 1 is the paper's. It makes CFG a little weaker, so "
    "cfg may be higher."
)


@dataclass(frozen=True)
class TangentialCFG(GuidanceRule):
    """Changes the sampler's own CFG. Raises ValueError for an amount out of range."""

    amount: float = param(1.0, AMOUNT, low=0.0, high=1.0, step=0.05, off=0.0)

    corrects_cfg: ClassVar[bool] = True
    about: ClassVar[About] = About(
        node_id="BeyondCFGTangential",
        name="Tangential CFG",
        title="Tangential CFG (TCFG)",
        group="CFG corrections",
        summary=(
            "Makes pictures calmer with CFG, on any model. It keeps only the part of the negative prediction that "
            "the positive prediction has too. Takes no extra time."
        ),
        paper="arXiv:2503.18137",
        aliases=(
            "tcfg",
            "tangential damping cfg",
            "tangential damping",
            "singular value",
            "svd",
        ),
    )

    def __post_init__(self):
        check_params(self)

    def branches(self) -> tuple[Branch, ...]:
        return () if self.amount == 0 else (NEGATIVE,)

    def begin(self) -> Apply:
        def apply(denoised, predictions, step):
            positive, negative = (exact(step.x) - exact(predictions[branch]) for branch in (POSITIVE, NEGATIVE))
            ofs = ((positive, positive), (positive, negative), (negative, negative))
            a, b, d = (dot(one, other, shapes=step.shapes) for one, other in ofs)
            h = torch.hypot(a - d, 2 * b)
            common = torch.where(h > 0, (b / h) * positive + (h - a + d) / (2 * h) * negative, negative)  # v₋' σ
            changed = self.amount * (1 - step.cfg) * (negative - common)
            return (exact(denoised) + changed).to(denoised.dtype)

        return apply

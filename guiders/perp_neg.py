"""Perp-Neg.   D = D₀ + w (Δ₊ − n Δ₋⊥),   Δ± = D± − D₀,   Δ₋⊥ at right angles to Δ₊

Armandpour et al. 2023, "Re-imagine the Negative Prompt Algorithm", arXiv:2304.04968. D₀ is the prediction for a third,
empty prompt. What the negative prompt asks for and the positive one asks for too is left alone. Differences of predictions
are the same in ε, v and x₀ up to a factor, so the formula is the same in each.

Here it is CFG with another negative, so that the sampler's own CFG makes it, and what corrects that comes after:

    D = D'₋ + w (D₊ − D'₋),   D'₋ = D₀ + n w/(w − 1) Δ₋⊥

⊥ is of one sample (and modality). The host's Perp-Neg takes it over the whole batch, so there a picture depends on its
neighbours; of a batch of one the two are equal. Where Δ₊ is 0 it has no direction, and Δ₋⊥ is Δ₋; the host's is NaN.
Neutral at amount 0, and at cfg 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from .base import NEGATIVE, POSITIVE, About, Apply, Branch, DrawnConditioning, GuidanceRule, check_params, param
from .linalg import exact, project

ABOUT = About(
    node_id="BeyondCFGPerpNeg",
    name="Perp-Neg",
    title="Perpendicular Negative (Perp-Neg)",
    group="Negative prompts",
    summary=(
        "A negative prompt that takes away only what the positive prompt does not ask for. It helps with negatives "
        "that would spoil the picture, such as 'green' for a frog. Needs a third, empty prompt, and cfg above 1. "
        "Takes as much extra time as CFG, or less."
    ),
    paper="arXiv:2304.04968",
    aliases=(
        "perpneg",
        "perp neg",
        "perpendicular negative",
        "perpendicular",
        "third prompt",
        "negative prompt",
    ),
)
SCALE = (
    "How strongly the negative prompt acts. 1 is as strong as the positive prompt. 0 leaves the negative prompt out."
)
AMOUNT = "How much of the method is applied. 0 is off: plain CFG. 1 is the paper's."


@dataclass(frozen=True)
class PerpNeg(GuidanceRule):
    """Changes the negative prediction. Raises ValueError for a parameter out of range."""

    neg_scale: float = param(1.0, SCALE, low=0.0, high=100.0, step=0.05)
    amount: float = param(1.0, AMOUNT, low=0.0, high=1.0, step=0.05, off=0.0)
    empty: DrawnConditioning | None = None  # the third prompt

    corrects_cfg: ClassVar[bool] = True
    changes: ClassVar[Literal["result", "negative"]] = "negative"

    def __post_init__(self):
        check_params(self)

    def branches(self) -> tuple[Branch, ...]:
        return () if self.amount == 0 or self.empty is None else (Branch(self.empty), NEGATIVE)

    def begin(self) -> Apply:
        if self.empty is None:
            raise ValueError("there is no third prompt")
        empty = Branch(self.empty)

        def apply(negative, predictions, step):
            middle = exact(predictions[empty])
            positive, away = exact(predictions[POSITIVE]) - middle, exact(negative) - middle
            _, orthogonal = project(away, positive, step.shapes)
            changed = middle + self.neg_scale * step.cfg / (step.cfg - 1) * orthogonal
            return torch.lerp(exact(negative), changed, self.amount).to(negative.dtype)

        return apply

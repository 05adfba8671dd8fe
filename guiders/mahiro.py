"""Mahiro.   D_m = D + ½ (1 − c)(w − 1) D₋,   c = the mean over positions of cos(√(w D₋), √((w D₊ + D_cfg)/2))

The host's node Mahiro, now Positive-Biased Guidance; there is no paper. It changes CFG, Ho & Salimans 2022,
arXiv:2207.12598: D_cfg = D₋ + w (D₊ − D₋). D is the result so far and w the sampler's cfg. √ is of each number's
magnitude and keeps its sign. cos is between the channels of one position; c is of one sample (and modality). In x₀, as
there. Neutral at amount 0, and at cfg 1.

There it is written ¼ (s D_cfg + (4 − s) w D₊) with s = 2 (1 + c): a mean of CFG and w D₊, which is CFG that takes nothing
of the negative away. w D₊ − D_cfg is (w − 1) D₋, so that is this. There c is the mean over the whole batch, so that
samples change each other; and of a packed latent the channels are one, and c is of all modalities together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import NEGATIVE, POSITIVE, About, Apply, Branch, GuidanceRule, Latent, check_params, param
from .linalg import exact, in_shape, per_sample

AMOUNT = "How much of the correction is applied. 0 is off. 1 is as ComfyUI's own node."


@dataclass(frozen=True)
class Mahiro(GuidanceRule):
    """Changes the sampler's own CFG. Raises ValueError for an amount out of range."""

    amount: float = param(1.0, AMOUNT, low=0.0, high=1.0, step=0.05, off=0.0)

    corrects_cfg: ClassVar[bool] = True
    about: ClassVar[About] = About(
        node_id="BeyondCFGMahiro",
        name="Mahiro",
        title="Mahiro (Positive-Biased Guidance)",
        group="CFG corrections",
        summary=(
            "Makes pictures follow the prompt more, and avoid the negative prompt less. The less alike both "
            "predictions are, the less of the negative one is taken away. Takes no extra time."
        ),
        aliases=(
            "mahiro cfg",
            "positive-biased guidance",
            "similarity-adaptive guidance",
            "positive biased cfg",
        ),
    )

    def __post_init__(self):
        check_params(self)

    def branches(self) -> tuple[Branch, ...]:
        return () if self.amount == 0 else (NEGATIVE,)

    def begin(self) -> Apply:
        def apply(denoised, predictions, step):
            def given_back(positive: Latent, negative: Latent) -> Latent:
                between = step.cfg * positive - (step.cfg - 1) / 2 * negative  # of w D₊ and CFG
                roots = (_root(value) for value in (step.cfg * negative, between))
                alike = torch.cosine_similarity(*roots, dim=1).unsqueeze(1)
                return (1 - alike.mean(per_sample(alike), keepdim=True)) / 2 * (step.cfg - 1) * negative

            pair = (exact(predictions[branch]) for branch in (POSITIVE, NEGATIVE))
            return (exact(denoised) + self.amount * in_shape(given_back, *pair, shapes=step.shapes)).to(denoised.dtype)

        return apply


def _root(x: Latent) -> Latent:
    return x.abs().sqrt() * x.sign()

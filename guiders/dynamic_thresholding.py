"""Dynamic thresholding.   D' = m + (r/s) clip(D − m, −s, s),   s = max(r, the percentile of |D − m|)

m is the mean of one channel, and r the greatest |D_mimic − its mean| in the channel of D_mimic = D₊ + (w_m − 1)(D₊ − Dᵣ),
which is what CFG at the mimic scale w_m gives. So every channel keeps its mean, and gets the range that a lower cfg has.
Of one sample (and modality). Dᵣ is the negative's prediction with CFG, without it the positive's: no row more.
Neutral at amount 0. D stays wherever it lies within the range.

mcmonkey4eva and others, github.com/mcmonkeyprojects/sd-dynamic-thresholding, after Saharia et al. 2022, "Imagen",
arXiv:2205.11487, section 2.3: there D is in pixels, m is 0 and r is 1. Latents have no such range, so it is taken from a
second CFG. Here D is whatever the rules before have made; with CFG alone that is the authors' formula, at their settings
MEAN, AD and separate channels. Their other settings are left out: schedules of the scales, as a schedule is an input
here; ZERO and STD, which are a rescale; and one range for all, which takes samples of a batch as one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import POSITIVE, REFERENCE, About, Apply, Branch, GuidanceRule, Latent, check_params, param
from .linalg import exact, in_shape

AMOUNT = "How much of the correction is applied. 0 is off, 1 is all of it."
MIMIC = (
    "A cfg at which this model has good colours. The result gets the contrast of this cfg. The authors "
    "use 7. Lower is calmer."
)
PERCENTILE = (
    "How much of the strongest values is kept. 1 keeps all of them. Lower cuts off more: more contrast "
    "stays, and the strongest colours are lost. 0.9 to 1 are usual."
)


@dataclass(frozen=True)
class DynamicThresholding(GuidanceRule):
    """Narrows what the rules before it have made. Raises ValueError for a parameter out of range."""

    amount: float = param(1.0, AMOUNT, low=0.0, high=1.0, step=0.05, off=0.0)
    mimic_scale: float = param(7.0, MIMIC, low=0.0, high=100.0, step=0.5)
    percentile: float = param(1.0, PERCENTILE, low=0.0, high=1.0, step=0.005)

    about: ClassVar[About] = About(
        node_id="BeyondCFGDynamicThresholding",
        name="Dynamic Thresholding",
        group="CFG corrections",
        summary=(
            "Keeps colours natural at a very high cfg, such as 10 and more. It gives the result the range of numbers "
            "that a lower cfg has, in every channel. It acts on all guidance nodes before it, so put it last. Takes "
            "no extra time."
        ),
        paper="arXiv:2205.11487",
        aliases=(
            "dynthres",
            "dynamic thresholding",
            "cfg fix",
            "mimic scale",
            "threshold percentile",
            "cfg scale fix",
            "burnt",
            "oversaturation",
            "high cfg",
        ),
    )

    def __post_init__(self):
        check_params(self)

    def branches(self) -> tuple[Branch, ...]:
        return () if self.amount == 0 else (POSITIVE, REFERENCE)

    def begin(self) -> Apply:
        def apply(denoised, predictions, step):
            result, positive, reference = map(exact, (denoised, predictions[POSITIVE], predictions[REFERENCE]))
            mimicked = positive + (self.mimic_scale - 1) * (positive - reference)
            narrow = functools.partial(_narrowed, percentile=self.percentile)
            thresholded = in_shape(narrow, result, mimicked, shapes=step.shapes)
            return torch.lerp(result, thresholded, self.amount).to(denoised.dtype)

        return apply


def _narrowed(result: Latent, mimicked: Latent, percentile: float) -> Latent:
    """`result` with the range that `mimicked` has in each channel, [batch, channels, *spatial]."""
    (deviation, mean), (wanted, _) = (_centred(x.reshape(*x.shape[:2], -1)) for x in (result, mimicked))
    wanted = wanted.abs().amax(-1, keepdim=True)
    limit = torch.maximum(wanted, _quantile(deviation.abs(), percentile))
    narrow = deviation.clamp(-limit, limit) / torch.where(limit > 0, limit, 1.0) * wanted
    return (mean + narrow).reshape(result.shape)


def _centred(x: Latent) -> tuple[Latent, Tensor]:
    """(deviations from the mean of the last axis, that mean)."""
    mean = (x / x.shape[-1]).sum(-1, keepdim=True)
    return x - mean, mean


def _quantile(x: Latent, part: float) -> Tensor:
    """As torch.quantile of the last axis, which refuses what is as large as a video."""
    place = part * (x.shape[-1] - 1)
    ranked = x.sort(-1).values
    below, above = (ranked[..., i : i + 1] for i in (int(place), min(int(place) + 1, x.shape[-1] - 1)))
    return torch.lerp(below, above, place - int(place))

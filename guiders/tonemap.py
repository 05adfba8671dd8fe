"""Tonemap.   D' = D₊ + Δ / (1 + |Δ|/t),   Δ = D − D₊,   t = k (mean |Δ| + 5 std |Δ|)

| | is the length of the channels at one position; mean and std are over the positions of one sample (and modality).
Strong guidance is shortened most, as bright light is by Reinhard et al. 2002, "Photographic Tone Reproduction for Digital
Images", doi:10.1145/566654.566575: nowhere does it become longer than t. Its direction stays. No paper on guidance; the
formula is the host's, LatentOperationTonemapReinhard under LatentApplyOperationCFG. D is whatever the rules before have
made. Neutral at amount 0.

Host: D₋ + w T(D₊ − D₋), T being this map, so that also the step from the negative to the positive is shortened. Here:
D₊ + T(D − D₊), on the whole direction so far, because a sum of terms has no one negative; with CFG alone that is
D₊ + (w − 1) T(D₊ − D₋), since T of a multiple is the multiple of T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import POSITIVE, About, Apply, Branch, GuidanceRule, Latent, check_params, param
from .linalg import exact, in_shape, per_sample, std

AMOUNT = "How much of the correction is applied. 0 is off, 1 is all of it."
MULTIPLIER = (
    "The limit on how strong guidance may be in one place, compared with the strong places of this "
    "picture. 1 is usual. Lower is calmer. 100 is nearly off."
)


@dataclass(frozen=True)
class Tonemap(GuidanceRule):
    """Changes the direction that the rules before it have made. Raises ValueError for a parameter out of range."""

    amount: float = param(1.0, AMOUNT, low=0.0, high=1.0, step=0.05, off=0.0)
    multiplier: float = param(1.0, MULTIPLIER, low=0.01, high=100.0, step=0.05)

    about: ClassVar[About] = About(
        node_id="BeyondCFGTonemap",
        name="Tonemap",
        title="CFG Tonemap (Reinhard)",
        group="CFG corrections",
        summary=(
            "Keeps places from burning at a high cfg. It makes guidance weaker where it is strongest, and changes "
            "little elsewhere. It acts on all guidance nodes before it. Takes no extra time."
        ),
        aliases=(
            "reinhard",
            "tonemap reinhard",
            "latent operation",
            "hdr",
            "high cfg",
            "oversaturation",
            "burnt",
        ),
    )

    def __post_init__(self):
        check_params(self)

    def branches(self) -> tuple[Branch, ...]:
        return () if self.amount == 0 else (POSITIVE,)

    def begin(self) -> Apply:
        def mapped(delta: Latent) -> Latent:
            axes = per_sample(delta)
            largest = delta.abs().amax(axes, keepdim=True)  # else squares could overflow
            length = (delta / torch.where(largest > 0, largest, 1.0)).norm(dim=1, keepdim=True)
            places = length.shape[1:].numel()
            spread = std(length) * math.sqrt(places / max(places - 1, 1))  # of a sample from many, as torch.std
            top = self.multiplier * (length.mean(axes, keepdim=True) + 5 * spread)
            return delta / (1 + length / torch.where(top > 0, top, 1.0))

        def apply(denoised, predictions, step):
            result, positive = exact(denoised), exact(predictions[POSITIVE])
            calmed = positive + in_shape(mapped, result - positive, shapes=step.shapes)
            return torch.lerp(result, calmed, self.amount).to(denoised.dtype)

        return apply

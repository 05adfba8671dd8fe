"""CFG rescale.   D_φ = φ D std(D₊)/std(D) + (1 − φ) D

Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv:2305.08891, section 3.4. D is
whatever the rules before have made, the sampler's CFG included; std is of one sample (and modality). Neutral at φ = 0.

Paper: the network's own output, a v prediction, as also the host's RescaleCFG, which turns every model's output into a
variance-preserving v first. Here: x₀, because that means the same for every parametrisation and after any sum of terms.
Not linear, so the two differ. A D without any spread has none to rescale, and stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import POSITIVE, About, Apply, Branch, GuidanceRule, check_params, param
from .linalg import std


@dataclass(frozen=True)
class GuidanceRescale(GuidanceRule):
    """Rescales what the rules before it have made. Raises ValueError for an amount out of range."""

    amount: float = param(
        0.7,
        "How far the contrast is set back. 0 is off. 0.7 is the paper's. 1 gives the contrast of the prompt "
        "alone. Higher is calmer and less burnt; 1 is often dull.",
        low=0.0,
        high=1.0,
        step=0.05,
        off=0.0,
    )

    about: ClassVar[About] = About(
        node_id="BeyondCFGRescale",
        name="Rescale",
        title="CFG Rescale",
        group="CFG corrections",
        summary=(
            "Mends burnt colours and hard contrast, from a high cfg or several guidance nodes. It sets the contrast "
            "back towards what the prompt alone gives. It acts on all guidance nodes before it, so put it last. "
            "Takes no extra time."
        ),
        paper="arXiv:2305.08891",
        aliases=(
            "cfg rescale",
            "rescalecfg",
            "guidance rescale",
            "oversaturation",
            "overexposed",
            "burnt colours",
            "burnt",
        ),
    )

    def __post_init__(self):
        check_params(self)

    def branches(self) -> tuple[Branch, ...]:
        return () if self.amount == 0 else (POSITIVE,)

    def begin(self) -> Apply:
        def apply(denoised, predictions, step):
            spread, wanted = (std(d, shapes=step.shapes) for d in (denoised, predictions[POSITIVE]))
            ratio = torch.where(spread > 0, wanted / spread, 1.0)
            return (denoised * (self.amount * ratio + (1 - self.amount))).to(denoised.dtype)

        return apply

"""Self-Guidance.   D₋ₖ = D(x, σ; t')   with   t' = min(t + δ T, T)

Li et al. 2024, "Self-Guidance: Boosting Flow and Diffusion Generation on Their Own", arXiv:2412.05827. The network is
told that there is more noise in x than there is, so what it predicts is too smooth. Moving away from that takes away
what is unlikely at the true noise level. x, σ and the input scalings stay, so the guidance is the same in ε, v and x₀.

Paper and authors' code: t counts to 1000 and t' = min(t + 10, 1000), for the positive alone where there is CFG; the scale
is 3, for Flux 1. Here: δ is a fraction of all times that the network knows, so that it means the same where t counts to 1
or by log σ. A network of 1000 noise levels is told 9.99 more for δ = 0.01, since its last t is 999. Neutral at δ = 0 and
at scale 0. TSG is its neighbour: it adds noise to the embedding of the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import About, TimeShift, check_params, param
from .layers import Layer


@dataclass(frozen=True)
class ShiftedTime(TimeShift):
    """Tells the network a noisier time. Raises ValueError for a shift out of range."""

    layers: tuple[Layer, ...] = ()
    shift: float = param(
        0.01,
        "How wrong the model is told how far sampling has come. 0.01 is one hundredth of the whole way. 0 is off. The "
        "paper uses 0.01. Higher makes the guidance stronger.",
        low=0.0,
        high=1.0,
        step=0.001,
    )

    about: ClassVar[About] = About(
        node_id="BeyondCFGSelfGuidance",
        name="Self-Guidance",
        title="Self-Guidance (SG)",
        summary=(
            "Makes details such as hands better, with or without a prompt. It moves away from what the model "
            "predicts when it is told that there is more noise than there is. Takes as much extra time as CFG, or "
            "less."
        ),
        paper="arXiv:2412.05827",
        aliases=(
            "self guidance",
            "SG",
            "time shift",
            "timestep shift",
            "noisier time",
            "guidance without cfg",
            "hands",
            "anatomy",
            "detail",
            "better quality",
        ),
    )

    def __post_init__(self):
        check_params(self)

    @property
    def neutral(self) -> bool:
        return self.shift == 0

    def told(self, time: Tensor, least: Tensor, largest: Tensor) -> Tensor:
        """min(t + δ T, T)"""
        return torch.minimum(time + self.shift * (largest - least), largest)

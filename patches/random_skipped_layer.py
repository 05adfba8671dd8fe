"""Stochastic self-guidance, S².   block(x) → x for a few blocks that are drawn anew at each step

Chen et al. 2025, "S²-Guidance: Stochastic Self Guidance for Training-Free Enhancement of Diffusion Models",
arXiv:2508.12880. The weak prediction D̂ is the positive's with k random blocks of n left out, and

    D = CFG + ω (D₊ − D̂),     which is Skip Layer's rule with s = ω.

Paper: ω = 0.25; about a tenth of the blocks, of which 1 or 2 of 24 were best; never the first block; the middle 80 % of
sampling. Its first two versions have CFG − ω D̂, without ω D₊, which also makes the prediction smaller by the factor
1 − ω; the later ones have the above, which is followed here.
Here: k = max(1, round(share · n)) of the chosen layers, by default those from a tenth to nine tenths of the depth. Each
sample has its own draw, by (seed, step, sample): no picture depends on its batch, and all evaluations of a step leave out
the same. Neutral at scale 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import About, BlockPerturbation, Moment, check_params, param
from .layers import Layer


@dataclass(frozen=True)
class RandomSkippedLayer(BlockPerturbation):
    """Leaves some of its layers out, by chance. Raises ValueError for a parameter out of range."""

    layers: tuple[Layer, ...]
    share: float = param(
        0.1,
        "How many layers are left out in each step, as a fraction; always at least one. The paper uses about "
        "0.1. Higher changes the picture more.",
        low=0.01,
        high=1.0,
        step=0.01,
    )

    about: ClassVar[About] = About(
        node_id="BeyondCFGS2",
        name="Random Skip Layer",
        title="Random Skip Layer Guidance (S²)",
        summary=(
            "Makes structure and motion better with transformers, and you need not choose layers. It moves away from "
            "what the model predicts with a few layers left out, other ones in each step. Takes as much extra time "
            "as CFG, or less."
        ),
        paper="arXiv:2508.12880",
        aliases=(
            "S²",
            "S2",
            "S2-Guidance",
            "stochastic self-guidance",
            "random skip layer",
            "stochastic block dropping",
            "anatomy",
            "better quality",
        ),
        default=0.25,
        window=(0.1, 0.9),
        auto="0.1-0.9",
    )

    def __post_init__(self):
        check_params(self)

    @property
    def random(self) -> bool:
        return True

    def left_out(self, layer: Layer, samples: int, moment: Moment) -> Tensor:
        """Which samples leave `layer` out, [samples]."""
        count, at = max(1, round(self.share * len(self.layers))), self.layers.index(layer)
        generators = moment.generators(samples, torch.device("cpu"), salt="skipped layers")
        order = [torch.randperm(len(self.layers), generator=generator) for generator in generators]
        return torch.stack([(layers[:count] == at).any() for layers in order])

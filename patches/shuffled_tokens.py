"""Token Perturbation Guidance.   x → P x,   P a random permutation of the picture's tokens

Rajabi et al. 2025, "Token Perturbation Guidance for Diffusion Models", arXiv:2506.10036. The tokens that enter a block
change places and stay there: no token is changed, so norms stay, and what is global stays while structure is lost. Each
block has a permutation of its own.

Authors' code: one permutation for all samples of a batch, drawn at each evaluation. Here: one for each sample, step and
layer, the same in all evaluations of a step, so that no picture depends on its neighbours or on the sampler's order.
Text and other tokens beside the picture keep their places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import About, TokenCall, TokenPerturbation
from .layers import Layer


@dataclass(frozen=True)
class ShuffledTokens(TokenPerturbation):
    """Shuffles the picture's tokens that enter its layers."""

    layers: tuple[Layer, ...]

    about: ClassVar[About] = About(
        node_id="BeyondCFGTPG",
        name="TPG",
        title="Token Perturbation Guidance (TPG)",
        summary=(
            "Makes details and structure sharper, with or without a prompt. It moves away from what the model "
            "predicts when the parts of the picture are shuffled inside the network. Takes as much extra time as "
            "CFG, or less."
        ),
        paper="arXiv:2506.10036",
        aliases=(
            "token perturbation guidance",
            "tpg",
            "token shuffle",
            "shuffle guidance",
            "guidance without cfg",
            "detail",
            "sharp",
            "better quality",
        ),
    )

    @property
    def random(self) -> bool:
        return True

    def tokens(self, call: TokenCall) -> Tensor:
        """P x, with a P of each row."""
        rows, count, _ = call.tokens.shape
        generators = call.moment.generators(rows, torch.device("cpu"), f"{self.about.name} {call.layer}")
        places = torch.stack([torch.randperm(count, generator=generator) for generator in generators])
        return call.tokens.gather(1, places.to(call.tokens.device)[..., None].expand_as(call.tokens))

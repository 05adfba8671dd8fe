"""Self-Swap Guidance.   x → x with the r T pairs of tokens that are least alike swapped, then the r C such channels

Zhang et al. 2026, "Guiding a Diffusion Model by Swapping Its Tokens", arXiv:2604.08048. Of the picture's tokens that
enter a block those pairs with the least cosine change places, and then, of what that gives, those pairs of channels.
Nothing is drawn. Neutral at r = 0.

Authors' code: a token that is in several pairs is copied to several places, since two scatters write over each other; which
of them wins depends on the device. Here, as there on a CPU: the pair that is most alike wins, and where the token is the
second of its pair before where it is the first. T² cosines are made in pieces, so that a video fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import CHUNK_ELEMENTS, About, TokenCall, TokenPerturbation, check_params, param
from .layers import Layer


@dataclass(frozen=True)
class SwappedTokens(TokenPerturbation):
    """Swaps the picture's most unlike tokens and channels. Raises ValueError for a share out of range."""

    layers: tuple[Layer, ...]
    share: float = param(
        0.1,
        "How many parts of the picture change places, as a fraction. 0 is off. The paper uses 0.1. Higher "
        "changes the picture more.",
        low=0.0,
        high=1.0,
        step=0.01,
    )

    about: ClassVar[About] = About(
        node_id="BeyondCFGSSG",
        name="SSG",
        title="Self-Swap Guidance (SSG)",
        summary=(
            "Makes details and structure sharper, gently, and over a wide range of strengths. It moves away from "
            "what the model predicts when the most unlike parts of the picture change places inside the network. "
            "Takes as much extra time as CFG, or less."
        ),
        paper="arXiv:2604.08048",
        aliases=(
            "self-swap guidance",
            "ssg",
            "token swap",
            "swap tokens",
            "guidance without cfg",
            "detail",
            "sharp",
            "better quality",
        ),
    )

    def __post_init__(self):
        check_params(self)

    @property
    def neutral(self) -> bool:
        return self.share == 0

    def tokens(self, call: TokenCall) -> Tensor:
        """The tokens with the least alike of them swapped, and then the least alike channels."""
        swapped = [self._swapped(self._swapped(row).mT).mT for row in call.tokens]
        return torch.stack(swapped)

    def _swapped(self, vectors: Tensor) -> Tensor:
        """[n, size] with the least alike of its n vectors in each other's places."""
        count = int(len(vectors) * self.share)
        if not count:
            return vectors
        first, second = least_alike(vectors, count)
        return vectors[_places(len(vectors), first, second)]


def least_alike(vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of [n, size] vectors the `count` pairs i < j with the least cosine, as (i, j), each [count], the least first."""
    n = len(vectors)
    unit = torch.nn.functional.normalize(vectors.float(), dim=1)
    count, step = min(count, n * (n - 1) // 2), max(1, CHUNK_ELEMENTS // n)
    cosines, pairs = unit.new_empty(0), torch.empty(0, dtype=torch.long, device=vectors.device)
    for start in range(0, n, step):
        rows = torch.arange(start, min(start + step, n), device=vectors.device)
        found = (unit[rows] @ unit.mT).masked_fill(rows[:, None] >= torch.arange(n, device=vectors.device), torch.inf)
        best, at = found.flatten().topk(min(count, found.numel()), largest=False)
        cosines, pairs = torch.cat([cosines, best]), torch.cat([pairs, at + start * n])
        cosines, kept = cosines.topk(min(count, len(cosines)), largest=False)
        pairs = pairs[kept]
    return pairs // n, pairs % n


def _places(n: int, first: Tensor, second: Tensor) -> Tensor:
    """From which place each of n tokens comes. Of a token's several pairs the last counts, where it is the second before
    where it is the first."""
    ranks, none = torch.arange(len(first), device=first.device), torch.full((n,), -1, device=first.device)
    as_first = none.scatter_reduce(0, first, ranks, "amax")
    as_second = none.scatter_reduce(0, second, ranks, "amax")
    own = torch.arange(n, device=first.device)
    places = torch.where(as_first >= 0, second[as_first.clamp(min=0)], own)
    return torch.where(as_second >= 0, first[as_second.clamp(min=0)], places)

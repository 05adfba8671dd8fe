"""Windows of a picture: parts of it, all of one size, that overlap and together cover it.

Along a side of S cells a window has k, a fraction of S. n windows stand evenly from one end to the other, where n is the
least that lets neighbours overlap as much as is asked for:

    n = 1 + ⌈(S − k) / (k − o)⌉,        window i begins at i (S − k) / (n − 1).

So they are as in the code of arXiv:2411.10257: of one size, with one stride, ending where the picture ends. Sizes and
places are rounded to a power of two that divides S and is at most S / 8, so that they are multiples of a network's patch
where S is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

GRAIN = 16  # the largest patch of a network of the host


class Window(NamedTuple):
    """A part of a picture, in cells of the latent."""

    top: int
    left: int
    height: int
    width: int

    def of(self, latent: Tensor) -> Tensor:
        """That part of a latent [..., height, width], of all its frames: a view."""
        return latent[..., self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class Windows:
    """How a picture is cut into windows."""

    size: float  # of each side of the picture, below 1
    overlap: float  # that neighbours have at least, as a fraction of the window

    def of(self, height: int, width: int) -> tuple[Window, ...]:
        """The windows of a picture, row by row. One alone where a picture is too small to be cut."""
        rows, columns = self._along(height), self._along(width)
        return tuple(Window(top, left, h, w) for top, h in rows for left, w in columns)

    def crops(self, latent: Tensor) -> list[Tensor]:
        """The windows of a latent [..., height, width], each a view."""
        return [window.of(latent) for window in self.of(*latent.shape[-2:])]

    def stitched(self, crops: list[Tensor], height: int, width: int) -> Tensor:
        """What stands in the windows `crops` put together, [..., height, width]: where they overlap, their mean."""
        whole = crops[0].new_zeros(*crops[0].shape[:-2], height, width)
        for window, crop in zip(self.of(height, width), crops, strict=True):
            window.of(whole).add_(crop)
        return whole / self.counts(height, width).to(whole)

    def counts(self, height: int, width: int) -> Tensor:
        """How many windows each cell is in, [height, width]."""
        counts = torch.zeros(height, width, dtype=torch.int64)
        for window in self.of(height, width):
            window.of(counts).add_(1)
        return counts

    def _along(self, side: int) -> list[tuple[int, int]]:
        """(begin, length) of each window along a side."""
        grain = math.gcd(side, grain_of(side))
        cells = side // grain
        size = max(1, min(cells - 1, round(self.size * cells)))
        stride = max(1, math.floor(size * (1 - self.overlap) + 1e-9))
        count = 1 + math.ceil((cells - size) / stride)
        begins = [round(i * (cells - size) / max(1, count - 1)) for i in range(count)]
        return [(begin * grain, size * grain) for begin in begins]


def grain_of(side: int) -> int:
    """The power of two to which windows along a side are rounded, where it divides the side: at least 2, and so small
    that eighths of a side stay what they are."""
    return 2 ** max(1, min(GRAIN, side // 8).bit_length() - 1)

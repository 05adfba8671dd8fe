"""On which grid the picture's tokens lie, and where."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .probes import NotProven

SIZES = (1, 2, 4, 8, 16, 32)  # of a patch, for height and width
FRAMES = 4  # the most frames in a patch
ENOUGH = 64  # tokens of which a grid has foretold whether they change: no other would by chance


class Grids:
    """The grids that tokens may lie on, fewer with each mask that they have to foretell."""

    def __init__(self, spatial: tuple[int, ...], counts: set[int]):
        self._spatial = spatial
        self._possible = {count: [*_possible(spatial, count)] for count in counts}
        self._left: dict[int, list[tuple]] = {}
        self._foretold: dict[int, int] = {}  # for each attention, tokens of which it was foretold whether they change
        if not any(self._possible.values()):
            sides = " × ".join(map(str, spatial))
            raise NotProven("grid", f"no grid over {sides} has {', '.join(map(str, sorted(counts)))} tokens")

    def masks(self) -> Iterator[Tensor]:
        """Cells of the latent to change: single ones, twice, and whole patches of the largest size."""
        largest = [max(patch[axis] for of in self._possible.values() for patch, _ in of) for axis in self._axes]
        for seed, (patch, share) in enumerate(((None, 0.12), (None, 0.12), (largest, 0.4))):
            patch = patch or [1] * len(self._spatial)
            coarse = [-(-side // size) for side, size in zip(self._spatial, patch, strict=True)]
            cells = torch.rand(coarse, generator=torch.Generator().manual_seed(seed)) < share
            if not cells.any() or cells.all():
                cells.view(-1)[0], cells.view(-1)[-1] = True, False
            for axis, size in enumerate(patch):
                cells = cells.repeat_interleave(size, axis)
            yield cells[tuple(slice(0, side) for side in self._spatial)]

    @property
    def _axes(self) -> range:
        return range(len(self._spatial))

    def keep(self, cells: Tensor, changed: dict[int, Tensor]) -> None:
        """Drop the grids that do not foretell which tokens have `changed` in each attention, when these cells did."""
        for at, tokens in changed.items():
            possible = self._left.get(at, self._possible[len(tokens)])
            self._left[at] = [(patch, grid) for patch, grid in possible if _foretells(cells, patch, tokens)]
            told = len(tokens) if tokens.any() and not tokens.all() else 0
            self._foretold[at] = self._foretold.get(at, 0) + told

    @property
    def are_sure(self) -> bool:
        """Whether no further mask is needed."""
        return all(len(left) == 1 for left in self._left.values()) and min(self._foretold.values()) >= ENOUGH

    def of(self, at: int) -> tuple[int, ...]:
        """The one grid of attention number `at`. Raises NotProven where there is none, or more."""
        if len(left := self._left[at]) != 1:
            kinds = f"{len(left)} grids foretell" if left else "no grid foretells"
            raise NotProven("grid", f"{kinds} which tokens change when cells of the latent do")
        return left[0][1]


def _possible(spatial: tuple[int, ...], count: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(patch, grid) of each way to cut a latent into `count` patches; a side that they do not divide is filled up."""
    for patch in itertools.product(SIZES, repeat=len(spatial)):
        uneven = len(spatial) > 1 and patch[-1] != patch[-2]
        long = len(spatial) == 3 and patch[0] > FRAMES
        if uneven or long or any(size > 1 and size > side for size, side in zip(patch, spatial, strict=True)):
            continue
        grid = tuple(-(-side // size) for side, size in zip(spatial, patch, strict=True))
        if math.prod(grid) == count:
            yield patch, grid


def _foretells(cells: Tensor, patch: tuple[int, ...], changed: Tensor) -> bool:
    """Whether exactly the tokens in `changed` have a cell in `cells`. The host fills up sides with zeros, or from the
    other end."""
    for wraps in (False, True):
        filled = cells.float()
        for axis, size in enumerate(patch):
            if missing := -filled.shape[axis] % size:
                more = filled.narrow(axis, 0, missing)
                filled = torch.cat([filled, more if wraps else torch.zeros_like(more)], axis)
        for axis, size in enumerate(patch):
            filled = filled.unflatten(axis, (-1, size)).amax(axis + 1)
        if torch.equal(filled.flatten() > 0, changed.cpu()):
            return True
    return False


def place(tokens: list[int], grid: tuple[int, ...]) -> tuple[int, int]:
    """(where the picture begins, tokens of another picture after each line). Raises NotProven for any other order."""
    width = grid[-1]
    across = tokens[width] - tokens[0] - width if len(tokens) > width else 0
    lines = range(len(tokens) // width)
    if tokens != [tokens[0] + line * (width + across) + column for line in lines for column in range(width)]:
        raise NotProven("place", "the tokens of the picture lie neither together nor line by line")
    return tokens[0], across

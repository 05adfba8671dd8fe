"""What other packs make of a UNet's tokens before its self-attention, such as the host's HyperTile: tiles of the
picture, which stand one after the other in the batch, each an attention of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Place = tuple[str, int, int]  # (stack, index, part) of a layer


@dataclass(frozen=True)
class Tiles:
    """How the picture's tokens were cut into tiles."""

    places: Tensor  # [tiles, tokens of each]: where in the picture each token is
    grid: tuple[int, int] | None  # of a tile, where it is a rectangle of the picture
    keys: str  # "cut" as the queries are; "whole", for the host to divide in their own order; "" for all else

    def cut(self, tokens: Tensor) -> Tensor:
        """[rows, tokens, channels] → [rows · tiles, tokens of a tile, channels]"""
        return tokens[:, self.places].flatten(0, 1)

    def joined(self, of_keys: Tensor) -> Tensor:
        """[rows · tiles, keys of a tile] → [rows, keys], in the picture's order"""
        of_keys = of_keys.reshape(-1, self.places.numel())
        return of_keys if self.keys == "whole" else of_keys[:, self.places.flatten().argsort()]


class Watch:
    """The first and the last of a call's attn1 patches, between which are those of other packs. They see the tokens
    before they become queries, so that tiles of them can be known again to the bit."""

    def __init__(self, layers: set[Place]):
        self._layers, self._seen = layers, []

    def first(self, n: Tensor, context: Tensor, value: Tensor, extra: dict):
        """The host's attn1 patch that runs before those of other packs."""
        self._seen = [(n, context, value)] if (*extra["block"], extra["block_index"]) in self._layers else []
        return n, context, value

    def last(self, n: Tensor, context: Tensor, value: Tensor, _extra: dict):
        """The host's attn1 patch that runs after those of other packs."""
        if self._seen:
            self._seen.append((n, context, value))
        return n, context, value

    def tiles(self, grid: tuple[int, int]) -> Tiles | None:
        """How the picture of this `grid` was cut in the attention that comes now; None: in no way that is known here."""
        seen, self._seen = self._seen, []
        if len(seen) < 2:
            return None
        (before, *sources), (after, *given) = seen
        rows, tokens, _ = before.shape
        count, rest = divmod(after.shape[0], rows)
        if rest or count < 2 or count * after.shape[1] != tokens or tokens != math.prod(grid):
            return None
        for side in dict.fromkeys(
            (grid, (grid[1], grid[0]))
        ):  # the host's own reads a picture's sides the other way round
            for down in (n for n in range(1, count + 1) if count % n == 0):
                places = _places(side, down, count // down, before.device)
                if places is not None and torch.equal(before[:, places].flatten(0, 1), after):
                    shape = (side[0] // down, side[1] * down // count) if side == grid else None
                    return Tiles(places, shape, _keys(Tiles(places, shape, ""), sources, given))
        return None


def _places(side: tuple[int, int], down: int, across: int, device) -> Tensor | None:
    """Of `down` × `across` tiles of a picture."""
    (high, uneven), (wide, odd) = divmod(side[0], down), divmod(side[1], across)
    if uneven or odd:
        return None
    at = torch.arange(side[0] * side[1], device=device).view(down, high, across, wide)
    return at.transpose(1, 2).reshape(down * across, high * wide)


def _keys(tiles: Tiles, sources: list[Tensor], given: list[Tensor]) -> str:
    """What has become of what keys and values are made of."""
    pairs = [*zip(sources, given, strict=True)]
    if all(torch.equal(source, part) for source, part in pairs):
        in_order = torch.equal(tiles.places.flatten().sort().values, tiles.places.flatten())
        return "cut" if in_order else "whole"  # stripes of whole lines are what the host divides them into
    return "cut" if all(torch.equal(tiles.cut(source), part) for source, part in pairs) else ""

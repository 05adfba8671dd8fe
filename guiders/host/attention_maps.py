"""Attention maps of a model call, put together for the whole latent."""

from __future__ import annotations

import uuid

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..base import Latent

Found = dict[uuid.UUID, tuple[Tensor, tuple[int, ...]]]  # conditioning entry → (sums [batch, tokens], grid)


class LastMap:
    """The attention map that a run saw last: it stands in where a cache answers in the network's place."""

    def __init__(self):
        self._map: Latent | None = None

    def update(self, seen: Latent | None) -> Latent | None:
        """`seen`, or the last map where nothing was seen; None where nothing has been seen yet."""
        if seen is not None:
            self._map = seen
        return self._map


def assembled(entries: list[dict], found: Found, x: Latent) -> Tensor | None:
    """The map of the whole latent, [batch, 1, *spatial]: each entry's in its own area, weighted as the host weights its
    prediction. None where no entry of the conditioning was seen."""
    total = torch.zeros_like(x[:, :1])
    weights = total + 1e-37
    seen = [entry for entry in entries if entry["uuid"] in found]
    for entry in seen:
        sums, grid = found[entry["uuid"]]
        size = entry["area"][: len(entry["area"]) // 2] if "area" in entry else x.shape[2:]
        start = entry["area"][len(size) :] if "area" in entry else [0] * len(size)
        place = (slice(None), slice(None), *(slice(at, at + n) for at, n in zip(start, size, strict=True)))
        here = total[place]
        sums = sums.reshape(sums.shape[0], 1, *grid)
        weight = torch.full_like(here, entry.get("strength", 1.0))
        if "mask" in entry:
            mask = entry["mask"].to(x).reshape(-1, 1, *x.shape[2:])
            weight = weight * mask[place] * entry.get("mask_strength", 1.0)
        total[place] += interpolate(sums.to(x), here.shape[2:]) * weight
        weights[place] += weight
    return total / weights if seen else None

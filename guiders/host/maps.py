"""Attention maps of a model call, put together for the whole latent."""

from __future__ import annotations

import uuid

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..base import Latent

Found = dict[uuid.UUID, tuple[Tensor, tuple[int, ...]]]  # row → (sums [batch, tokens], grid)


def assembled(rows: list[dict], found: Found, x: Latent) -> Tensor | None:
    """[batch, 1, *spatial]: each row's map in its own area, weighted as the host weights its prediction. None where no row
    was seen: a cache has answered in the network's place."""
    total = torch.zeros_like(x[:, :1])
    weights = total + 1e-37
    seen = [row for row in rows if row["uuid"] in found]
    for row in seen:
        sums, grid = found[row["uuid"]]
        size = row["area"][: len(row["area"]) // 2] if "area" in row else x.shape[2:]
        start = row["area"][len(size) :] if "area" in row else [0] * len(size)
        place = (slice(None), slice(None), *(slice(at, at + n) for at, n in zip(start, size, strict=True)))
        here = total[place]
        sums = sums.reshape(sums.shape[0], 1, *grid)
        weight = torch.full_like(here, row.get("strength", 1.0))
        if "mask" in row:
            weight = weight * row["mask"].to(x).reshape(-1, 1, *x.shape[2:])[place] * row.get("mask_strength", 1.0)
        total[place] += interpolate(sums.to(x), here.shape[2:]) * weight
        weights[place] += weight
    return total / weights if seen else None

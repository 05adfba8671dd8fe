"""Reductions per sample, whatever the rank; and per modality of a packed latent, so that sound never scales a picture.

A packed latent is [batch, 1, n]: the latents of `shapes` (a step's own; batch first), flat, one after the other. Fewer
than two shapes: not packed. The result of a reduction broadcasts to its latent: [batch, 1, …], or [batch, 1, n] of each
modality's value where the latent is packed.

Everything is in float32 at least, and of numbers divided by the largest one: squares neither overflow nor vanish. A
zero vector has norm 0 and no direction: what is projected on it has no parallel part.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor

from .base import Latent


def per_sample(x: Latent) -> tuple[int, ...]:
    """The axes of one sample."""
    return tuple(range(1, x.ndim))


def exact(x: Latent) -> Latent:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class PerModality(Protocol):
    """(latents that broadcast to each other, shapes = of the latents that they pack) → a tensor that broadcasts to them."""

    def __call__(self, *latents: Latent, shapes: tuple[tuple[int, ...], ...] = ()) -> Tensor: ...


def per_modality(reduce: Callable[..., Tensor]) -> PerModality:
    """`reduce(*latents)`, which broadcasts to each, as a function of latents that may be packed."""

    @functools.wraps(reduce)
    def reduced(*latents: Latent, shapes: tuple[tuple[int, ...], ...] = ()) -> Tensor:
        if len(shapes) < 2:
            return reduce(*latents)
        sizes = [math.prod(shape[1:]) for shape in shapes]
        parts = zip(*(x.split(sizes, -1) for x in latents), strict=True)
        return torch.cat([reduce(*part).expand_as(part[0]) for part in parts], -1)

    return cast(PerModality, reduced)


def in_shape(change: Callable[..., Latent], *latents: Latent, shapes: tuple[tuple[int, ...], ...] = ()) -> Latent:
    """`change(*latents)` of latents of equal shape, or of each modality by itself, [batch, channels, *spatial], where they
    are packed. For what looks at neighbours."""
    if len(shapes) < 2:
        return change(*latents)
    parts = zip(*(x.split([math.prod(shape[1:]) for shape in shapes], -1) for x in latents), strict=True)
    changed = (
        change(*(x.reshape(len(x), *shape[1:]) for x in part)) for part, shape in zip(parts, shapes, strict=True)
    )
    return torch.cat([part.flatten(1)[:, None] for part in changed], -1)


@per_modality
def std(x: Latent) -> Tensor:
    """Standard deviation of a sample's numbers; exactly 0 where all are equal."""
    x, largest = _divided(x)
    x = x - x[(slice(None), *(slice(1) for _ in per_sample(x)))]  # else their mean may miss equal numbers
    deviation = x - x.mean(per_sample(x), keepdim=True)
    return largest * deviation.square().mean(per_sample(x), keepdim=True).sqrt()


@per_modality
def norm(x: Latent) -> Tensor:
    """The Euclidean length of a sample, [batch, 1, …]."""
    x, largest = _divided(x)
    return largest * _norm(x)


@per_modality
def dot(x: Latent, y: Latent) -> Tensor:
    """The inner product of two samples, [batch, 1, …]."""
    (x, largest_x), (y, largest_y) = _divided(x), _divided(y)
    return largest_x * largest_y * (x * y).sum(per_sample(x), keepdim=True)


def project(direction: Latent, onto: Latent, shapes: tuple[tuple[int, ...], ...] = ()) -> tuple[Latent, Latent]:
    """(parallel, orthogonal) parts of `direction`, in its dtype; their sum is `direction`."""
    parallel = _parallel(direction, onto, shapes=shapes)
    return parallel.to(direction.dtype), (direction - parallel).to(direction.dtype)


@per_modality
def _parallel(direction: Latent, onto: Latent) -> Latent:
    (direction, largest), (onto, _) = _divided(direction), _divided(onto)
    unit = onto / _norm(onto).clamp(min=1)  # less than 1 only where it is 0
    return largest * ((direction * unit).sum(per_sample(unit), keepdim=True) * unit)


def _divided(x: Latent) -> tuple[Latent, Tensor]:
    """(x divided by its largest magnitude, that magnitude)."""
    x = exact(x)
    largest = x.abs().amax(per_sample(x), keepdim=True)
    return x / torch.where(largest > 0, largest, 1.0), largest


def _norm(x: Latent) -> Tensor:
    return x.square().sum(per_sample(x), keepdim=True).sqrt()

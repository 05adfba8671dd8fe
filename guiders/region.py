"""Where in the picture a guidance acts.   D + k m (rule(D) − D), m of each place

m is 1 where it acts, 0 where it does not, and anything between. It is drawn in pixels; each number of the latent gets
the mean of m over the pixels that it stands for. A video may have one for each of its frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate


@dataclass(frozen=True, eq=False)
class Region:
    """values: [masks, height, width], from 0 to 1. Raises ValueError for anything else."""

    values: Tensor

    def __post_init__(self):
        values = self.values
        if values.ndim != 3 or not values.numel():
            raise ValueError(f"region is a tensor {[*values.shape]}; it must be [masks, height, width]")
        if not (values.min() >= 0 and values.max() <= 1):  # also refuses NaN
            raise ValueError("region has numbers that are not from 0 to 1")

    @property
    def is_empty(self) -> bool:
        """Whether it is 0 everywhere."""
        return not bool(self.values.any())

    def inverted(self) -> Region:
        """1 where it is 0."""
        return Region(1 - self.values)

    def of(self, latent: tuple[int, ...], shapes: tuple[tuple[int, ...], ...] = ()) -> Tensor:
        """m for a latent of this shape, [1 or batch, 1, …], which broadcasts to it. In a packed latent, whose latents have
        these `shapes`, it is of the first; what else is packed, such as sound, gets 1.

        Raises ValueError where the latent is no picture or video, or has another aspect or another number of pictures."""
        if len(shapes) < 2:
            return self._of(latent)
        first = self._of(shapes[0])
        picture = first.expand(len(first), *shapes[0][1:]).flatten(1)
        others = picture.new_ones(len(first), sum(math.prod(shape[1:]) for shape in shapes[1:]))
        return torch.cat([picture, others], -1)[:, None]

    def _of(self, latent: tuple[int, ...]) -> Tensor:
        samples, _, *spatial = latent
        count, *size = self.values.shape
        if len(spatial) not in (2, 3):
            raise ValueError(f"region is of a picture or a video, and this latent is {[*latent]}")
        self._check_aspect(size, spatial[-2:])
        if len(spatial) == 2:
            if count not in (1, samples):
                raise ValueError(
                    f"region has {count} masks for a batch of {samples}; it must have one, or one for each"
                )
            return interpolate(self.values[:, None].float(), spatial, mode="area")
        if count != 1 and count < spatial[0]:
            raise ValueError(
                f"region has {count} masks for {spatial[0]} frames of the latent; it must have one, or one for each frame"
            )
        return interpolate(self.values[None, None].float(), spatial, mode="area")

    def _check_aspect(self, size: list[int], latent: list[int]) -> None:
        (height, width), (rows, columns) = size, latent
        if abs(height * columns - rows * width) >= max(height, width):  # by a whole row or column of the latent
            raise ValueError(
                f"region is {width} × {height}, and the latent is {columns} × {rows}, which is another aspect. Make it "
                f"of the picture's size"
            )

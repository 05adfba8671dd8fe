"""What a sampler of the host begins with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SamplerInputs:
    """The arguments of the host's sampler that conditionings are processed with."""

    sigmas: Tensor  # [steps + 1]
    noise: Tensor  # like the latent, [batch, channels, *spatial]
    latent_image: Tensor | None
    mask: Tensor | None
    seed: int | None
    latent_shapes: list | tuple  # of the latents that are packed into one, as the host has them; empty for one latent

    @property
    def shapes_argument(self) -> dict:
        """The keyword argument of the host's process_conds, which an old host does not know."""
        return {"latent_shapes": self.latent_shapes} if self.latent_shapes else {}

"""Adapter guidance distillation:  min E ‖(D_θ(x; σ) − D_guided(x; σ)) / c(σ)‖²,  (x, σ) along guided trajectories

arXiv:2503.07274. A small adapter θ on a network that stays as it is learns to predict in one forward what the guided
network predicts in several. The paper trains it on the trajectories that guidance itself samples, not on noised
pictures: those are where the student will be asked, and no pictures are needed. Its teacher is CFG at many strengths,
which its adapters are told; here it is any guidance, at the one strength that it has.

A network does not give D itself but some F with D = a(σ) x + c(σ) F: noise, velocity, or the picture. With the error
divided by c(σ) every step is weighted as in the network's own training, the error of F:

    noise, flow    |c| = σ
    v              |c| = σ / √(σ² + 1),  at σ_data = 1
    picture        |c| = 1

Without it the steps at high noise, where D moves most, would be all that is learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .base import Latent


def output_scale(denoised: Callable[[Tensor, Tensor], Tensor], like: Tensor) -> Tensor:
    """|c(σ)|, in the shape of `like`. `denoised(F, x)` → D = a(σ) x + c(σ) F, at the σ of each sample."""
    nothing = torch.zeros_like(like)
    return (denoised(torch.ones_like(like), nothing) - denoised(nothing, nothing)).abs()


def distillation_loss(student: Latent, guided: Latent, scale: Tensor) -> Tensor:
    """The mean square error of the network's own output, a scalar. `scale`: `output_scale`, above 0."""
    return ((student.float() - guided.float()) / scale).square().mean()


@dataclass(eq=False)
class Trajectories:
    """What a guided model was asked while it sampled, and what it predicted: one row for each picture and model
    call."""

    _rows: list[tuple[Tensor, float, int, Tensor]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, prompt: int, x: Latent, sigma: Sequence[float], guided: Latent) -> None:
        """One model call for the prompt of this number. x, guided: [batch, …], and σ of each sample."""
        for at, level in enumerate(sigma):
            if level > 0:  # at σ 0 nothing is left to predict
                row, prediction = (each[at : at + 1].to("cpu", torch.float32, copy=True) for each in (x, guided))
                self._rows.append((row, level, prompt, prediction))

    def draw(self, size: int, generator: torch.Generator) -> tuple[Latent, Tensor, list[int], Latent]:
        """Rows at random: (x [size, …], σ [size], their prompts, the guided predictions [size, …])."""
        chosen = torch.randint(len(self._rows), (size,), generator=generator).tolist()
        x, sigma, prompts, guided = zip(*(self._rows[at] for at in chosen), strict=True)
        return torch.cat(x), torch.tensor(sigma), list(prompts), torch.cat(guided)

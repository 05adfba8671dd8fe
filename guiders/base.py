"""The words of guidance: branches, what a step knows, and the contract of a rule.

Everything is in terms of the denoised prediction D(x; σ), the network's estimate of the clean latent.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Generator, Tensor, device

from ..patches.base import About, Moment, check_params, param  # a method declares itself in one way, on both sides

__all__ = ["NEGATIVE", "POSITIVE", "REFERENCE", "About", "Apply", "Branch", "Evaluate", "GuidanceRule", "Latent"]
__all__ += ["Predictions", "Source", "Step", "check_params", "param"]

Latent = Tensor  # [batch, channels, *spatial], any number of spatial axes


@dataclass(frozen=True)
class Step:
    """One evaluation of the denoiser by the sampler."""

    x: Latent
    sigma: float  # the noise level of x
    start: float  # σ at which the sampler's step began that this evaluation belongs to: what intervals look at
    index: int = 0  # of that step in the schedule
    signal: float = 1.0  # a in x = a x₀ + b n: 1 for most ε and v networks as the host samples them, 1 − σ for flow
    noise_scale: float = 1.0  # b / σ
    seed: int = 0  # the sampler's
    shapes: tuple[tuple[int, ...], ...] = ()  # the latents that x packs into one, where it does
    maps: dict[Hashable, Tensor] = field(default_factory=dict, compare=False)  # what a rule's observation has seen

    @property
    def noise(self) -> float:
        """b in x = a x₀ + b n."""
        return self.sigma * self.noise_scale

    def generators(self, salt: str) -> list[Generator]:
        """One for each sample, by seed and step."""
        return Moment(self.seed, self.index).generators(self.x.shape[0], device("cpu"), salt)


@dataclass(frozen=True)
class Branch:
    """One prediction of the network. Equal branches are evaluated once."""

    conditioning: Hashable = "positive"  # the guider's own by its name, or something of a rule's that the host can draw
    perturbation: Hashable | None = None
    model: str = "main"
    source: Source | None = None  # None: the sampler's own x


POSITIVE = Branch()
NEGATIVE = Branch("negative")
REFERENCE = Branch("reference")  # the negative in a call that carries it, else the positive: a row that is there anyway

Predictions = Mapping[Branch, Latent]
Source = Callable[[Predictions, Step], Latent]  # (predictions from x, step) → another x; hashable
Apply = Callable[[Latent, Predictions, Step], Latent]  # (denoised so far, all predictions, step) → denoised
Evaluate = Callable[[tuple[Branch, ...], Step], Predictions]


@runtime_checkable
class GuidanceRule(Protocol):
    """A frozen setting of one guidance: which branches it needs, and how it folds them into the result."""

    def branches(self) -> tuple[Branch, ...]:
        """The branches beyond POSITIVE; none when the setting is neutral, so that neutral costs nothing."""

    def begin(self) -> Apply:
        """Called once per sampling run. What a run remembers lives in the function that is returned."""

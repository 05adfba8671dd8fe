"""Denoisers that are exact, and samplers short enough to read: what closed forms are compared with. No host."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from pack.guiders.base import Branch, Latent, Predictions, Step
from pack.guiders.compose import GuidanceRun
from pack.guiders.schedule import StepTracker
from pack.patches.base import AttentionCall, Observation, Perturbation
from pack.patches.layers import Layer


@dataclass(frozen=True)
class Worse(Perturbation):
    """Something that makes a network worse, told apart from others by its name alone."""

    name: str
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True)
class Seen(Observation):
    """Something that is seen of a network's attention."""

    layers: tuple[Layer, ...] = ()

    def observe(self, call: AttentionCall) -> torch.Tensor:
        raise NotImplementedError  # there is no network


Denoiser = Callable[[Latent, float], Latent]  # D(x; σ)


@dataclass(frozen=True)
class Gaussian:
    """Of data N(mean, std²), pixel by pixel."""

    mean: float
    std: float

    def __call__(self, x: Latent, sigma: float) -> Latent:
        return (self.std**2 * x + sigma**2 * self.mean) / (self.std**2 + sigma**2)


@dataclass(frozen=True)
class Mixture:
    """Of data that is N(mean, std²) with one of several means, equally likely, pixel by pixel."""

    means: tuple[float, ...]
    std: float

    def __call__(self, x: Latent, sigma: float) -> Latent:
        means = torch.tensor(self.means, dtype=x.dtype)
        likely = (-((x[..., None] - means) ** 2) / (2 * (self.std**2 + sigma**2))).softmax(-1)
        return (self.std**2 * x + sigma**2 * (likely * means).sum(-1)) / (self.std**2 + sigma**2)


@dataclass
class Toy:
    """The `evaluate` of a GuidanceRun on denoisers, which remembers every call."""

    denoisers: Mapping[Branch, Denoiser]
    calls: list[tuple[tuple[Branch, ...], Step]] = field(default_factory=list)

    def __call__(self, branches: tuple[Branch, ...], step: Step) -> Predictions:
        self.calls.append((branches, step))
        return {branch: self.denoisers[branch](step.x, step.sigma) for branch in branches}

    @property
    def asked(self) -> list[tuple[Branch, ...]]:
        return [branches for branches, _ in self.calls]

    @property
    def evaluations(self) -> int:
        return sum(map(len, self.asked))


def karras(steps: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> list[float]:
    """EDM's schedule: `steps` noise levels and 0."""
    ends = high ** (1 / rho), low ** (1 / rho)
    return [(ends[0] + i / (steps - 1) * (ends[1] - ends[0])) ** rho for i in range(steps)] + [0.0]


def euler(run: GuidanceRun, evaluate: Toy, x: Latent, sigmas: list[float]) -> Latent:
    steps = StepTracker(sigmas, "euler")
    for sigma, after in _steps(sigmas):
        x = x + (after - sigma) * _slope(run, evaluate, x, sigma, steps)
    return x


def heun(run: GuidanceRun, evaluate: Toy, x: Latent, sigmas: list[float]) -> Latent:
    """Second order, with the same decision in both evaluations of a step; the step to 0 is Euler's."""
    steps = StepTracker(sigmas, "heun")
    for sigma, after in _steps(sigmas):
        slope = _slope(run, evaluate, x, sigma, steps)
        if after > 0:
            slope = (slope + _slope(run, evaluate, x + (after - sigma) * slope, after, steps)) / 2
        x = x + (after - sigma) * slope
    return x


def _steps(sigmas: list[float]) -> Iterator[tuple[float, float]]:
    return itertools.pairwise(sigmas)


def _slope(run: GuidanceRun, evaluate: Toy, x: Latent, sigma: float, steps: StepTracker) -> Latent:
    """dx/dσ of the probability flow ODE."""
    index, start = steps.of(sigma)
    return (x - run(Step(x, sigma, start, index), evaluate)) / sigma


def gain(high: float, low: float, std: float, other: float, weight: float) -> float:
    """x(low) / x(high) of the ODE guided by `weight` from N(0, other²) to N(0, std²), without discretisation."""

    def shrink(s: float) -> float:
        return math.sqrt((s**2 + low**2) / (s**2 + high**2))

    return shrink(std) ** weight * shrink(other) ** (1 - weight)

"""Data whose score is known: mixtures of Gaussians, and the sampler that follows a denoiser to them.

    p(x; σ) = Σₖ wₖ N(x; μₖ, Cₖ + σ² I)           ∇ log p(x; σ) = Σₖ p(k | x; σ) (Cₖ + σ² I)⁻¹ (μₖ − x)
    D(x; σ) = x + σ² ∇ log p(x; σ)                the mean of the data, given what is seen of it in noise

Of any dimension d. The sampler is Heun's, at the noise levels of Karras et al. 2022, "Elucidating the Design Space of
Diffusion-Based Generative Models" (EDM), arXiv:2206.00364.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Generator, Tensor

CHUNK = 2**17  # numbers at a time, so that they stay in a processor's cache


@dataclass(frozen=True, eq=False)
class Mixture:
    """Points are [..., n, d]; σ is a number, or one for each n points: [...]."""

    weights: Tensor  # [k], their sum is 1
    means: Tensor  # [k, d]
    covariances: Tensor  # [k, d, d]

    @classmethod
    def of(cls, weights, means, covariances, dtype=torch.float32) -> Mixture:
        """From arrays or lists; weights of any sum."""
        parts = [torch.as_tensor(np.asarray(part, np.float64)) for part in (weights, means, covariances)]
        return cls(*(part.to(dtype) for part in (parts[0] / parts[0].sum(), *parts[1:])))

    @classmethod
    def together(cls, mixtures: Sequence[Mixture], shares: Sequence[float]) -> Mixture:
        """Of each its share; these of any sum."""
        parts = ([getattr(each, name) for each in mixtures] for name in ("means", "covariances"))
        weights = [share / sum(shares) * each.weights for each, share in zip(mixtures, shares, strict=True)]
        return cls(torch.cat(weights), *map(torch.cat, parts))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Its mean [d] and covariance [d, d]."""
        mean = self.weights @ self.means
        off = self.means - mean
        return mean, torch.einsum("k,kij->ij", self.weights, self.covariances + off[:, :, None] * off[:, None])

    def sample(self, count: int, generator: Generator) -> Tensor:
        """[count, d]"""
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[which] + (self._roots[which] @ noise[..., None])[..., 0]

    def log_density(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """log p(x; σ): [..., n]"""
        return self._by_chunks(x, sigma, lambda log_joint, *_: log_joint.logsumexp(-1))

    def most_likely(self, x: Tensor) -> Tensor:
        """Which of the Gaussians each point belongs to: [..., n] of 0 … k − 1"""
        return self._by_chunks(x, 0.0, lambda log_joint, *_: log_joint.argmax(-1))

    def score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """∇ log p(x; σ): [..., n, d]"""

        def pull(log_joint, x, precision, towards):
            likely = log_joint.softmax(-1)  # p(k | x; σ)
            mean_precision = (likely @ precision.flatten(-2)).unflatten(-1, precision.shape[-2:])  # [..., n, d, d]
            return likely @ towards - (mean_precision @ x[..., None])[..., 0]

        return self._by_chunks(x, sigma, pull)

    def denoised(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """D(x; σ): [..., n, d]"""
        level = sigma[..., None, None] if isinstance(sigma, Tensor) else sigma
        return x + level**2 * self.score(x, sigma)

    @cached_property
    def _roots(self) -> Tensor:
        return torch.linalg.cholesky(self.covariances)

    @cached_property
    def _axes(self) -> tuple[Tensor, Tensor]:
        """(variances [k, d], the axes along which they are: columns of [k, d, d])"""
        variances, axes = torch.linalg.eigh(self.covariances.double())
        return variances.to(self.means), axes.to(self.means)

    def _by_chunks(self, x: Tensor, sigma: Tensor | float, function: Callable) -> Tensor:
        """function(log wₖ N [..., n, k], x, P [..., k, d, d], P μ [..., k, d]) of a few points at a time, where
        P = (C + σ² I)⁻¹. log wₖ N = c + (P μ)ᵀ x − ½ xᵀ P x is linear in x and its products: one matrix product."""
        variances, axes = self._axes
        spread = variances + torch.as_tensor(sigma, dtype=x.dtype)[..., None, None] ** 2  # [..., k, d]
        precision = (axes / spread[..., None, :]) @ axes.mT
        towards = (precision @ self.means[..., None])[..., 0]
        constant = self.weights.log() - (spread.log().sum(-1) + (towards * self.means).sum(-1)) / 2
        constant = constant - self.means.shape[1] / 2 * math.log(2 * math.pi)
        linear = torch.cat([constant[..., None], towards, -precision.flatten(-2) / 2], -1).mT  # [..., 1 + d + d², k]

        def log_joint(x):
            products = (x[..., None] * x[..., None, :]).flatten(-2)
            return torch.cat([torch.ones_like(x[..., :1]), x, products], -1) @ linear

        rows = max(1, CHUNK * x.shape[-2] * x.shape[-1] // (x.numel() * len(self.weights)))
        return torch.cat(
            [function(log_joint(some), some, precision, towards) for some in x.split(rows, -2)], x.ndim - 2
        )


# ------------------------------------------------------------------------------------------------------------ the tree


@dataclass(frozen=True, eq=False)
class Tree:
    """A fractal tree of thick lines, each of them eight Gaussians."""

    mixture: Mixture
    branch: Tensor  # [k]: that of each Gaussian
    mass: float  # of all its branches: what its share is in data of both trees

    @cached_property
    def shares(self) -> Tensor:
        """The data's share in each branch: [branches]"""
        return torch.bincount(self.branch, self.mixture.weights.double())


STRETCH = np.array([1.3136, 1.3844])  # these and the root make mean 0 and standard deviation ½ of both trees together
ROOT = np.array([0.0030, 0.0325])
TIPS = 6  # depth of the last branches


def trees(seed: int = 2) -> tuple[Tree, Tree]:
    """Classes A and B of the 2-D example of the autoguidance paper (Karras et al. 2024, arXiv:2406.02507, appendix C).

    The constants are those of the authors' code, and numbers are drawn in its order, so that these are the same trees.
    """
    draws = np.random.RandomState(seed)
    return tuple(_thick(list(_branches(draws, 0, ROOT, angle))) for angle in (math.pi / 4, math.pi * 5 / 4))


def _branches(draws, depth: int, root: np.ndarray, angle: float) -> Iterator[tuple]:
    """(depth, root, direction, length) of a branch and of all that grow from its end."""
    direction = np.array([math.cos(angle), math.sin(angle)])
    length = 0.292 * 0.8**depth * (1 + 0.2 * draws.randn())
    yield depth, root, direction, length
    for side in (1, -1):
        turn = side * 0.7**depth * (1 + 0.2 * draws.randn())  # at the tips too, where it turns nothing
        if depth < TIPS:
            yield from _branches(draws, depth + 1, root + length * direction, angle + turn)


def _thick(branches: list[tuple]) -> Tree:
    depth, root, along, length = (np.array(column) for column in zip(*branches, strict=True))
    across = np.stack([-along[:, 1], along[:, 0]], 1)
    shrink = 0.8**depth
    at = np.linspace(0.07, 0.93, 8)
    means = root[:, None] + (length[:, None] * at)[..., None] * along[:, None]  # [branches, 8, 2]
    deviations = 0.06 * np.stack([length[:, None] * along, 0.2 * shrink[:, None] * across], 1)  # [branches, axis, 2]
    roots = deviations * STRETCH
    covariances = np.einsum("bai,baj->bij", roots, roots)
    mass = length * 0.5**depth
    mixture = Mixture.of(mass.repeat(8), (means * STRETCH).reshape(-1, 2), covariances.repeat(8, axis=0))
    return Tree(mixture, torch.arange(len(branches)).repeat_interleave(8), mass.sum())


def both(one: Tree, other: Tree) -> Mixture:
    return Mixture.together([one.mixture, other.mixture], [one.mass, other.mass])


# --------------------------------------------------------------------------------------------------------- the classes


def clusters(classes: int = 8, each: int = 4, seed: int = 0) -> list[Mixture]:
    """Classes around a circle, each of a few Gaussians, that reach into their neighbours."""
    draws, found = np.random.RandomState(seed), []
    for angle in 2 * math.pi * np.arange(classes) / classes:
        centre = 0.6 * np.array([math.cos(angle), math.sin(angle)])
        means = centre + 0.22 * draws.randn(each, 2)
        along = draws.rand(each, 1) * math.pi + np.array([0, math.pi / 2])  # [each, axis]
        roots = np.stack([np.cos(along), np.sin(along)], -1) * np.array([[0.1], [0.03]])  # [each, axis, 2]
        found.append(Mixture.of(np.ones(each), means, np.einsum("kai,kaj->kij", roots, roots)))
    return found


# --------------------------------------------------------------------------------------------------------- the sampler


def noise_levels(steps: int, low: float = 0.002, high: float = 5.0, rho: float = 7.0) -> list[float]:
    """`steps` levels from `high` to `low`, even in σ^(1/ρ), and then 0: EDM's Eq. 5."""
    return [*(np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho).tolist(), 0.0]


Denoiser = Callable[[Tensor, float, float, int], Tensor]  # (x [n, d], σ, σ at the start of the step, its index) → D


def follow(denoise: Denoiser, x: Tensor, sigmas: Sequence[float], heun: bool = True) -> Tensor:
    """Where the probability flow dx/dσ = (x − D)/σ takes x from σ₀ to the last σ: EDM's algorithm 1, or Euler's steps."""
    for index, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
        slope = (x - denoise(x, sigma, sigma, index)) / sigma
        ahead = x + (after - sigma) * slope
        if heun and after > 0:
            slope = (slope + (ahead - denoise(ahead, after, sigma, index)) / after) / 2
            ahead = x + (after - sigma) * slope
        x = ahead
    return x

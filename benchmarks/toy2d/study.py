"""The 2-D example of the autoguidance paper: its runs, and what is measured of them. Figures and page are made of these."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import Generator, Tensor

from ...guiders.base import NEGATIVE, POSITIVE, Branch, GuidanceRule, Step, WeakModelRef
from ...guiders.classifier_free import ClassifierFreeGuidance
from ...guiders.compose import GuidanceRun
from ...guiders.schedule import Interval
from ...guiders.weak_model import WeakModelGuidance
from .. import metrics
from ..truncation import Truncation
from .mixtures import Denoiser, Mixture, clusters, follow, noise_levels, trees
from .networks import LogDensity

ROOT = Path(__file__).resolve().parents[2]

SEEDS = (0, 1, 2)

# ---------------------------------------------------------------------------------------- guidance by the pack's rules

Network = Callable[[Tensor, float], Tensor]  # (x [n, d], σ) → D [n, d]
Term = tuple[GuidanceRule, Interval]
WEAK = Branch(model=WeakModelRef(0))
ALWAYS = Interval()


def guided(networks: Mapping[Branch, Network], *terms: Term) -> Denoiser:
    """The composition that the host's samplers get, on networks of our own."""
    run = GuidanceRun(terms)

    def evaluate(branches, step):
        return {branch: networks[branch](step.x, step.sigma) for branch in branches}

    return lambda x, sigma, start, index: run(Step(x, sigma, start, index), evaluate)


def cfg(weight: float, where: Interval = ALWAYS) -> Term:
    return ClassifierFreeGuidance(weight), where


def autoguidance(weight: float) -> Term:
    return WeakModelGuidance(weight - 1), ALWAYS


def noisier(network: LogDensity, amount: float, generator: Generator) -> Network:
    """D(x + σ √(k² − 1) n; kσ), k = 1 + amount: as noisy as at kσ, and told so."""
    k = 1 + amount

    def denoised(x, sigma):
        noise = torch.randn(x.shape, generator=generator)
        return network.denoised(x + sigma * math.sqrt(k**2 - 1) * noise, k * sigma)

    return denoised


def lossy(network: LogDensity, amount: float, generator: Generator) -> Network:
    """Each number between two layers is lost with probability `amount`, drawn for each point and evaluation."""

    def between(hidden):
        return hidden * (torch.rand(hidden.shape, generator=generator) >= amount) / (1 - amount)

    return lambda x, sigma: network.denoised(x, sigma, None, between)


# ------------------------------------------------------------------------------------------------------------ the tree


@dataclass(frozen=True)
class Run:
    """Points that a network samples, with a guidance."""

    name: str
    term: Term | None = None
    main: str = "main"
    weak: str = "weak"


NARROW, LOW = Interval(0.02, 0.2), Interval(0.0, 0.5)  # two intervals of CFG
NOISE, DROPOUT = "noise {} %", "dropout {} %"


def weighted(name: str, weights: Sequence[float], **networks: str) -> tuple[Run, ...]:
    return tuple(Run(f"{name}, w = {weight:g}", autoguidance(weight), **networks) for weight in weights)


def sweep(main: str, weak: str, weights: Sequence[float]) -> tuple[Run, ...]:
    """One degraded network guided by another."""
    return weighted(f"{main} guided by {weak}", weights, main=main, weak=weak)


TREE_RUNS = (
    Run("exact score", main="exact"),
    Run("no guidance"),
    *(Run(f"{name} network alone", main=name) for name in ("early", "weak", "unconditional")),
    *weighted("autoguidance", (1.5, 2, 3, 4)),
    *weighted("autoguidance by the early network", (2, 3), weak="early"),
    *weighted("autoguidance by itself", (3,), weak="main"),
    *(Run(f"CFG, w = {weight}", cfg(weight)) for weight in (2, 4)),
    Run("CFG, w = 4, σ in (0, 0.5]", cfg(4, LOW)),
    Run("CFG, w = 4, σ in (0.02, 0.2]", cfg(4, NARROW)),
    Run("score × 1.4", (Truncation(1.4), ALWAYS)),
)
DEGRADED_RUNS = (
    *(Run(NOISE.format(amount), main=NOISE.format(amount)) for amount in (10, 20)),
    *(Run(DROPOUT.format(amount), main=DROPOUT.format(amount)) for amount in (5, 10)),
    *sweep(NOISE.format(10), NOISE.format(20), (1.5, 1.75, 2, 2.25, 2.5)),
    *sweep(DROPOUT.format(5), DROPOUT.format(10), (1.25, 1.5, 1.9, 2.25)),
    *sweep(NOISE.format(10), DROPOUT.format(10), (1.5, 2)),
    *sweep(DROPOUT.format(5), NOISE.format(20), (1.5, 2)),
)
MEASURES = {  # name → what it says
    "out": "share outside the contour that holds 99 % of the data: log p < max log p − 2.12²",
    "far": "share further than 0.05 from all that is inside that contour",
    "log_p": "mean log p of the data there, in nats, each at least −20",
    "sw1": "sliced Wasserstein distance W₁ to as many points of the data, over 32 directions",
    "tv": "total variation ½ Σ |share − data's share| over the 127 branches",
    "cov50": "share of the branches that have at least half the data's share",
    "shift": "distance of the mean from the data's",
    "std": "standard deviation, root of the mean of both axes' variances",
    "other": "share where the other class is more likely",
}


class Truth:
    """The tree of class A, as the measures see it."""

    def __init__(self):
        self.a, self.b = trees()
        self.data = self.a.mixture
        self.floor = self.data.log_density(self.data.means).max() - 2.12**2  # of log p on the contour
        points = self.data.sample(40_000, Generator().manual_seed(99))
        self.inside = points[self.data.log_density(points) >= self.floor]

    def points(self, count: int, seed: int) -> Tensor:
        return self.data.sample(count, Generator().manual_seed(1000 + seed))

    def measured(self, x: Tensor, seed: int) -> dict[str, float]:
        """MEASURES of the points x [n, 2] of a seed, in that order."""
        log_p = self.data.log_density(x)
        out = log_p < self.floor
        away = torch.cat([torch.cdist(some, self.inside).amin(1) for some in x[out].split(256)]) if out.any() else x[:0]
        other = self.b.mass * self.b.mixture.log_density(x).exp() > self.a.mass * log_p.exp()
        branches = self.a.branch[self.data.most_likely(x)]
        shares = torch.bincount(branches, minlength=len(self.a.shares)) / len(x)
        values = (
            out.double().mean(), (away > 0.05).sum() / len(x), log_p.clamp(min=-20).mean(),
            sliced_wasserstein(x, self.points(len(x), 1000 + seed)), (shares - self.a.shares).abs().sum() / 2,
            (shares >= self.a.shares / 2).double().mean(), (x.mean(0) - self.data.moments()[0]).norm(),
            x.var(0).mean().sqrt(), other.double().mean(),
        )  # fmt: skip
        return {name: round(float(value), 6) for name, value in zip(MEASURES, values, strict=True)}


def sliced_wasserstein(one: Tensor, other: Tensor, directions: int = 32) -> Tensor:
    """Mean over directions of W₁ between the projections of two sets [n, 2] of points (Rabin et al. 2011)."""
    angle = math.pi * torch.arange(directions) / directions
    lines = torch.stack([angle.cos(), angle.sin()])
    return ((one @ lines).sort(0).values - (other @ lines).sort(0).values).abs().mean()


@dataclass(frozen=True)
class TreeStudy:
    seed: int
    networks: Mapping[str, LogDensity]
    truth: Truth
    points: int = 8192
    steps: int = 32

    @cached_property
    def start(self) -> Tensor:
        """Points of p_A(x; 5)."""
        generator = Generator().manual_seed(self.seed)
        clean = self.truth.data.sample(self.points, generator)
        return clean + 5.0 * torch.randn(clean.shape, generator=generator)

    def network(self, name: str, salt: int) -> Network:
        """By its name; a degraded one draws by seed and salt."""
        generator = Generator().manual_seed(100 * self.seed + salt)
        if name == "exact":
            return self.truth.data.denoised
        if name in self.networks:
            return self.networks[name].denoised
        kind, amount, _ = name.rsplit(" ", 2)
        return {"noise": noisier, "dropout": lossy}[kind](self.networks["main"], int(amount) / 100, generator)

    def sample(self, run: Run) -> Tensor:
        networks = {
            POSITIVE: self.network(run.main, salt=1),
            WEAK: self.network(run.weak, salt=2),
            NEGATIVE: self.networks["unconditional"].denoised,
        }
        terms = [] if run.term is None else [run.term]
        return follow(guided(networks, *terms), self.start, noise_levels(self.steps))

    def results(self, runs: Sequence[Run]) -> dict[str, dict[str, float]]:
        found = {"data": self.truth.measured(self.truth.points(self.points, self.seed), self.seed)}
        for run in runs:
            found[run.name] = self.truth.measured(self.sample(run), self.seed)
        return found


# -------------------------------------------------------------------------------- an interval of CFG, in one dimension


def modes(*at: float) -> Mixture:
    return Mixture.of([1] * len(at), [[one] for one in at], [[[0.1**2]]] * len(at), torch.float64)


INTERVAL_RUNS = {
    "no guidance": None,
    **{f"w = {weight}": cfg(weight) for weight in (2, 4, 6)},
    "w = 6, σ in (0, 0.6]": cfg(6, Interval(0, 0.6)),
    "w = 6, σ in (0.1, 0.6]": cfg(6, Interval(0.1, 0.6)),
    "w = 6, σ in (0.1, ∞]": cfg(6, Interval(0.1)),
}


@cache
def interval_paths(term: Term | None, points: int = 2000, steps: int = 128) -> tuple[list[float], Tensor]:
    """(σs, x [σs, points]) of points with a class, which is two of the data's three modes. They start at the quantiles
    of N(0, 20²)."""
    wanted, every = modes(0, 1), modes(-1, 0, 1)
    share = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    x, sigmas, path = 20 * torch.special.ndtri(share)[:, None], noise_levels(steps, high=20.0), []
    denoise = guided({POSITIVE: wanted.denoised, NEGATIVE: every.denoised}, *([] if term is None else [term]))

    def seen(x, sigma, start, index):
        if sigma == start:
            path.append(x[:, 0])
        return denoise(x, sigma, start, index)

    end = follow(seen, x, sigmas)
    return sigmas, torch.stack([*path, end[:, 0]])


def interval_results() -> dict[str, float]:
    """run → the share of points that end at the mode that the other class has as well."""
    return {name: float((interval_paths(term)[1][-1] < 0.5).double().mean()) for name, term in INTERVAL_RUNS.items()}


# ------------------------------------------------------------------------------------------------------ three Gaussians

TRIANGLE_W = (0, 1, 2, 4)  # the paper's w, which is 0 without guidance


def triangle(width: float = 0.6) -> list[Mixture]:
    """Three classes, a Gaussian each, at the corners of a triangle."""
    angles = torch.tensor([90, 210, 330], dtype=torch.float64).deg2rad()
    corners = torch.stack([angles.cos(), angles.sin()], 1)
    return [Mixture.of([1], corner[None], width**2 * torch.eye(2)[None], torch.float64) for corner in corners]


def tilted(classes: Sequence[Mixture], label: int, w: float, x: Tensor, sigma: float = 0.0) -> Tensor:
    """log of p(x | c; σ) p(c | x; σ)ʷ, up to a constant: the density whose score is CFG's at that noise level."""
    of_each = torch.stack([each.log_density(x, sigma) for each in classes])
    return (1 + w) * of_each[label] - w * of_each.logsumexp(0)


@cache
def tilted_grid(w: float, side: int = 240, reach: float = 3.4) -> tuple[Tensor, Tensor]:
    """(points [side², 2], p [class, side²], each of sum 1): the paper's normalised guided conditionals."""
    line = torch.linspace(-reach, reach, side, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    return points, torch.stack([tilted(triangle(), label, w, points).softmax(0) for label in range(3)])


@cache
def triangle_points(w: float, points: int = 1500) -> Tensor:
    """What a sampler with CFG makes of it: [class, points, 2]"""
    classes, generator = triangle(), Generator().manual_seed(0)
    every = Mixture.together(classes, [1] * len(classes))
    x = 20 * torch.randn(points, 2, generator=generator, dtype=torch.float64)
    networks = ({POSITIVE: each.denoised, NEGATIVE: every.denoised} for each in classes)
    return torch.stack([follow(guided(each, cfg(1 + w)), x, noise_levels(64, high=20.0)) for each in networks])


def triangle_results() -> dict[str, dict[str, float]]:
    """w → how far from the centre the class at the top is, and how wide: of the density, and of a sampler's points."""
    found = {}
    for w in TRIANGLE_W:
        points, density = tilted_grid(w)
        mean = density[0] @ points
        width = (density[0] @ (points - mean).square()).mean().sqrt()
        sampled = triangle_points(w)[0]
        values = mean.norm(), width, sampled.mean(0).norm(), sampled.var(0).mean().sqrt()
        names = ("density_mean", "density_std", "sampled_mean", "sampled_std")
        found[f"{w}"] = {name: round(float(value), 4) for name, value in zip(names, values, strict=True)}
    return found


# ---------------------------------------------------------------------------------------------------------- the tables

TABLE_W = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 2, 3, 4)  # the paper's w, and the rows of its tables
TABLE_STEPS = (16, 32, 128)  # each as often as in the paper's 128, 256, 1024
STEPS_P = 0.2


class ClusterStudy:
    """Points of all classes, as many of each."""

    def __init__(self, seed: int, networks: Mapping[str, LogDensity], each: int):
        self.networks, self.classes = networks, clusters()
        self.label = torch.eye(len(self.classes)).repeat_interleave(each, 0)
        generator = Generator().manual_seed(seed)
        self.start = 5.0 * torch.randn(len(self.label), 2, generator=generator)
        draws = Generator().manual_seed(99)
        self.gaussians = [metrics.Gaussian.of(one.sample(20_000, draws).numpy()) for one in self.classes]

    def results(self, p_uncond: float, w: float, steps: int, heun: bool) -> dict[str, float]:
        network = self.networks[f"clusters {p_uncond}"]
        networks = {
            POSITIVE: lambda x, sigma: network.denoised(x, sigma, self.label),
            NEGATIVE: lambda x, sigma: network.denoised(x, sigma, torch.zeros_like(self.label)),
        }
        x = follow(guided(networks, cfg(1 + w)), self.start, noise_levels(steps), heun)
        return {"fd": round(self.distance(x), 6), "is": round(self.inception(x), 4)}

    def distance(self, x: Tensor) -> float:
        """Fréchet distance in the plane between a class's points and its data, the mean over classes."""
        parts = x.chunk(len(self.classes))
        return sum(map(metrics.frechet, (part.numpy() for part in parts), self.gaussians)) / len(parts)

    def inception(self, x: Tensor) -> float:
        """exp E KL(p(c | x) ‖ p(c)), by the exact p(c | x): Salimans et al. 2016, arXiv:1606.03498 (IS)."""
        log_p = torch.stack([each.log_density(x) for each in self.classes], 1).log_softmax(1)
        log_mean = log_p.exp().mean(0).log()
        return float((log_p.exp() * (log_p - log_mean)).sum(1).mean().exp())

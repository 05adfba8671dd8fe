"""Measures of sets of pictures, in plain numpy and float64, and how sure they are.

A set is an array [n, d] of features: of a judge's last layer, or of pixels. Numbers have the features' unit, distances of
Gaussians its square.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

CHUNK = 512  # rows of a distance matrix at a time


# ------------------------------------------------------------------------------------------------- Fréchet distance


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean [d], cov [d, d])."""

    mean: np.ndarray
    cov: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Gaussian:
        """With the unbiased covariance. Raises ValueError for n ≤ d, where it has no full rank."""
        features = np.asarray(features, np.float64)
        n, d = features.shape
        if n <= d:
            raise ValueError(f"{n} features of {d} dimensions: at least {d + 1} are needed")
        mean = features.mean(0)
        centred = features - mean
        return cls(mean, centred.T @ centred / (n - 1))

    @cached_property
    def root(self) -> np.ndarray:
        """Σ^½ [d, d], symmetric."""
        values, vectors = np.linalg.eigh(self.cov)
        return (vectors * np.sqrt(values.clip(0))) @ vectors.T

    def distance(self, other: Gaussian) -> float:
        """|μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁^½ Σ₂ Σ₁^½)^½

        Dowson & Landau 1982, "The Fréchet distance between multivariate normal distributions"; of features of pictures:
        Heusel et al. 2017, arXiv:1706.08500 (FID). The last trace is the sum of the square roots of the eigenvalues of a
        symmetric matrix, those of Σ₁Σ₂, so no matrix root of an unsymmetric product is needed.
        """
        inner = self.root @ other.cov @ self.root
        values = np.linalg.eigvalsh((inner + inner.T) / 2).clip(0)
        means = np.square(self.mean - other.mean).sum()
        return float(max(0.0, means + np.trace(self.cov) + np.trace(other.cov) - 2 * np.sqrt(values).sum()))


def frechet(features: np.ndarray, reference: Gaussian) -> float:
    """Fréchet distance of `features` [n, d] to the reference.

    It is biased upwards, by about const/n (Chong & Forsyth 2019, arXiv:1911.07023), so only sets of one size n may be
    compared, and real pictures of that n give its floor, which is above 0. Raises ValueError for n ≤ d.
    """
    return reference.distance(Gaussian.of(features))


@dataclass(frozen=True, eq=False)
class PixelSpace:
    """The first principal components of reference pictures: backgrounds, contrast and colour, which a judge ignores.

    y = Vᵀ (x − μ), x a picture of values 0…1 averaged down to `side` × `side`, V the eigenvectors of the reference's
    covariance with the largest eigenvalues (Pearson 1901).
    """

    mean: np.ndarray  # [pixels]
    components: np.ndarray  # [pixels, count]
    side: int

    @classmethod
    def of(cls, pictures: np.ndarray, count: int = 32, side: int = 16) -> PixelSpace:
        pixels = small(pictures, side)
        mean = pixels.mean(0)
        centred = pixels - mean
        _, vectors = np.linalg.eigh(centred.T @ centred)  # in rising order
        return cls(mean, vectors[:, ::-1][:, :count], side)

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """[n, height, width, 3] → [n, count]"""
        return (small(pictures, self.side) - self.mean) @ self.components


def small(pictures: np.ndarray, side: int) -> np.ndarray:
    """[n, height, width, channels] → [n, side · side · channels], means of blocks; sides must be multiples of `side`."""
    pictures = np.asarray(pictures)
    n, height, width, channels = pictures.shape
    if height % side or width % side:
        raise ValueError(f"pictures of {width} × {height} do not divide into {side} × {side} blocks")
    blocks = pictures.reshape(n, side, height // side, side, width // side, channels)
    return blocks.mean((2, 4), dtype=np.float64).reshape(n, -1)


# ------------------------------------------------------------------------------------------------ precision and recall


def squared_distances(one: np.ndarray, other: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, [rows, m]) for chunks of the rows of `one` [n, d] against `other` [m, d]."""
    other = np.asarray(other, np.float64)
    for start in range(0, len(one), CHUNK):
        rows = np.asarray(one[start : start + CHUNK], np.float64)
        found = np.square(rows).sum(1)[:, None] + np.square(other).sum(1) - 2 * rows @ other.T
        yield start, found.clip(0)


@dataclass(frozen=True, eq=False)
class Manifold:
    """Balls around the features of a set, each out to its k-th neighbour in the set.

    Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models", arXiv:1904.06991:
        f(φ, Φ) = 1 where |φ − φ'| ≤ |φ' − NN_k(φ', Φ)| for some φ' in Φ, else 0
        precision = mean f(generated, Φ_real)        recall = mean f(real, Φ_generated)
    Both depend on n and k: only sets of one size may be compared.
    """

    features: np.ndarray  # [n, d]
    k: int = 5

    def __post_init__(self):
        if len(self.features) <= self.k:
            raise ValueError(f"{len(self.features)} features have no neighbour number {self.k}")

    @cached_property
    def radii(self) -> np.ndarray:
        """Squared [n]; a feature is not a neighbour of itself."""
        found = [np.partition(rows, self.k, axis=1)[:, self.k] for _, rows in squared_distances(*[self.features] * 2)]
        return np.concatenate(found)

    def holds(self, features: np.ndarray) -> np.ndarray:
        """Whether each of `features` [m, d] lies in a ball: bool [m]."""
        reach = self.radii * (1 + 1e-9)  # rounding
        return np.concatenate([(rows <= reach).any(1) for _, rows in squared_distances(features, self.features)])


def precision(features: np.ndarray, reference: Manifold) -> float:
    return float(reference.holds(features).mean())


def recall(features: np.ndarray, reference: Manifold) -> float:
    return Recall(features, reference)(np.arange(len(features)))


class Recall:
    """Recall of parts of one set, from distances that are measured once."""

    def __init__(self, features: np.ndarray, reference: Manifold):
        self.k = reference.k
        self.own = np.concatenate([rows for _, rows in squared_distances(features, features)])  # [n, n]
        self.real = np.concatenate([rows for _, rows in squared_distances(reference.features, features)])  # [m, n]

    def __call__(self, at: np.ndarray) -> float:
        """Of the features `at`, each once."""
        if len(at) <= self.k:
            raise ValueError(f"{len(at)} features have no neighbour number {self.k}")
        radii = np.partition(self.own[np.ix_(at, at)], self.k, axis=1)[:, self.k]
        return float((self.real[:, at] <= radii * (1 + 1e-9)).any(1).mean())


# ----------------------------------------------------------------------------------- variety, obedience, appearance


def diversity(features: np.ndarray, groups: np.ndarray) -> float:
    """Mean over prompts of   2 / m(m − 1) Σ_{i<j} |φᵢ − φⱼ|,   the m pictures of one prompt.

    features [n, d]; groups [n]: the prompt of each. Of prompts with one picture nothing is known: nan if all are.
    As LPIPS diversity in Zhu et al. 2017, arXiv:1711.11586, with the judge's features.
    """
    return float(np.nanmean(spreads(features, groups))) if len(np.unique(groups)) < len(groups) else float("nan")


def spreads(features: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """For each prompt, in order of `groups`, its pictures' mean pairwise distance; nan for a single picture."""
    features, found = np.asarray(features, np.float64), []
    for group in np.unique(groups):
        mine = features[groups == group]
        one, other = np.triu_indices(len(mine), 1)
        found.append(np.linalg.norm(mine[one] - mine[other], axis=1).mean() if len(one) else np.nan)
    return np.array(found)


def hits(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which parts of a prompt the judge finds in its picture: logits [n, parts, classes], labels [n, parts] → bool."""
    return logits.argmax(-1) == labels


def appearance(pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Of each picture [height, width, 3] of values 0…1, without a judge:

    contrast     the standard deviation of its luminance, 0.2126 R + 0.7152 G + 0.0722 B (Rec. 709 weights)
    saturation   the mean of max(R, G, B) − min(R, G, B)
    clipped      the share of values that are 0 or 1 in 8 bits
    """
    pictures = np.asarray(pictures, np.float64)
    luminance = pictures @ np.array([0.2126, 0.7152, 0.0722])
    ends = (pictures < 0.5 / 255) | (pictures > 254.5 / 255)
    return {
        "contrast": luminance.std((1, 2)),
        "saturation": (pictures.max(-1) - pictures.min(-1)).mean((1, 2)),
        "clipped": ends.mean((1, 2, 3)),
    }


# -------------------------------------------------------------------------------------------------------- how sure


@dataclass(frozen=True)
class Estimate:
    value: float
    low: float  # 95 %
    high: float
    error: float  # one standard error


Statistic = Callable[[np.ndarray], float]  # indices of pictures, repeated as drawn → the number


def bootstrap(statistic: Statistic, groups: np.ndarray, draws: int = 200, seed: int = 0) -> Estimate:
    """The statistic of all pictures, with a 95 % interval by drawing prompts anew, each with all its pictures.

    Efron 1979, "Bootstrap methods: another look at the jackknife"; whole clusters are drawn, since pictures of one prompt
    depend on each other. The percentiles are moved by the difference of the statistic and the mean of its draws: draws
    repeat pictures, which makes a distance of Gaussians larger than that of as many different ones.

    groups [n]: the prompt of each picture. Draws depend on groups, `draws` and `seed` alone, so that two methods with the
    same prompts and noise are drawn together: a statistic that takes the difference of both is paired.
    """
    found = np.array([statistic(chosen) for chosen in resamples(groups, draws, seed)])
    value = float(statistic(np.arange(len(groups))))
    low, high = np.percentile(found, [2.5, 97.5]) + value - found.mean()
    return Estimate(value, float(low), float(high), float(found.std(ddof=1)))


def half_samples(statistic: Statistic, groups: np.ndarray, draws: int = 50, seed: int = 0) -> Estimate:
    """The same for a statistic of nearest neighbours, which repeated pictures would break.

    Halves of the prompts without repetition: the standard deviation of the statistic over halves is its standard error
    on the whole (the delete-d jackknife at d = n/2: Shao & Wu 1989, "A general theory for jackknife variance
    estimation"). The interval is ± 1.96 of it.
    """
    found = np.array([statistic(chosen) for chosen in resamples(groups, draws, seed, halves=True)])
    value, error = float(statistic(np.arange(len(groups)))), float(found.std(ddof=1))
    return Estimate(value, value - 1.96 * error, value + 1.96 * error, error)


def resamples(groups: np.ndarray, draws: int, seed: int, halves: bool = False) -> Iterator[np.ndarray]:
    """Indices of the pictures of drawn prompts."""
    generator = np.random.default_rng(seed)
    groups = np.asarray(groups)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    for _ in range(draws):
        if halves:
            chosen = generator.permutation(len(members))[: (len(members) + 1) // 2]
        else:
            chosen = generator.integers(len(members), size=len(members))
        yield np.concatenate([members[one] for one in chosen])

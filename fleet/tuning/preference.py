"""Which of several things is best, from answers to "which of these two?".

Bradley and Terry 1952: P(i is preferred to j) = σ(θᵢ − θⱼ), σ(x) = 1/(1 + e⁻ˣ). A normal prior θ ~ N(0, SPREAD²) keeps
the scores finite after few answers, and one wrong answer from deciding. The scores are the maximum of the posterior, by
Newton's method; near it the posterior is taken as normal (Laplace). "No difference" is half an answer for each.

The next question is the best so far against the one that may most likely be better: the largest θⱼ plus the standard
deviation of θⱼ − θᵢ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

SPREAD = 2.0  # of the scores before any answer
ITERATIONS, TOLERANCE = 100, 1e-10


@dataclass
class Preferences:
    """Answers about `count` things."""

    count: int
    wins: np.ndarray = field(init=False)  # [count, count]: how often i was preferred to j

    def __post_init__(self):
        self.wins = np.zeros((self.count, self.count))

    def grow(self, count: int) -> None:
        """More things, without answers yet."""
        wins = np.zeros((count, count))
        wins[: self.count, : self.count] = self.wins
        self.count, self.wins = count, wins

    def add(self, one: int, other: int, preferred: int | None) -> None:
        """An answer; None: no difference."""
        if preferred is None:
            self.wins[one, other] += 0.5
            self.wins[other, one] += 0.5
        else:
            self.wins[preferred, other if preferred == one else one] += 1

    def scores(self) -> tuple[np.ndarray, np.ndarray]:
        """(θ [count], its covariance [count, count])"""
        return fitted(self.wins)

    def question(self) -> tuple[int, int]:
        """The next two to compare: the best so far, and its likeliest rival."""
        theta, covariance = self.scores()
        best = int(np.argmax(theta))
        variance = np.diag(covariance)
        apart = np.sqrt(np.maximum(variance + variance[best] - 2 * covariance[best], 0))
        hope = theta + apart
        hope[best] = -np.inf
        return best, int(np.argmax(hope))


def fitted(wins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(θ, covariance) of the posterior, from how often each was preferred to each other, [n, n]."""
    count = len(wins)
    theta, precision = np.zeros(count), np.eye(count) / SPREAD**2
    hessian = precision
    for _ in range(ITERATIONS):
        chance = 1 / (1 + np.exp(theta[None] - theta[:, None]))  # that i is preferred to j
        asked = wins + wins.T
        gradient = (wins - asked * chance).sum(1) - theta / SPREAD**2
        curvature = asked * chance * (1 - chance)
        hessian = np.diag(curvature.sum(1)) - curvature + precision
        step = np.linalg.solve(hessian, gradient)
        theta = theta + step
        if np.abs(step).max() < TOLERANCE:
            break
    return theta, np.linalg.inv(hessian)


def order(scores: Sequence[float]) -> list[int]:
    """Numbers of the things, the best first."""
    return [int(at) for at in np.argsort(-np.asarray(scores), kind="stable")]

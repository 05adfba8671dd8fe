"""Where along the noise axis a guidance acts, and how strongly there.

Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval", arXiv:2404.07724:
w(σ) = w if σ in (low, high], else 1 — and σ is the step's own, so that w is constant inside a sampler's step.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch

from ..patches.texts import shown

FARTHEST = 1e6  # of a point: no noise level and no factor is near it, and what is computed from them stays finite


@dataclass(frozen=True)
class Interval:
    """Noise levels low < σ ≤ high: strength 1 inside, 0 outside."""

    low: float = 0.0
    high: float = math.inf

    over: ClassVar[str] = "sigma"  # as of a Curve

    def __contains__(self, sigma: float) -> bool:
        return self.low < sigma <= self.high

    def __call__(self, sigma: float) -> float:
        return float(sigma in self)

    def in_float32(self) -> Interval:
        """The same, as exact as the sampler's own σs."""
        return Interval(*torch.tensor([self.low, self.high], dtype=torch.float32).tolist())


@dataclass(frozen=True)
class Curve:
    """Strength along sampling: through points, with one kind of rise between each two.

    u is how far between two points it is: linear u, cosine (1 − cos πu)/2, power uᵖ. Before the first point and after
    the last the strength is theirs. Points may be given in any order. Raises ValueError for two at one place, or numbers
    out of range.
    """

    points: tuple[tuple[float, float], ...] = ((0.0, 1.0), (1.0, 1.0))  # (where, strength), by where
    kind: str = "linear"
    power: float = 1.0
    over: str = "percent"  # where: fractions of sampling, 0 to 1; or "sigma": noise levels

    def __post_init__(self):
        if not self.points:
            raise ValueError("points are empty; at least one is needed")
        for at, strength in self.points:
            if not (abs(at) <= FARTHEST and abs(strength) <= FARTHEST):  # also refuses NaN
                raise ValueError(
                    f"point {at:g}: {strength:g} is out of range; both must be finite, from {-FARTHEST:g} to {FARTHEST:g}"
                )
        object.__setattr__(self, "points", tuple(sorted(self.points)))
        for (before, _), (after, _) in pairwise(self.points):
            if before == after:
                raise ValueError(f"points has two at {before:g}; each must lie at a place of its own")
        if not (math.isfinite(self.power) and self.power > 0):
            raise ValueError(f"power is {self.power}; it must be a number above 0")

    @classmethod
    def parse(cls, text: str, over: str = "percent") -> Curve:
        """ "0: 1, 0.5: 2, 1: 0" → a linear curve through these points."""
        try:
            pairs = [point.split(":") for point in text.split(",") if point.strip()]
            points = tuple((float(where), float(strength)) for where, strength in pairs)
        except ValueError:
            raise ValueError(
                f'points "{shown(text)}": write pairs of where and strength, such as 0: 1, 0.5: 2, 1: 0'
            ) from None
        return cls(points, over=over)

    def __call__(self, where: float) -> float:
        last = bisect_right([at for at, _ in self.points], where)
        if last in (0, len(self.points)):
            return self.points[max(last - 1, 0)][1]
        (left, low), (right, high) = self.points[last - 1], self.points[last]
        u = (where - left) / (right - left)
        if self.kind == "cosine":
            u = (1 - math.cos(math.pi * u)) / 2
        elif self.kind == "power":
            u = u**self.power
        return low + (high - low) * u


@dataclass(frozen=True)
class Schedule:
    """Where a guidance acts, as a user says it, and how strongly there.

    start and end are fractions of sampling, 0 its first moment and 1 its last, in the host's own meaning: of the model's
    timesteps, not of the steps taken. An Interval as the curve is looked at in each evaluation, and not once in a step: so
    other packs do. Raises ValueError where start is not before end.
    """

    start_percent: float = 0.0
    end_percent: float = 1.0
    curve: Curve | Interval | None = None

    def __post_init__(self):
        if not 0.0 <= self.start_percent < self.end_percent <= 1.0:  # also refuses NaN
            raise ValueError(
                f"start_percent is {self.start_percent:g} and end_percent is {self.end_percent:g}; "
                f"start must come before end, both from 0 to 1"
            )

    def interval(self, percent_to_sigma: Callable[[float], float]) -> Interval:
        """The noise levels between its start and its end, by the host's function from percent to σ."""
        low, high = (percent_to_sigma(percent) for percent in (self.end_percent, self.start_percent))
        return Interval(low, high).in_float32()

    def strength(self, percent_to_sigma: Callable[[float], float]) -> Callable[[float], float]:
        """σ at the start of a step → how strongly the guidance acts in it; 0 is not at all, 1 its full weight."""
        interval = self.interval(percent_to_sigma)
        curve = self.curve.in_float32() if isinstance(self.curve, Interval) else self.curve
        if curve is None:
            return interval
        if curve.over == "sigma":
            return lambda sigma: curve(sigma) if sigma in interval else 0.0
        return lambda sigma: curve(fraction_of(sigma, percent_to_sigma)) if sigma in interval else 0.0


def fraction_of(sigma: float, percent_to_sigma: Callable[[float], float]) -> float:
    """The fraction of sampling at which the noise level is σ; the inverse of the host's function, by bisection."""
    low, high = 0.0, 1.0  # percent_to_sigma falls
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if percent_to_sigma(middle) > sigma else (low, middle)
    return (low + high) / 2


FREE = frozenset({"dpm_fast", "dpm_adaptive"})  # samplers that take only the ends of the schedule
# Samplers that ask for the σ of the next step already inside a step, and their evaluations per step. The ancestral ones
# do at eta = 1, where their midpoint √(σᵢ · σ_down) is σᵢ₊₁.
EVALUATIONS = {
    "heun": 2,
    "heunpp2": 3,
    "exp_heun_2_x0": 2,
    "exp_heun_2_x0_sde": 2,
    "dpm_2_ancestral": 2,
    "dpmpp_2s_ancestral": 2,
    "dpmpp_2s_ancestral_cfg_pp": 2,
}


class StepTracker:
    """Tells which step of the schedule an evaluation belongs to, from the σs of one run in the order they come.

    A step begins when its σ is asked for; what is not on the schedule belongs to the step that is under way. Samplers
    that choose their own noise levels (`free`) are taken as they come, each evaluation a step of its own.
    """

    def __init__(self, sigmas: Sequence[float], sampler: str = "", free: bool = False):
        self._sigmas = list(sigmas)
        if sampler == "heunpp2":  # it takes the last σ for the end of sampling, whatever it is
            self._sigmas[-1] = 0.0
        self._free = free or sampler in FREE
        self._evaluations = EVALUATIONS.get(sampler, 1)
        self._index = 0
        self._left = self._others() + 1  # evaluations that the step under way may still ask for; the first may miss σ₀

    def of(self, sigma: float) -> tuple[int, float]:
        """(index of the step, σ at its start) for an evaluation at `sigma`."""
        if self._free:
            return max((i for i, value in enumerate(self._sigmas) if value >= sigma), default=0), sigma
        at = [i for i, value in enumerate(self._sigmas) if math.isclose(value, sigma, rel_tol=1e-4)]
        ahead = not at or any(self._index < i < self._index + self._evaluations for i in at)
        if self._left and ahead:
            self._left -= 1
        elif at:
            self._index = next((i for i in at if i >= self._index), at[-1])
            self._left = self._others()
        return self._index, self._sigmas[self._index]

    def _others(self) -> int:
        """Evaluations of the present step beyond its first; a step to σ = 0 needs none."""
        within = self._sigmas[self._index : self._index + self._evaluations]
        return sum(value != 0 for value in within) - 1

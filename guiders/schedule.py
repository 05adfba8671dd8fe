"""Where along the noise axis a guidance acts.

Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval", arXiv:2404.07724:
w(σ) = w if σ in (low, high], else 1 — and σ is the step's own, so that w is constant inside a sampler's step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Interval:
    """Noise levels low < σ ≤ high."""

    low: float = 0.0
    high: float = math.inf

    def __contains__(self, sigma: float) -> bool:
        return self.low < sigma <= self.high


@dataclass(frozen=True)
class Window:
    """The same as a user sees it: fractions of sampling, 0 the first and 1 the last moment, in the host's own meaning
    (of the model's timesteps, not of the steps taken). Raises ValueError where start is not before end."""

    start_percent: float = 0.0
    end_percent: float = 1.0

    def __post_init__(self):
        if not 0.0 <= self.start_percent < self.end_percent <= 1.0:  # also refuses NaN
            raise ValueError(
                f"start_percent is {self.start_percent:g} and end_percent is {self.end_percent:g}; "
                f"start must come before end, both from 0 to 1"
            )

    def interval(self, percent_to_sigma: Callable[[float], float]) -> Interval:
        low, high = (percent_to_sigma(percent) for percent in (self.end_percent, self.start_percent))
        return Interval(*torch.tensor([low, high], dtype=torch.float32).tolist())  # as exact as the sampler's own σs


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


class Steps:
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

"""The naive baseline of the autoguidance paper.   D ← x + f (D − x),   which is the score times f

Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", arXiv:2406.02507: the score is
(D − x)/σ², and its 2-D toy uses f = 1.40. Neutral at f = 1. For benchmarks only: it concentrates samples where they are
many already, and loses the rest of the data.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..guiders.base import POSITIVE, Apply, Branch, GuidanceRule, check_params, param


@dataclass(frozen=True)
class Truncation(GuidanceRule):
    factor: float = param(1.4, "Factor on the score. 1 is off.", low=0.0, high=100.0)

    def __post_init__(self):
        check_params(self)

    def branches(self) -> tuple[Branch, ...]:
        return () if self.factor == 1 else (POSITIVE,)

    def begin(self) -> Apply:
        return lambda denoised, predictions, step: step.x + self.factor * (denoised - step.x)

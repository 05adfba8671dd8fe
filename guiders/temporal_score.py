"""Temporal Score Rescaling.   n' = r n̂,   r = (η s² + 1)/(η s²/k + 1),   η = a²/b²

Xu et al. 2025, arXiv:2510.01184, equation 6, for x = a x₀ + b n and the noise prediction n̂ = (x − a D)/b, so that

    D' = r D + (1 − r) x/a,   where   (1 − r)/a = a s² (1/k − 1)/(a² s²/k + b²)

which is a number also at a = 0, where a flow begins, and at b = 0. Of data N(μ, s²) the result is the exact denoiser of
N(μ, s²/k): each of the places where data gather becomes wider (k < 1) or narrower (k > 1), and none more likely.
D is whatever the rules before have made. Neutral at k = 1.

The same for VE, VP and flow, since the signal a and the noise b are those of x: the paper's equation for velocities is
this one, and so are the authors' code and the host's TemporalScoreRescaling, which make an exception of a or b = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import POSITIVE, About, Apply, Branch, GuidanceRule, check_params, param
from .linalg import exact

K = (
    "How closely the result stays to what is most likely. 1 is off. Lower gives more detail and variety, "
    "higher is smoother. The paper uses 0.93 for pictures."
)
SIGMA = "How early in sampling it acts. Higher is earlier. The paper uses 3 for pictures."


@dataclass(frozen=True)
class TemporalScoreRescaling(GuidanceRule):
    """Scales the noise in what the rules before it have made. Raises ValueError for a parameter out of range."""

    k: float = param(0.95, K, low=0.01, high=100.0, step=0.01, off=1.0)
    sigma: float = param(1.0, SIGMA, low=0.01, high=100.0, step=0.05)

    about: ClassVar[About] = About(
        node_id="BeyondCFGTemporalScore",
        name="Temporal Score Rescaling",
        title="Temporal Score Rescaling (TSR)",
        group="CFG corrections",
        summary=(
            "Gives more detail and variety (k below 1), or smoother and safer pictures (k above 1). It acts on all "
            "guidance nodes before it, so put it last. Takes no extra time."
        ),
        paper="arXiv:2510.01184",
        aliases=(
            "tsr",
            "temporal score rescaling",
            "temperature",
            "diversity",
            "more detail",
            "detail",
            "variety",
            "sharp",
        ),
    )

    def __post_init__(self):
        check_params(self)

    def branches(self) -> tuple[Branch, ...]:
        return () if self.k == 1 else (POSITIVE,)

    def begin(self) -> Apply:
        def apply(denoised, _predictions, step):
            a, b, variance = step.signal, step.noise, self.sigma**2
            narrowed = a**2 * variance / self.k + b**2  # the variance of x, had the data's been s²/k
            r = (a**2 * variance + b**2) / narrowed
            of_x = a * variance * (1 / self.k - 1) / narrowed
            return (r * exact(denoised) + of_x * exact(step.x)).to(denoised.dtype)

        return apply

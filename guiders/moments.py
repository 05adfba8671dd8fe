"""Adam's step.   ĝ = m̂/(√v̂ + 10⁻⁸),   m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²

Belardi et al. 2026, "Adaptive Moments are Surprisingly Effective for Plug-and-Play Diffusion Sampling", arXiv:2603.16797,
as in the authors' code: of the gradient of each step of sampling, number by number. m̂ = m/(1 − β₁ᵏ) and v̂ = v/(1 − β₂ᵏ) in
the kth step, since both begin at 0. In the first step ĝ is the sign of g.
"""

from __future__ import annotations

from collections.abc import Callable

from .base import Latent, Step
from .memory import Memory


def adaptive_moments(beta1: float, beta2: float) -> Callable[[Latent, Step], Latent]:
    """(gradient, step) → ĝ, for one run."""
    memory = Memory()  # of m, v, and how many steps they are of

    def steadied(gradient: Latent, step: Step) -> Latent:
        m, v, count = memory.recall(step) or (0.0, 0.0, 0)
        m, v, count = beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient**2, count + 1
        memory.keep((m, v, count))
        return m / (1 - beta1**count) / ((v / (1 - beta2**count)).sqrt() + 1e-8)

    return steadied

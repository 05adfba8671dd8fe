"""Epsilon Scaling.   D' = x − (x − D)/λ

Ning et al. 2023, "Elucidating the Exposure Bias in Diffusion Models", arXiv:2308.15321, section 5: the noise that a
network predicts grows too strong over the steps of a sampler, since it meets its own errors; so it is divided by a λ a
little above 1, the same in all steps (the paper's uniform schedule). D is whatever the rules before have made.
Neutral at λ = 1.

Which noise: (x − D)/σ, the velocity of the sampler's path. Where x = x₀ + σ n that is the noise prediction, as in the
paper, for ε and v networks alike. For flow, x = (1 − σ) x₀ + σ n, it is what the network gives, n − x₀, and the host's
node divides that too; so do we. The noise prediction itself, n̂ = (x − (1 − σ) D)/σ, would give

    D' = D/λ + (1 − 1/λ) x / (1 − σ)   instead of   D/λ + (1 − 1/λ) x,

which has no value at σ = 1, where a flow begins, and shifts the first steps by far more than the last. The paper has no
flow network.

A schedule of zero terminal SNR begins at σ = 4518, and its next σ is often 40. There a λ of 1.005 would leave noise of
22 in x, beside the 40 that belong there. x is the noise itself there, which nobody predicts, so D stays, as in the node of
ComfyUI-ppm; the host's scales there too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import POSITIVE, About, Apply, Branch, GuidanceRule, check_params, param
from .linalg import exact

FACTOR = (
    "How much the predicted noise is made weaker (the paper's λ). 1 is off. A little above 1 keeps more "
    "detail: the paper uses 1.004 to 1.017 for 100 steps. Below 1 is smoother."
)


@dataclass(frozen=True)
class EpsilonScaling(GuidanceRule):
    """Scales the noise in what the rules before it have made. Raises ValueError for a factor out of range."""

    scaling_factor: float = param(1.005, FACTOR, low=0.5, high=1.5, step=0.001, off=1.0)

    about: ClassVar[About] = About(
        node_id="BeyondCFGEpsilonScaling",
        name="Epsilon Scaling",
        group="CFG corrections",
        summary=(
            "Gives a little more detail. While it samples, a model meets its own errors, and then predicts too much "
            "noise. This makes the predicted noise a little weaker. It acts on all guidance nodes before it, so put it "
            "last. Takes no extra time."
        ),
        paper="arXiv:2308.15321",
        aliases=(
            "exposure bias",
            "epsilon scaling",
            "eps scaling",
            "noise scaling",
            "more detail",
            "detail",
            "sharp",
        ),
    )

    def __post_init__(self):
        check_params(self)

    def branches(self) -> tuple[Branch, ...]:
        return () if self.scaling_factor == 1 else (POSITIVE,)

    def begin(self) -> Apply:
        def apply(denoised, _predictions, step):
            if step.only_noise:
                return denoised
            x = exact(step.x)
            return (x - (x - exact(denoised)) / self.scaling_factor).to(denoised.dtype)

        return apply

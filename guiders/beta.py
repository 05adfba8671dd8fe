"""β-CFG.   v = v₋ + w β(p) (v₊ − v₋)/‖v₊ − v₋‖^γ,   β(p) = p^(a − 1) (1 − p)^(b − 1) / B(a, b)

Malarz et al. 2025, "Classifier-free Guidance with Adaptive Scaling", arXiv:2502.10574. p is how much of sampling has
passed, 0 at its first step. v is the velocity of the sampler's path, v = (x − D)/σ: ε where x = x₀ + σ n, and what a flow
network gives. So in x₀

    D_β = D + w (β(p) / ‖Δ/σ‖^γ − 1) Δ,   Δ = D₊ − D₋,

where D is the result so far and w the sampler's cfg; all per sample (and modality). Neutral at amount 0, and at cfg 1.

Paper and authors' code: ε of Stable Diffusion. Here the velocity, which is ε there, so that flow networks have one too.
As there the length is that of the whole sample, so that it grows with the picture, and w has to grow with it. Where
β is 0, at both ends if a and b are above 1, the result is the negative's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import NEGATIVE, POSITIVE, About, Apply, Branch, GuidanceRule, check_params, param
from .linalg import exact, norm

AMOUNT = "How much of the change is applied. 0 is off, 1 is the paper's."
A = "How late CFG becomes strong. 1: at once. 2 is the paper's. Above 1 the first step has no CFG. Higher is later."
B = (
    "How early CFG becomes weak. 1: never. The authors use 2 or 3. Above 1 there is little CFG at the "
    "end. Higher is earlier."
)
GAMMA = (
    "1: CFG is equally strong in all steps, before a and b change it. 0: CFG keeps its own strength in each step. Between: "
    "partly."
)


@dataclass(frozen=True)
class BetaCFG(GuidanceRule):
    """Changes the sampler's own CFG. Raises ValueError for a parameter out of range."""

    amount: float = param(1.0, AMOUNT, low=0.0, high=1.0, step=0.05, off=0.0)
    a: float = param(2.0, A, low=1.0, high=20.0, step=0.05)
    b: float = param(2.0, B, low=1.0, high=20.0, step=0.05)
    gamma: float = param(1.0, GAMMA, low=0.0, high=1.0, step=0.05)

    corrects_cfg: ClassVar[bool] = True
    about: ClassVar[About] = About(
        node_id="BeyondCFGBeta",
        name="Beta CFG",
        group="CFG corrections",
        summary=(
            "Makes CFG gentler at the start and at the end of sampling, for natural pictures with SD models. It "
            "first makes CFG equally strong in every step, and then weaker at the start and at the end. Takes no extra "
            "time."
        ),
        paper="arXiv:2502.10574",
        aliases=(
            "beta-cfg",
            "betacfg",
            "β-cfg",
            "adaptive scaling",
            "normalized guidance",
            "cfg schedule",
        ),
    )

    def __post_init__(self):
        check_params(self)

    def branches(self) -> tuple[Branch, ...]:
        return () if self.amount == 0 else (NEGATIVE,)

    def begin(self) -> Apply:
        whole = math.gamma(self.a) * math.gamma(self.b) / math.gamma(self.a + self.b)  # B(a, b)

        def apply(denoised, predictions, step):
            rise = (1 - step.time) ** (self.a - 1) * step.time ** (self.b - 1) / whole
            delta = exact(predictions[POSITIVE]) - exact(predictions[NEGATIVE])
            length = (norm(delta, shapes=step.shapes) / step.sigma).clamp(min=torch.finfo(delta.dtype).tiny)
            changed = step.cfg * (rise * (delta / length**self.gamma) - delta)
            return (exact(denoised) + self.amount * changed).to(denoised.dtype)

        return apply

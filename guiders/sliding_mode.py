"""SMC-CFG, of CFG-Ctrl.   v = v₋ + w Δ',   Δ' = Δ − k sign(s),   s = (Δ − Δ'₋₁) + λ Δ'₋₁,   Δ = v₊ − v₋

Wang et al. 2026, "CFG-Ctrl: Control-Based Classifier-Free Diffusion Guidance", arXiv:2603.03281. v is the velocity of the
sampler's path, v = (x − D)/σ: what a flow network gives, and ε where x = x₀ + σ n. Δ'₋₁ is Δ' of the step before, and in
the first step Δ itself. So in x₀

    D' = D − w σ k sign(s),   s as above, of Δ = (D₊ − D₋)/σ,

where D is the result so far and w the sampler's cfg. Every number for itself. Neutral at k = 0, and at cfg 1.

As the authors' code; what stands in it for no CFG in the first steps is a CFG Interval here. The node in
sd-perturbed-attention has s/‖s‖ for the sign, in x₀ without σ: there its k means something else.
Evaluations of one step have the same Δ'₋₁; the first makes the next step's. A step back begins anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import NEGATIVE, POSITIVE, About, Apply, Branch, GuidanceRule, check_params, param
from .linalg import exact
from .memory import Memory

K = (
    "How much small values of CFG are reduced. 0 is off. The authors use 0.2 for SD3, Flux, Qwen-Image "
    "and Wan. For SDXL and SD 1.5 begin at 0.01."
)
LAMBDA = (
    "How much the step before counts in what is taken off (the paper's λ). 1: only this step counts. The authors use 5. "
    "Change smc_k first."
)


@dataclass(frozen=True)
class SlidingModeGuidance(GuidanceRule):
    """Changes the sampler's own CFG. Raises ValueError for a parameter out of range."""

    smc_k: float = param(0.2, K, low=0.0, high=2.0, step=0.01, off=0.0)
    smc_lambda: float = param(5.0, LAMBDA, low=0.0, high=100.0, step=0.05)

    corrects_cfg: ClassVar[bool] = True
    about: ClassVar[About] = About(
        node_id="BeyondCFGSlidingMode",
        name="CFG-Ctrl",
        title="CFG-Ctrl (Sliding-Mode Control)",
        group="CFG corrections",
        summary=(
            "Makes CFG cleaner at a high cfg, for flow models (SD3, Flux, Wan). It makes CFG a little weaker in "
            "every place, so that small, noisy changes disappear. Takes no extra time."
        ),
        paper="arXiv:2603.03281",
        aliases=(
            "cfg-ctrl",
            "cfg ctrl",
            "smc",
            "smc-cfg",
            "sliding mode control",
            "SlidingModeControlCFG",
            "high cfg",
            "burnt",
        ),
    )

    def __post_init__(self):
        check_params(self)

    def branches(self) -> tuple[Branch, ...]:
        return () if self.smc_k == 0 else (NEGATIVE,)

    def begin(self) -> Apply:
        memory = Memory()  # of Δ'

        def apply(denoised, predictions, step):
            delta = exact(predictions[POSITIVE]) - exact(predictions[NEGATIVE])  # σ Δ, and so all below
            before = memory.recall(step)
            before = delta if before is None else step.sigma * before
            taken = step.sigma * self.smc_k * torch.sign(delta - before + self.smc_lambda * before)
            memory.keep((delta - taken) / step.sigma)
            return (exact(denoised) - step.cfg * taken).to(denoised.dtype)

        return apply

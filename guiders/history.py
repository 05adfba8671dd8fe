"""HiGS.   D_H = D + w(t) HP(Δ⊥ + η Δ∥),   Δ = D − E,   E ← α D + (1 − α) E

Sadat et al. 2025, "HiGS: History-Guided Sampling for Plug-and-Play Enhancement of Diffusion Models", arXiv:2509.22300,
in x₀ as there. D is the result so far, E is of the D of earlier steps and begins at 0, ∥ and ⊥ are to D, all of one
sample (and modality). In the first step there is no Δ. HP is a high pass, w(t) = scale √((t − t_min)/(t_max − t_min))
for t in (t_min, t_max], else 0. E gathers in every step. Neutral at scale 0, linear in it.

t of a flow network is its noise level σ, with the schedule's shift, that of others the fraction of their timesteps.
Evaluations of one step have the same E and w; the first makes the next step's E. A step back begins anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import POSITIVE, About, Apply, Branch, GuidanceRule, Latent, Step, check_params, param
from .linalg import exact, in_shape, project
from .memory import Memory

SCALE = (
    "How strongly new detail is added. 0 is off; 1.75 is the paper's. With samplers such as dpmpp_2m "
    "begin at 0.5. Higher is sharper."
)
ETA = "How much is kept of the part that only makes colours stronger. 0 takes it out, 1 keeps all of it."
ALPHA = (
    "How much each new step counts in the average of earlier steps. 1: only the step before. The paper "
    "uses 0.5 and 0.75."
)
T_MIN = (
    "It stops below this noise level, where fine detail would become noisy. 0 is the end of sampling. "
    "The paper uses 0.3 to 0.5."
)
T_MAX = "It acts below this noise level. 1 is full noise, so it acts from the first step on. The paper uses 0.9 to 1."
CUTOFF = (
    "How much of the coarse part stays as it is, so that colours do not change. The paper uses 0.05. Higher keeps more."
)
SHARPNESS = 50.0  # of the high pass, the paper's λ


@dataclass(frozen=True)
class HistoryGuidance(GuidanceRule):
    """Away from the average of earlier predictions, in fine structure. Raises ValueError for a parameter out of range."""

    scale: float = param(1.75, SCALE, low=0.0, high=100.0, step=0.05, off=0.0)
    eta: float = param(0.0, ETA, low=-10.0, high=10.0, step=0.05)
    alpha: float = param(0.75, ALPHA, low=0.01, high=1.0, step=0.05)
    t_min: float = param(0.4, T_MIN, low=0.0, high=0.95, step=0.01)
    t_max: float = param(1.0, T_MAX, low=0.5, high=1.0, step=0.01)
    cutoff: float = param(0.05, CUTOFF, low=0.0, high=2.0, step=0.01)

    about: ClassVar[About] = About(
        node_id="BeyondCFGHiGS",
        name="HiGS",
        title="History-Guided Sampling (HiGS)",
        summary=(
            "Makes pictures sharper in few steps, or at a low cfg. It strengthens what is new in the prediction "
            "since the steps before, and leaves colours alone. Takes no extra time."
        ),
        paper="arXiv:2509.22300",
        aliases=(
            "higs",
            "history guidance",
            "history-guided sampling",
            "few steps",
            "sharper",
            "momentum",
            "sharp",
            "detail",
        ),
    )

    def __post_init__(self):
        check_params(self)
        if self.t_min >= self.t_max:
            raise ValueError(f"t_min is {self.t_min:g} and t_max is {self.t_max:g}; t_min must be less")

    @property
    def remembers(self) -> bool:
        return True

    def branches(self) -> tuple[Branch, ...]:
        return () if self.scale == 0 else (POSITIVE,)

    def begin(self) -> Apply:
        memory = Memory()  # of E

        def apply(denoised, _predictions, step):
            present, past = exact(denoised), memory.recall(step)
            memory.keep(self.alpha * present + (1 - self.alpha) * (0.0 if past is None else past))
            weight = self._weight(_time(step))
            if past is None or weight == 0:
                return denoised
            parallel, orthogonal = project(present - past, present, step.shapes)
            new = in_shape(self._high_pass, orthogonal + self.eta * parallel, shapes=step.shapes)
            return (present + weight * new).to(denoised.dtype)

        return apply

    def _weight(self, t: float) -> float:
        u = (t - self.t_min) / (self.t_max - self.t_min)
        return self.scale * math.sqrt(u) if 0 < u <= 1 else 0.0

    def _high_pass(self, x: Latent) -> Latent:
        """iDCT(H DCT(x)) over the last two axes, H = sigmoid(λ (R − R_c)), R the length of the frequency, each axis 0 to 1.
        A cosine transform of x is a Fourier transform of x beside its mirror image."""
        axes = tuple(range(-min(2, x.ndim - 2), 0))
        mirrored, squares = x, x.new_zeros(())
        for axis in axes:
            mirrored = torch.cat([mirrored, mirrored.flip(axis)], axis)
            frequencies = 2 * torch.fft.fftfreq(2 * x.shape[axis], dtype=x.dtype, device=x.device).abs()
            squares = squares[..., None] + frequencies**2
        passed = torch.sigmoid(SHARPNESS * (squares.sqrt() - self.cutoff))
        filtered = torch.fft.ifftn(passed * torch.fft.fftn(mirrored, dim=axes), dim=axes).real
        return filtered[(..., *(slice(x.shape[axis]) for axis in axes))]


def _time(step: Step) -> float:
    """The paper's t, of the beginning of the step: what the network is told, 1 at full noise."""
    is_flow = math.isclose(step.signal, 1 - step.sigma, abs_tol=1e-6)
    return step.start if is_flow else step.time

"""Norm cap.   D' = D min(1, ρ |D₊| / |D|)

Four published forms of one idea, that guidance must not make the prediction longer. | | is the length of one sample
(`whole`: CFG-Renorm, Qin et al. 2025, "Lumina-Image 2.0", arXiv:2503.21758), or of the channels at each position
(`position`: Qwen-Image). `step` instead shortens the guidance alone, Δ = D − D₊, and is

    D' = D₊ + β Δ   with the largest β ≤ 1 for which |D₊ + β Δ| ≤ ρ |D₊|

(PMC-CFG, Peng & Ma 2026, arXiv:2609.24287, whose β is counted in units of w − 1; Γ there is ρ here).
D is whatever the rules before have made, the sampler's CFG included. Neutral at amount 0.

Which tensor: `of` prediction measures x₀, as PMC-CFG and ComfyUI's CFGNorm and RenormCFG do. The authors of Lumina 2,
Z-Image and Qwen-Image measure what their networks give, the velocity (x − D)/σ; that is `of` velocity. The two are not
the same, since x is added before the length is taken. Velocity means the same for flow, ε and v networks here.

Other differences. RenormCFG shortens all samples or none, by one comparison; here each sample (and modality) has its
own. CFGNorm's strength is a factor on the whole picture; amount is how far the result goes from D to D'. Qwen-Image and
CFGNorm's pre_cfg also make longer what is too short; nothing does here. Plain EP-CFG (arXiv:2412.09966) sets |D'| to
|D₊|, which is `whole` wherever guidance makes longer; its form between percentiles could not be checked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import POSITIVE, About, Apply, Branch, GuidanceRule, Latent, check_params, param
from .linalg import dot, exact, in_shape, norm

AMOUNT = "How much of the limit is applied. 0 is off, 1 is all of it."
NORM = (
    "What is limited. whole: the picture as one. position: each place by itself. step: the picture as "
    "one, by making only the guidance weaker; then use a ratio of 1.05 to 1.15."
)
RATIO = (
    "The limit, as a multiple of the prediction without guidance. 1: not stronger than without guidance. "
    "Higher allows more."
)
OF = (
    "What is measured. prediction: the clean picture that the model expects, as in ComfyUI's CFGNorm and "
    "RenormCFG. velocity: as in the code of Lumina 2, Z-Image and Qwen-Image."
)


@dataclass(frozen=True)
class NormCap(GuidanceRule):
    """Shortens what the rules before it have made. Raises ValueError for a parameter out of range."""

    amount: float = param(1.0, AMOUNT, low=0.0, high=1.0, step=0.05, off=0.0)
    norm: str = param("whole", NORM, choices=("whole", "position", "step"))
    ratio: float = param(1.0, RATIO, low=1.0, high=100.0, step=0.01)
    of: str = param("prediction", OF, choices=("prediction", "velocity"))

    about: ClassVar[About] = About(
        node_id="BeyondCFGNormCap",
        name="Norm Cap",
        title="CFG Norm Cap",
        group="CFG corrections",
        summary=(
            "Keeps colours natural at a high cfg. It keeps guidance from making the prediction stronger than the "
            "prompt alone would. It acts on all guidance nodes before it, so put it last. Takes no extra time."
        ),
        paper="arXiv:2503.21758",
        aliases=(
            "cfgnorm",
            "cfg norm",
            "renormcfg",
            "cfg renorm",
            "cfg normalization",
            "pmc-cfg",
            "ep-cfg",
            "norm cap",
            "burnt",
        ),
    )

    def __post_init__(self):
        check_params(self)

    def branches(self) -> tuple[Branch, ...]:
        return () if self.amount == 0 else (POSITIVE,)

    def begin(self) -> Apply:
        cap = {"whole": _whole, "position": _position, "step": _step}[self.norm]

        def apply(denoised, predictions, step):
            origin = exact(step.x) if self.of == "velocity" else 0.0
            result, positive = exact(denoised) - origin, exact(predictions[POSITIVE]) - origin
            capped = origin + cap(result, positive, self.ratio, step.shapes)
            return torch.lerp(exact(denoised), capped, self.amount).to(denoised.dtype)

        return apply


def _whole(result: Latent, positive: Latent, ratio: float, shapes: tuple[tuple[int, ...], ...]) -> Latent:
    return result * _shrink(_length(result, shapes), _length(positive, shapes), ratio)


def _position(result: Latent, positive: Latent, ratio: float, shapes: tuple[tuple[int, ...], ...]) -> Latent:
    def capped(result, positive):
        return result * _shrink(_channels(result), _channels(positive), ratio)

    return in_shape(capped, result, positive, shapes=shapes)


def _step(result: Latent, positive: Latent, ratio: float, shapes: tuple[tuple[int, ...], ...]) -> Latent:
    delta = result - positive
    length, wanted = _length(delta, shapes), _length(positive, shapes)
    directions = (x / torch.where(size > 0, size, 1.0) for x, size in ((delta, length), (positive, wanted)))
    cosine = dot(*directions, shapes=shapes) / delta.shape[1:].numel()
    root = (cosine.square() + (ratio**2 - 1)).sqrt() - cosine  # β |Δ| / |D₊| where |D₊ + β Δ| = ρ |D₊|
    return positive + delta * (root * wanted / torch.where(length > 0, length, 1.0)).clamp(max=1)


def _shrink(length: Tensor, wanted: Tensor, ratio: float) -> Tensor:
    """The factor that makes a length no greater than the ratio allows."""
    return (ratio * (wanted / torch.where(length > 0, length, 1.0))).clamp(max=1)


def _length(x: Latent, shapes: tuple[tuple[int, ...], ...]) -> Tensor:
    """The length of a sample, in units of √elements, so that it is a number where those of x are."""
    return norm(x / math.sqrt(x.shape[1:].numel()), shapes=shapes)


def _channels(x: Latent) -> Tensor:
    """The same of the channels at each position, [batch, 1, *spatial]."""
    largest = x.abs().amax(1, keepdim=True)
    return largest * (x / torch.where(largest > 0, largest, 1.0)).square().mean(1, keepdim=True).sqrt()

"""Self-Attention Guidance.   D' = D + s (x̃ − D(x̂)),   x̃ = M blur(Dᵣ) + (1 − M) Dᵣ,   x̂ = x + a (x̃ − Dᵣ)

Hong et al. 2023, "Improving Sample Quality of Diffusion Models Using Self-Attention Guidance", arXiv:2210.00939. What the
network attends to most is blurred in its own prediction Dᵣ and shown to it again with the same noise; M marks the image
tokens that are attended to more than the average. a is the signal's coefficient in x = a x₀ + σ ε. Neutral at s = 0.

The two branches see different x, so this is not D + s (D − D(x̂)): in ε it is ε + s (ε − ε̂), which for every a is the
above in x₀. The host's node has a = 1, right for ε and v networks; on flow models it shows the network a wrong x.
On CogVideoX a = 1/√(1 + σ²), that of the formula by which the host makes D there; its samplers begin with another.
With CFG the reference Dᵣ is the negative's prediction (the paper's Eq. 25), without it the positive's: no row more.
The masks other than "attention" are this pack's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import (
    REFERENCE,
    About,
    Apply,
    Branch,
    GuidanceRule,
    Latent,
    Observation,
    Predictions,
    Step,
    check_params,
    param,
)

RADIUS = 4  # of the blur: 9 latent pixels, as in the paper's Stable Diffusion code
MASKS = ("attention", "global", "high-frequency", "random", "square")


@dataclass(frozen=True)
class Degraded:
    """The source of the degraded branch's x."""

    blur_sigma: float
    mask: str
    observation: Observation | None

    def denoised(self, predictions: Predictions, step: Step) -> Latent:
        """x̃ [batch, channels, *spatial]"""
        reference = predictions[REFERENCE]
        blurred = blur(reference, self.blur_sigma)
        return torch.where(self.where(reference, blurred, step), blurred, reference)

    def where(self, reference: Latent, blurred: Latent, step: Step) -> Tensor:
        """M [batch, 1, *spatial]"""
        if self.mask == "attention" and self.observation is not None and self.observation in step.maps:
            return step.maps[self.observation] > 1 + 1e-5  # of equal attention none is more than the average
        if self.mask == "high-frequency":
            energy = (reference - blurred).float().square().mean(1, keepdim=True)
            return energy > energy.flatten(1).mean(1).view(-1, *[1] * (energy.ndim - 1))
        mask = torch.ones_like(reference[:, :1], dtype=torch.bool)
        if self.mask == "square":  # in the middle, of half the area
            sizes = mask.shape[2:][-2:]
            edges = [round(size * (1 - 0.5 ** (1 / len(sizes))) / 2) for size in sizes]
            mask[:] = False
            mask[(..., *(slice(edge, size - edge) for edge, size in zip(edges, sizes, strict=True)))] = True
        if self.mask == "random":
            for sample, generator in enumerate(step.generators("mask")):
                mask[sample] = (torch.rand(mask.shape[1:], generator=generator) < 0.5).to(mask.device)
        return mask

    def __call__(self, predictions: Predictions, step: Step) -> Latent:
        return step.x + step.signal * (self.denoised(predictions, step) - predictions[REFERENCE])


@dataclass(frozen=True)
class SelfAttentionGuidance(GuidanceRule):
    """s (x̃ − D(x̂)). Raises ValueError for a parameter out of range, or a mask that does not exist."""

    scale: float = param(0.5, low=0.0, high=100.0, off=0.0)
    blur_sigma: float = param(
        2.0, "How much is blurred, in pixels of the latent. 0 is off. 2 is usual; higher removes larger detail.",
        low=0.0, high=100.0, step=0.05,
    )  # fmt: skip
    mask: str = param(
        "attention",
        "Which places are blurred. attention: where the model looks most, as in the paper. global: everywhere. "
        "high-frequency: fine detail. random: half of the pixels. square: the middle of the picture.",
        choices=MASKS,
    )
    observation: Observation | None = None  # of the reference's attention, for the mask of that name

    about: ClassVar[About] = About(
        node_id="BeyondCFGSAG",
        name="SAG",
        title="Self-Attention Guidance (SAG)",
        summary=(
            "Adds detail and makes pictures more coherent, with or without a negative prompt. It blurs the places "
            "that the model looks at most, and moves away from what the model predicts for that blurred picture. "
            "Takes as much extra time as CFG."
        ),
        paper="arXiv:2210.00939",
        aliases=(
            "self-attention guidance",
            "sag",
            "blur guidance",
            "detail",
            "sharp",
            "better quality",
        ),
        default=0.5,
        guider=True,
    )

    def __post_init__(self):
        check_params(self)

    @property
    def _degraded(self) -> Branch:
        """The branch at x̂."""
        return Branch(REFERENCE.conditioning, source=self._source)

    @property
    def _source(self) -> Degraded:
        """What makes x̂ of x."""
        return Degraded(self.blur_sigma, self.mask, self.observation)

    def branches(self) -> tuple[Branch, ...]:
        return () if self.scale == 0 or self.blur_sigma == 0 else (REFERENCE, self._degraded)

    def begin(self) -> Apply:
        branch, source = self._degraded, self._source
        return lambda denoised, predictions, step: (
            denoised + self.scale * (source.denoised(predictions, step) - predictions[branch])
        )


def blur(x: Latent, sigma: float) -> Latent:
    """Gaussian blur of height and width, or of sound; borders reflected, on a short axis with a smaller radius."""
    for axis, size in zip((-1, -2), reversed(x.shape[2:]), strict=False):
        radius = min(RADIUS, size - 1)
        at = torch.arange(-radius, size + radius, device=x.device).abs()
        padded = x.index_select(axis, torch.where(at < size, at, 2 * (size - 1) - at))
        weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-radius, radius + 1)]
        total = sum(weights)
        x = torch.zeros_like(x)
        for i, weight in enumerate(weights):
            x = x + padded.narrow(axis, i, size) * (weight / total)
    return x

"""Frequency-Decoupled Guidance.   D_f = D₊ + l Δ_low + h Δ_high,   Δ = D − D₊ = Δ_low + Δ_high

Sadat et al. 2025, "Guidance in the Frequency Domain Enables High-Fidelity Sampling at Low CFG Scales",
arXiv:2506.19713, by a Laplacian pyramid of two levels: Δ_low is what is left of Δ at half the size. And Huang et al.
2025, "FreSca: Scaling in Frequency Space Enhances Diffusion Models", arXiv:2504.02154, by a Fourier transform: Δ_low
has less than `cutoff` waves on each axis. Over the last two axes, or the one there is. Neutral at l = h = 1.

FDG: D₋ + w_low (D₊ − D₋)_low + w_high (D₊ − D₋)_high. Here: on the whole direction so far, because a sum of terms has
no one w. With CFG alone, of weight w, l is (w_low − 1)/(w − 1), and h is (w_high − 1)/(w − 1). FreSca: factors on
w (D₊ − D₋); a factor f of it is (f w − 1)/(w − 1) here. Bands are linear, so they are the same of x₀, ε and v.

The FreSca paper has a disc of frequencies; the authors' code and the host's FreSca have the square that is here, and
count `cutoff` waves itself as half low. Of sound the host takes channels and time for the two axes. Diffusers' FDG fills
up a picture to powers of two and does not cut it again; here an odd axis gets one more row, which is cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import POSITIVE, About, Apply, Branch, GuidanceRule, Latent, check_params, param
from .linalg import exact, in_shape

HIGH = (
    "How strong the guidance is on edges and texture. 1 leaves it as it is. Higher gives more detail. "
    "The paper's for SDXL is 2.25 with cfg 5."
)
LOW = "How strong the guidance is on colours and composition. 1 leaves it as it is. Lower is calmer and more varied."
BANDS = (
    "How fine detail is told from the rest. pyramid: what is lost when the picture is made half as "
    "large, as in FDG. fourier: by cutoff, as in FreSca."
)
CUTOFF = (
    "For fourier only: what counts as fine detail, in waves along the side of the latent. Lower counts more as fine."
)


@dataclass(frozen=True)
class FrequencyDecoupled(GuidanceRule):
    """Changes the direction that the rules before it have made. Raises ValueError for a parameter out of range."""

    high: float = param(2.25, HIGH, low=0.0, high=20.0, step=0.05, off=1.0)
    low: float = param(1.0, LOW, low=0.0, high=20.0, step=0.05)
    bands: str = param("pyramid", BANDS, choices=("pyramid", "fourier"))
    cutoff: int = param(20, CUTOFF, low=1, high=10000, step=1)

    about: ClassVar[About] = About(
        node_id="BeyondCFGFrequencyDecoupled",
        name="Frequency-Decoupled",
        title="Frequency-Decoupled Guidance (FDG)",
        group="CFG corrections",
        summary=(
            "Gives more detail at a low cfg, without burnt colours. It strengthens the fine part of the guidance, "
            "and leaves the coarse part as it is. It acts on all guidance nodes before it. Takes no extra time."
        ),
        paper="arXiv:2506.19713",
        aliases=(
            "fdg",
            "frequency decoupled guidance",
            "fresca",
            "frequency guidance",
            "laplacian pyramid",
            "fourier",
            "detail",
            "sharp",
        ),
    )

    def __post_init__(self):
        check_params(self)

    def branches(self) -> tuple[Branch, ...]:
        return () if (self.high, self.low) == (1, 1) else (POSITIVE,)

    def begin(self) -> Apply:
        def coarse(direction):
            axes = tuple(range(max(2, direction.ndim - 2), direction.ndim))
            return left_at_half_size(direction, axes) if self.bands == "pyramid" else slow(direction, axes, self.cutoff)

        def apply(denoised, predictions, step):
            positive = exact(predictions[POSITIVE])
            delta = exact(denoised) - positive
            low = in_shape(coarse, delta, shapes=step.shapes)
            return (positive + self.low * low + self.high * (delta - low)).to(denoised.dtype)

        return apply


def slow(x: Latent, axes: tuple[int, ...], cutoff: int) -> Latent:
    """The part of `x` with from −cutoff to cutoff − 1 waves on each of `axes`, and of that the real part."""
    spectrum = torch.fft.fftn(x, dim=axes)
    for axis in axes:
        size = x.shape[axis]
        waves = torch.fft.fftfreq(size, 1 / size, device=x.device).round()
        edge = min(cutoff, size // 2) if size > 1 else 1
        kept = (-edge <= waves) & (waves < edge)
        spectrum = spectrum * kept.reshape(-1, *(1,) * (x.ndim - 1 - axis))
    return torch.fft.ifftn(spectrum, dim=axes).real


def left_at_half_size(x: Latent, axes: tuple[int, ...]) -> Latent:
    """`x` made half as large on `axes` and as large as before, blurred both times: a pyramid's way down and up."""
    for axis in axes:
        x = _down_and_up(x.movedim(axis, -1)).movedim(-1, axis)
    return x


def _down_and_up(x: Latent) -> Latent:
    """On the last axis. One row has no fine part."""
    size = x.shape[-1]
    if size == 1:
        return x
    x = torch.cat([x, x[..., -2:-1]], -1) if size % 2 else x  # mirrored, as in the blur
    half = _blurred(x).unflatten(-1, (-1, 2)).mean(-1)
    before, after = torch.cat([half[..., :1], half], -1)[..., :-1], torch.cat([half, half[..., -1:]], -1)[..., 1:]
    return _blurred(torch.stack([(3 * half + before) / 4, (3 * half + after) / 4], -1).flatten(-2))[..., :size]


def _blurred(x: Latent) -> Latent:
    """By (1, 4, 6, 4, 1)/16 on the last axis, whose ends are mirrors."""
    last = x.shape[-1] - 1
    near = (last - (last - torch.arange(-2, last + 3, device=x.device).abs()).abs()).abs()
    a, b, c, d, e = (x[..., near].narrow(-1, shift, last + 1) for shift in range(5))
    return (a + e + 4 * (b + d) + 6 * c) / 16

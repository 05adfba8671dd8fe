"""Sliding Window Guidance.   D' = D + s (D₊ − D₋),   D₋ = Σᵢ Wᵢᵀ D₊(Wᵢ x) / Σᵢ Wᵢᵀ 1

Kaiser et al. 2024, "The Unreasonable Effectiveness of Guidance for Diffusion Models", arXiv:2411.10257; from its third
version on Adaloglou et al., "Guiding a diffusion model with itself using sliding windows". Wᵢ cuts a window out of the
picture. The network predicts each of them as if it were a whole picture, so it lacks what is farther away; D₋ is what it
predicts, put together where it was, and averaged where windows overlap. Added to the result so far. Neutral at s = 0.

A cell's prediction is of that cell's own x and σ, and the weights of the mean add up to 1. So it is the same in ε, v and
x₀, though the network sees another input.

With `masked` the difference counts only where windows overlap, which the third version calls M-SWG.

Which windows: windows.py. They stand evenly from edge to edge as in the authors' code, which has 2 × 2 of 5/8 of each
side on EDM2 and DiT, in all steps. The node SlidingWindowGuidanceAdvanced of sd-perturbed-attention has tiles of 768
pixels that overlap by 256. It sets them 768 pixels apart, each 1024 wide and cut off at the edge: at 1024 pixels the first
is the whole picture and the others are strips. Here a window is what its size says, and none is cut off.

A size is a fraction of the sides. It means the same for every picture and every latent, and cannot be the whole picture
by mistake, as 768 pixels are for SD 1.5. 0.75 is 768 of 1024 pixels, and 0.33 of that about 256.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import POSITIVE, About, Apply, Branch, GuidanceRule, check_params, param
from .windows import Windows

SCALE = (
    "How strongly it acts. 0 is off and takes no extra time. The authors use 0.2 to 1.5, and 0.1 to 0.5 "
    "beside CFG. Higher is stronger; too high burns colours."
)
WINDOW = (
    "The size of a window, as a fraction of the picture. 0.75 is 768 of 1024 pixels; the authors use "
    "0.625. Lower hides more of the picture from the model."
)
OVERLAP = (
    "How much neighbouring windows overlap, at least, as a fraction of a window. Higher makes more "
    "windows, which takes more time."
)
MASKED = (
    "On: it acts only where windows overlap, so the corners of the picture stay as they are. The authors "
    "call this M-SWG."
)


@dataclass(frozen=True)
class SlidingWindowGuidance(GuidanceRule):
    """Away from what the network predicts without the long-range view. Raises ValueError for a parameter out of range."""

    scale: float = param(1.0, SCALE, low=0.0, high=100.0, step=0.05, off=0.0)
    window: float = param(0.75, WINDOW, low=0.25, high=0.875, step=0.125)
    overlap: float = param(0.33, OVERLAP, low=0.0, high=0.75, step=0.01)
    masked: bool = param(False, MASKED)

    about: ClassVar[About] = About(
        node_id="BeyondCFGSlidingWindow",
        name="SWG",
        title="Sliding Window Guidance (SWG)",
        summary=(
            "Makes pictures hold together as a whole. It shows the model parts of the picture by themselves, and "
            "moves away from what the model predicts for them. Takes about twice the extra time of CFG."
        ),
        paper="arXiv:2411.10257",
        aliases=(
            "swg",
            "m-swg",
            "sliding window guidance",
            "sliding window",
            "tiles",
            "crops",
            "long-range",
            "coherence",
            "anatomy",
            "better quality",
        ),
        default=1.0,
    )

    def __post_init__(self):
        check_params(self)

    @property
    def _windows(self) -> Windows:
        return Windows(self.window, self.overlap)

    def branches(self) -> tuple[Branch, ...]:
        return () if self.scale == 0 else (Branch(windows=self._windows),)

    def begin(self) -> Apply:
        windows = self._windows
        weak = Branch(windows=windows)

        def apply(denoised, predictions, step):
            difference = predictions[POSITIVE] - predictions[weak]
            if self.masked:
                difference = difference * (windows.counts(*step.x.shape[-2:]) > 1).to(difference)
            return denoised + self.scale * difference

        return apply

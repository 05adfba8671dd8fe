"""Skip Layer Guidance.   block(x) → x

Stability AI 2024, for SD 3.5, known as SLG; in video models STG-R, arXiv:2411.18664. The weak prediction is made with
some blocks of the transformer left out. Neutral at scale 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import About, BlockPerturbation
from .layers import Layer


@dataclass(frozen=True)
class SkippedLayer(BlockPerturbation):
    """Leaves its layers out."""

    layers: tuple[Layer, ...]

    about: ClassVar[About] = About(
        node_id="BeyondCFGSkipLayer",
        name="Skip Layer",
        title="Skip Layer Guidance (SLG)",
        summary=(
            "Repairs anatomy and structure, with transformers such as SD3.5, Flux and Wan. It moves away from what "
            "the model predicts with some of its layers left out. Use it early and briefly. Takes as much extra time "
            "as CFG, or less."
        ),
        paper="arXiv:2411.18664",
        aliases=(
            "skip layer guidance",
            "slg",
            "stg",
            "spatiotemporal skip guidance",
            "skip block",
            "anatomy",
            "hands",
            "better quality",
        ),
        default=3.0,
        window=(0.01, 0.15),
    )

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
        title="Skip Layer",
        summary=(
            "Skip Layer Guidance: moves away from what a transformer predicts with some of its blocks left out. "
            "Repairs anatomy and structure when used early and briefly. One more row per step."
        ),
        paper="arXiv:2411.18664",
        aliases=("skip layer guidance", "slg", "stg", "spatiotemporal skip guidance", "skip block"),
        default=3.0,
        window=(0.01, 0.15),
    )

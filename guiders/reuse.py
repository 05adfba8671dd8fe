"""Settings of guidances that cost less: computed in some steps alone, or ended when they no longer matter.

Reuse computes a direction every so many steps. In mode auto it is after twice as many steps as before where the error of
the direction that went on was within a tolerance, and after half as many where it was not. A direction that is drawn at
random in each step is computed every so many in both modes, since no two of those are alike. Stop ends a direction where
the worse prediction has become like the main one. directions.py says what a direction is, and how it goes on.

Papers have this for CFG: "Compress Guidance", arXiv:2408.11194, holds the direction; "FasterCache", arXiv:2410.19355,
continues it with factors by frequency; "Adaptive Guidance", arXiv:2312.12487, ends CFG where the cosine of both
predictions is large, in ε. There both are nearly the noise at first, so here it is of clean predictions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import About, check_params, param

EVERY = (
    "How often guidance is computed. 1: in every step, so nothing is saved. 3: in every third step. "
    "Higher is faster and less exact. In mode auto this is the longest gap."
)
MODE = (
    "regular: guidance is computed after every so many steps. auto: each guidance is computed as often "
    "as tolerance asks for, for each picture by itself."
)
TOLERANCE = (
    "For auto only: how wrong a guidance may get between two computed steps, as a fraction of its "
    "largest effect. Lower is more exact and slower."
)
BETWEEN = (
    "What happens in the steps between. linear: each guidance goes on changing as before. held: it stays "
    "the same, which makes it stronger, because its effect shrinks during sampling."
)
FIRST = "How many steps are always computed when a guidance begins to act."
LAST = "How many steps are always computed at the end of sampling."
COSINE = (
    "A guidance ends when the prediction that it moves away from is as similar as this to the model's main prediction. "
    "1 is off; 0.99 is a good start. Lower ends it earlier and saves more time."
)
LENGTH = (
    "A guidance ends when its effect is smaller than this fraction of its largest effect. 0 is off. "
    "Higher ends it earlier."
)


@dataclass(frozen=True)
class Reuse:
    """Which steps compute a direction. Raises ValueError for a parameter out of range."""

    every: int = param(3, EVERY, low=1, high=100, step=1)
    mode: str = param("regular", MODE, choices=("regular", "auto"))
    tolerance: float = param(0.6, TOLERANCE, low=0.001, high=10.0, step=0.05)
    between: str = param("linear", BETWEEN, choices=("linear", "held"))
    first: int = param(1, FIRST, low=1, high=1000, step=1)
    last: int = param(0, LAST, low=0, high=1000, step=1)

    about: ClassVar[About] = About(
        node_id="BeyondCFGReuse",
        name="Guidance Reuse",
        title="Faster: Guidance Reuse",
        group="Tools",
        summary=(
            "Makes all guidance nodes on a model faster, and the sampler's cfg too. What a guidance adds changes "
            "slowly from step to step. So it is computed in some steps only, and continued between them."
        ),
        paper="arXiv:2408.11194",
        aliases=(
            "faster",
            "slow",
            "speed",
            "cache",
            "cfg cache",
            "skip cfg",
            "compress guidance",
            "fastercache",
            "cheaper guidance",
        ),
    )

    def __post_init__(self):
        check_params(self)

    @property
    def acts(self) -> bool:
        """Whether any step may go uncomputed."""
        return self.every > 1

    @property
    def degree(self) -> int:
        """Of how a direction goes on: 0 is constant, 1 is a straight line."""
        return int(self.between == "linear")

    def period(self, before: int, error: float) -> int:
        """The steps from one that is computed to the next, in mode auto. Those before were `before` apart."""
        return min(self.every, 2 * before) if error <= self.tolerance else max(1, before // 2)


@dataclass(frozen=True)
class Stop:
    """When a direction is over for the rest of the run. Raises ValueError for a parameter out of range."""

    cosine: float = param(0.99, COSINE, low=0.0, high=1.0, step=0.001)
    length: float = param(0.0, LENGTH, low=0.0, high=1.0, step=0.01)

    about: ClassVar[About] = About(
        node_id="BeyondCFGStop",
        name="Guidance Stop",
        title="Faster: Guidance Stop",
        group="Tools",
        summary=(
            "Saves time in the later steps. It ends each guidance on a model, and the sampler's cfg, as soon as it "
            "no longer changes the picture."
        ),
        paper="arXiv:2312.12487",
        aliases=(
            "adaptive guidance",
            "skip cfg",
            "end cfg early",
            "uncond zero",
            "faster cfg",
            "stop guidance",
        ),
    )

    def __post_init__(self):
        check_params(self)

    @property
    def acts(self) -> bool:
        """Whether any direction may end."""
        return self.cosine < 1 or self.length > 0

    def ends(self, cosine: float, length: float) -> bool:
        """Whether a direction is over, by the cosine of C and D₋ and its length in parts of the longest."""
        return cosine > self.cosine or length < self.length

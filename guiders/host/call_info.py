"""What is known of one model call of the sampler, and what it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from ...patches.base import Moment
from ...patches.host import NegativePrompt
from ..base import Branch, Latent, Observation, Predictions, Step
from ..directions import Known


@dataclass(frozen=True)
class CallInfo:
    """One model call of the sampler, once the host has said with which conditionings it runs."""

    step: Step
    timestep: torch.Tensor  # σ as the host hands it on, [batch]
    moment: Moment
    asked: tuple[list[dict] | None, ...]  # the guider's conditionings in the host's own call
    reference: Literal["positive", "negative"] = "positive"  # what REFERENCE stands for
    observation: Observation | None = None  # what is observed of the reference's attention
    negative: NegativePrompt | None = None  # what acts in the attention of the positive
    hides_attention: bool = False  # whether tiles or windows keep the attention map of the whole latent from being seen
    shares_prefixes: bool = True  # whether rows that are copies may be computed once as long as they are equal

    @property
    def samples(self) -> int:
        """How many samples the batch of one conditioning has."""
        return self.step.x.shape[0]


@dataclass
class CallResult:
    """What a model call has come to so far."""

    predictions: Predictions | None = None  # None: not evaluated yet
    folded: bool = False
    forwards: int = 0  # of any network
    rows: int = 0  # in them
    rows_of: dict[Branch, int] = field(default_factory=dict)  # the same, by what they were evaluated for
    stages: list[tuple[str, Latent]] = field(default_factory=list)  # after each guidance, where somebody records
    known: list[Known] = field(default_factory=list)  # how directions were known, where they may go on
    saved: tuple[int, int] = (0, 0)  # forwards and rows that those did without

    def count(self, rows: int, branches: Sequence[Branch]) -> None:
        """Count one forward of so many rows, in equal parts for `branches`."""
        self.forwards, self.rows = self.forwards + 1, self.rows + rows
        for branch in branches:
            self.rows_of[branch] = self.rows_of.get(branch, 0) + rows // len(branches)

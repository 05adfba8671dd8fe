"""A guidance on a MODEL, as one node made it."""

from __future__ import annotations

from dataclasses import dataclass

from ..base import Branch, GuidanceRule
from ..classifier_free import SamplerCFG
from ..schedule import Schedule


@dataclass(frozen=True)
class Term:
    """One guidance on a model, as the user's node stated it."""

    rule: GuidanceRule | SamplerCFG
    schedule: Schedule
    node: str  # the node's title, for messages

    @property
    def branches(self) -> tuple[Branch, ...]:
        """What its rule needs beyond POSITIVE. SamplerCFG needs nothing: the sampler asks for its negative itself."""
        return () if isinstance(self.rule, SamplerCFG) else self.rule.branches()

    @property
    def acts(self) -> bool:
        """Whether it changes anything where its schedule is not 0."""
        return isinstance(self.rule, SamplerCFG) or bool(self.branches)

    def matters_at(self, own: float, cfg: float) -> bool:
        """Whether it changes a step in which it acts, where the weight of the sampler's CFG is `own`, and `cfg` after all
        terms."""
        if isinstance(self.rule, SamplerCFG):
            return own != 1
        return cfg != 1 or not self.rule.corrects_cfg

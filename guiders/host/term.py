"""A guidance on a MODEL, as one node made it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..base import Branch, GuidanceRule, Latent
from ..classifier_free import PositiveAlone, SamplerCFG
from ..region import Region
from ..schedule import Schedule


@dataclass(frozen=True)
class Fold:
    """A rule that is folded into the result of a model call."""

    rule: GuidanceRule
    node: str  # the name of the node that it comes from
    region: Region | None  # where in the picture it acts

    def region_of(self, latent: Latent, shapes: tuple[tuple[int, ...], ...]) -> Tensor | None:
        """Its region in a latent like this one, which packs latents of `shapes`. Raises ValueError, with the node's name,
        where the region is none of that."""
        try:
            return None if self.region is None else self.region.of(tuple(latent.shape), shapes).to(latent.device)
        except ValueError as error:
            raise ValueError(f"{self.node}: {error}") from None


@dataclass(frozen=True)
class Term:
    """One guidance on a model, as the user's node stated it."""

    rule: GuidanceRule | SamplerCFG
    schedule: Schedule
    node: str  # the node's name, for messages
    region: Region | None = None  # where in the picture it acts

    @property
    def branches(self) -> tuple[Branch, ...]:
        """What its rule needs beyond POSITIVE. SamplerCFG needs nothing: the sampler asks for its negative itself."""
        return () if isinstance(self.rule, SamplerCFG) else self.rule.branches()

    @property
    def acts(self) -> bool:
        """Whether it changes anything where its schedule is not 0."""
        return isinstance(self.rule, SamplerCFG) or bool(self.branches)

    @property
    def acts_nowhere(self) -> bool:
        """Whether its region is empty."""
        return self.region is not None and self.region.is_empty

    def strength(self, percent_to_sigma: Callable[[float], float]) -> Callable[[float], float]:
        """σ at the start of a step → how strongly it acts in it; 0 is not at all, 1 its full weight."""
        return (lambda sigma: 0.0) if self.acts_nowhere else self.schedule.strength(percent_to_sigma)

    @property
    def fold(self) -> Fold | None:
        """What it folds into the result. The host makes the sampler's CFG everywhere; a region takes it back elsewhere."""
        if not isinstance(self.rule, SamplerCFG):
            return Fold(self.rule, self.node, self.region)
        if self.region is None or self.acts_nowhere:
            return None
        return Fold(PositiveAlone(), self.node, self.region.inverted())

    def matters_at(self, own: float, cfg: float) -> bool:
        """Whether it changes a step in which it acts, where the weight of the sampler's CFG is `own`, and `cfg` after all
        terms."""
        if isinstance(self.rule, SamplerCFG):
            return own != 1
        return cfg != 1 or not self.rule.corrects_cfg

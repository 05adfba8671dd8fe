"""Several guidances as one:   D = ruleₙ(… rule₂(rule₁(D₀)))

The rules whose interval holds σ ask for branches; the union of those is evaluated once, all together, and a second time
only for branches whose input is made from the first predictions; then the rules fold, in the user's order. Those that
change the negative prediction come first, and the sampler's CFG sees what they make of it. D₀ is the positive
prediction, or what the sampler made of it (its own CFG). A rule of strength k at this σ goes k of its way,
D ← D + k (rule(D) − D): for a rule that adds w (D₊ − D₋) that is the weight k w. A region m (region.py) makes it k m. At
k = 0 a rule is left out, unless it remembers. What a branch adds may go on from earlier steps in place of an
evaluation (directions.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .base import NEGATIVE, POSITIVE, Apply, Branch, Evaluate, GuidanceRule, Latent, Predictions, Step
from .directions import Directions

CHANGED = ("result", "negative", "positive")  # GuidanceRule.changes
Strength = Callable[[float], float]  # σ at the start of a step → 0 (off) … 1 (full)


@dataclass(frozen=True)
class ActiveRule:
    """A rule of a run that acts at one noise level."""

    rule: GuidanceRule
    apply: Apply
    strength: float  # 0 only where the rule remembers
    region: Tensor | None = None  # where it acts, 0 to 1, broadcastable to the latent; None: everywhere

    def __call__(self, denoised: Latent, predictions: Predictions, step: Step) -> Latent:
        guided = self.apply(denoised, predictions, step)
        if self.strength == 0:
            return denoised
        if self.region is not None:
            return torch.lerp(denoised, guided, self.strength * self.region.to(denoised))
        return guided if self.strength == 1 else torch.lerp(denoised, guided, self.strength)


@dataclass(frozen=True)
class ActiveRules:
    """The rules of a run that act at one noise level."""

    rules: tuple[ActiveRule, ...]  # those that change the result
    of_negative: tuple[ActiveRule, ...] = ()  # those that change the negative prediction
    of_positive: tuple[ActiveRule, ...] = ()  # those that change how the positive is evaluated

    def __bool__(self) -> bool:
        return bool(self.rules or self.of_negative or self.of_positive)

    @property
    def replaces_negative(self) -> bool:
        """Whether nothing is left of the negative's own prediction, so that it need not be evaluated."""
        return any(a.strength == 1 and a.region is None and a.rule.replaces for a in self.of_negative)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """What they need beyond POSITIVE, each once, in the order they were asked for."""
        wanted = dict.fromkeys(b for active in (*self.of_negative, *self.rules) for b in active.rule.branches())
        if self.of_negative and not self.replaces_negative:
            wanted[NEGATIVE] = None
        free = {POSITIVE, NEGATIVE} if self.replaces_negative else {POSITIVE}
        return tuple(branch for branch in wanted if branch not in free)

    def with_negative(self, predictions: Predictions, step: Step) -> Predictions:
        """`predictions` with the negative as the rules change it."""
        if not self.of_negative:
            return predictions
        # Where it is replaced whole, what stands here has no part in the result.
        negative = predictions[POSITIVE if self.replaces_negative else NEGATIVE]
        for active in self.of_negative:
            negative = active(negative, predictions, step)
        return {**predictions, NEGATIVE: negative}

    def fold(self, denoised: Latent, predictions: Predictions, step: Step) -> Latent:
        """`denoised` after all rules, [batch, channels, *spatial]."""
        return [denoised, *self.stages(denoised, predictions, step)][-1]

    def stages(self, denoised: Latent, predictions: Predictions, step: Step) -> Iterator[Latent]:
        """What it is after each rule."""
        for active in self.rules:
            denoised = active(denoised, predictions, step)
            yield denoised


class GuidanceRun:
    """One sampling run of composed guidances."""

    def __init__(
        self,
        terms: Iterable[tuple[GuidanceRule, Strength]],
        regions: Iterable[Tensor | None] = (),
        directions: Directions | None = None,
    ):
        """regions: of the terms, in their order; none where they have none. directions: where branches may go on."""
        pairs = itertools.zip_longest(list(terms), regions)
        self._terms = [(rule, rule.begin(), strength, region) for (rule, strength), region in pairs if rule.branches()]
        self._directions = directions

    def at(self, start: float, cfg: float) -> ActiveRules:
        """The rules for a sampler's step that starts at σ = `start`, where the weight of its own CFG is `cfg`."""
        terms = (term for term in self._terms if cfg != 1 or not term[0].corrects_cfg)
        rules = [ActiveRule(rule, apply, strength(start), region) for rule, apply, strength, region in terms]
        called = [active for active in rules if active.strength != 0 or active.rule.remembers]
        changing = {what: tuple(active for active in called if active.rule.changes == what) for what in CHANGED}
        return ActiveRules(changing["result"], changing["negative"], changing["positive"])

    def __call__(self, step: Step, evaluate: Evaluate) -> Latent:
        active = self.at(step.start, step.cfg)
        branches = (POSITIVE, *active.branches)
        if self._directions is None:
            predictions = evaluate_all(branches, step, evaluate)
        else:
            due = self._directions.due(branches, step)
            predictions = self._directions.complete(evaluate_all(due, step, evaluate), step)
        return active.fold(predictions[POSITIVE], active.with_negative(predictions, step), step)


def evaluate_all(branches: tuple[Branch, ...], step: Step, evaluate: Evaluate) -> Predictions:
    """All `branches`: one evaluation at the step's x, and one more for each other input that a branch asks for."""
    predictions = dict(evaluate(tuple(branch for branch in branches if branch.source is None), step))
    for source in dict.fromkeys(branch.source for branch in branches if branch.source is not None):
        there = replace(step, x=source(predictions, step))
        predictions |= evaluate(tuple(branch for branch in branches if branch.source == source), there)
    return predictions

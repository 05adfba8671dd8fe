"""Several guidances as one:   D = ruleₙ(… rule₂(rule₁(D₀)))

The rules whose interval holds σ ask for branches; the union of those is evaluated once, all together, and a second time
only for branches whose input is made from the first predictions; then the rules fold, in the user's order. D₀ is the
positive prediction, or what the sampler made of it (its own CFG). A rule of strength k at this σ goes k of its way,
D ← D + k (rule(D) − D): for a rule that adds w (D₊ − D₋) that is the weight k w.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from .base import POSITIVE, Apply, Branch, Evaluate, GuidanceRule, Latent, Predictions, Step

Strength = Callable[[float], float]  # σ at the start of a step → 0 (off) … 1 (full)


@dataclass(frozen=True)
class ActiveRules:
    """The rules of a run that act at one noise level."""

    rules: tuple[tuple[GuidanceRule, Apply, float], ...]  # with their strengths, none of which is 0

    @property
    def branches(self) -> tuple[Branch, ...]:
        """What they need beyond POSITIVE, each once, in the order they were asked for."""
        wanted = dict.fromkeys(branch for rule, *_ in self.rules for branch in rule.branches())
        return tuple(branch for branch in wanted if branch != POSITIVE)

    def fold(self, denoised: Latent, predictions: Predictions, step: Step) -> Latent:
        """`denoised` after all rules, [batch, channels, *spatial]."""
        return [denoised, *self.stages(denoised, predictions, step)][-1]

    def stages(self, denoised: Latent, predictions: Predictions, step: Step) -> Iterator[Latent]:
        """What it is after each rule."""
        for _, apply, strength in self.rules:
            guided = apply(denoised, predictions, step)
            denoised = guided if strength == 1 else torch.lerp(denoised, guided, strength)
            yield denoised


class GuidanceRun:
    """One sampling run of composed guidances."""

    def __init__(self, terms: Iterable[tuple[GuidanceRule, Strength]]):
        self._terms = [(rule, rule.begin(), strength) for rule, strength in terms if rule.branches()]

    def at(self, start: float, cfg: float) -> ActiveRules:
        """The rules for a sampler's step that starts at σ = `start`, where the weight of its own CFG is `cfg`."""
        rules = ((rule, apply, strength(start)) for rule, apply, strength in self._terms)
        return ActiveRules(tuple(r for r in rules if r[2] != 0 and (cfg != 1 or not r[0].corrects_cfg)))

    def __call__(self, step: Step, evaluate: Evaluate) -> Latent:
        active = self.at(step.start, step.cfg)
        predictions = evaluate_all((POSITIVE, *active.branches), step, evaluate)
        return active.fold(predictions[POSITIVE], predictions, step)


def evaluate_all(branches: tuple[Branch, ...], step: Step, evaluate: Evaluate) -> Predictions:
    """All `branches`: one evaluation at the step's x, and one more for each other input that a branch asks for."""
    predictions = dict(evaluate(tuple(branch for branch in branches if branch.source is None), step))
    for source in dict.fromkeys(branch.source for branch in branches if branch.source is not None):
        there = replace(step, x=source(predictions, step))
        predictions |= evaluate(tuple(branch for branch in branches if branch.source == source), there)
    return predictions

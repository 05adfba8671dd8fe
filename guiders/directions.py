"""Directions that go on between steps, and end when they no longer matter.

    Δ = C − D₋,   D₋ ≈ C − Δ̂,   Δ̂(p) = Δ₁ + u (Δ₁ − Δ₀),   u = min(1, (p − p₁)/(p₁ − p₀))

A guidance needs a branch's prediction D₋ for its direction Δ alone, away from what is worse. C is what D₋ is compared
with: the positive prediction, or what the branch's source says. Along sampling Δ changes slowly. So some steps alone
compute it. In the others the last two that were computed go on in a straight line, Δ₀ of the place p₀ and Δ₁ of p₁, no
farther than they are apart. The rules get D₋ from that, and act as always. A step without computing has an error of
second order, like a step of Heun's method; where the direction is held, u = 0, an error of first order. A place is the
number of a step in the schedule, between two steps a fraction, linear in σ.

Reuse (reuse.py) says which steps compute, Stop when a direction is over: from then on Δ̂ = 0. Both decide for each sample
by that sample alone, once in a sampler's step. A row is computed for the whole batch where one sample needs it; the
other samples get what they would get alone. A direction begins anew where sampling goes back to more noise, and where
the last call did not ask for it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import POSITIVE, REFERENCE, Branch, Latent, Predictions, Step
from .linalg import dot, exact, norm
from .reuse import Reuse, Stop


@dataclass(frozen=True)
class Known:
    """How one model call knew one direction."""

    branch: Branch
    computed: int  # of how many samples it was computed
    over: int  # of how many it was over
    error: Tensor | None = None  # [computed], of Δ̂ where Δ was computed, in parts of the longest


class Directions:
    """The directions of one run. In each model call `due` comes first, then `complete`."""

    def __init__(self, reuse: Reuse | None, stop: Stop | None, sigmas: Sequence[float], measures: bool = False):
        """sigmas: the schedule. measures: whether `known` has errors where nothing else needs them."""
        self._reuse, self._stop, self._sigmas, self._measures = reuse or Reuse(every=1), stop, list(sigmas), measures
        self._of: dict[Branch, Direction] = {}
        self._index = -1  # of the step under way
        self._shape: tuple[int, ...] = ()  # of x
        self._asked = self._given = False  # for any direction in this run; for one that others read in each call
        self.saved = False  # whether any was not computed where it was asked for
        self.known: list[Known] = []  # in the last call

    def due(
        self, branches: Collection[Branch], step: Step, reference: Branch = POSITIVE, given: Collection[Branch] = ()
    ) -> tuple[Branch, ...]:
        """Those of `branches` that are to be evaluated. reference: what REFERENCE stands for. given: those that are
        evaluated in every call, whatever is said here."""
        if step.index != self._index:
            self._turn_to(step.index)
        if step.x.shape != self._shape:  # there are samplers that look at a smaller picture in between
            self._of, self._shape = {}, step.x.shape
        self._given |= bool({*given} - {POSITIVE, REFERENCE})
        asked = [branch for branch in branches if branch not in (POSITIVE, REFERENCE, *given)]
        self._of = {branch: self._of.get(branch) or self._direction(branch, step.x.shape[0]) for branch in asked}
        due = {POSITIVE, *given}
        if reference not in self._of:
            due.add(REFERENCE)
        for branch, direction in self._of.items():
            direction.decide(step.index, len(self._sigmas) - 1)
            if any(direction.computes):
                due.add(branch)
                if branch.source is not None:  # it may be made from the reference's own prediction
                    due |= {REFERENCE, reference}
        return tuple(branch for branch in branches if branch in due)

    def complete(self, predictions: Predictions, step: Step, reference: Branch = POSITIVE) -> Predictions:
        """`predictions` of those that were due, and of the others what their directions say."""
        place, found = place_of(step, self._sigmas), dict(predictions)
        self.known = []
        for branch in sorted(self._of, key=lambda branch: branch.source is not None):
            if branch.source is not None:
                found.setdefault(REFERENCE, found[reference])
            compared = getattr(branch.source, "denoised", None)
            base = found[POSITIVE] if compared is None else compared(found, step)
            direction = self._of[branch]
            found[branch], error = direction.go_on(base, predictions.get(branch), place)
            self.known.append(Known(branch, sum(direction.computes), sum(direction.over), error))
            self._asked = True
            self.saved |= not any(direction.computes)
        found.setdefault(REFERENCE, found[reference])
        return found

    def why_not(self, saving: Reuse | Stop) -> str:
        """Why nothing was saved in a run that is over."""
        if not self._asked and self._given:
            return "the sampler or another node reads the negative's own prediction in each step"
        if not self._asked:
            return "no guidance of this run needs a prediction beside the positive's"
        if isinstance(saving, Stop):
            return f"no guidance reached its end (cosine {saving.cosine:g}, length {saving.length:g})"
        if saving.mode == "auto":
            return f"with tolerance {saving.tolerance:g} every step had to be computed"
        steps = len(self._sigmas) - 1
        return f"in a run of {steps} step{'s' * (steps != 1)} no guidance acts long enough to go on"

    def forget(self) -> None:
        """A call has asked for nothing: all directions begin anew."""
        self._of = {}

    def _direction(self, branch: Branch, samples: int) -> Direction:
        return Direction(branch, self._reuse, self._stop, samples, self._measures)

    def _turn_to(self, index: int) -> None:
        """A step begins. What decides and was measured in the last one is read from the device, in one piece."""
        measured = {one: one.measured for one in self._of.values() if one.measured is not None}
        if measured:
            for direction, values in zip(measured, torch.stack([*measured.values()]).tolist(), strict=True):
                direction.learn(*values)
        if index < self._index:
            self._of = {branch: direction.anew() for branch, direction in self._of.items()}
        self._index = index


class Direction:
    """The direction of one branch: what is known of it, for each sample of the batch."""

    def __init__(self, branch: Branch, reuse: Reuse, stop: Stop | None, samples: int, measures: bool = False):
        self._made_with = branch, reuse, stop, samples, measures
        self._reuse, self._stop = reuse, stop
        self._is_auto = reuse.mode == "auto" and not branch.is_random
        self._decides = stop is not None or self._is_auto  # by what is measured
        self._measures = measures or self._decides
        self.over = [False] * samples
        self.computes = [True] * samples  # in the step under way
        self.measured: Tensor | None = None  # [3, batch]: error, cosine, length. Until something is decided by it
        self._longest: Tensor | None = None  # |Δ| so far, [batch, 1, …]
        self._newest: Latent | None = None  # Δ₁
        self._before: Latent | None = None  # Δ₀
        self._places: list[tuple[float, ...]] = [()] * samples  # (p₀, p₁), fewer where fewer were computed
        self._steps = [-1] * samples  # the number of the one that was computed last
        self._gaps = [0] * samples  # steps between the last two that were computed
        self._periods = [1 if self._is_auto else reuse.every] * samples
        self._began = self._index = -1  # its first step, and the one under way
        self._is_first = True  # whether the evaluation under way is the first of its step

    def anew(self) -> Direction:
        """The same with nothing computed. What is over stays so."""
        new = Direction(*self._made_with)
        new.over, new._longest = self.over, self._longest
        return new

    def decide(self, index: int, steps: int) -> None:
        """Say which samples are computed in the step of that number, of so many."""
        if index == self._index:
            return
        self._index, self._is_first = index, True
        self._began = index if self._began < 0 else self._began
        always = index < self._began + self._reuse.first or index >= steps - self._reuse.last
        each = zip(self._steps, self._periods, self.over, strict=True)
        self.computes = [not over and (always or last < 0 or index >= last + period) for last, period, over in each]

    def go_on(self, base: Latent, prediction: Latent | None, place: float) -> tuple[Latent, Tensor | None]:
        """(what stands for D₋, the error of Δ̂ where it is measured). base: C. prediction: D₋, where it was evaluated."""
        is_first, self._is_first = self._is_first, False
        if prediction is None or not any(self.computes):
            return base - self._estimate(base, place), None
        direction, error = base - prediction, None
        given = prediction
        if not all(self.computes):
            given = torch.where(_column(self.computes, base), prediction, base - self._estimate(base, place))
        if is_first:
            if self._measures:
                measured = self._measure(base, prediction, direction, place)
                error = (
                    None if self._newest is None else measured[[at for at, here in enumerate(self.computes) if here]]
                )
            self._keep(direction, place)
        return given, error

    def learn(self, errors: list[float], cosines: list[float], lengths: list[float]) -> None:
        """Decide by what was measured when the last step was computed."""
        self.measured = None
        for at, computed in enumerate(self.computes):
            if computed and self._stop is not None:
                self.over[at] = self._stop.ends(cosines[at], lengths[at])
            if computed and self._gaps[at] and self._is_auto:
                self._periods[at] = self._reuse.period(self._gaps[at], errors[at])

    def _estimate(self, base: Latent, place: float) -> Latent:
        """Δ̂ at a place, like `base`; 0 where the direction is over or nothing is known."""
        if self._newest is None:
            return torch.zeros_like(base)
        estimate = self._newest
        ahead = [self._ahead(places, place) for places in self._places]
        if self._before is not None and any(ahead):
            estimate = estimate + _column(ahead, base) * (estimate - self._before)
        return torch.where(_column(self.over, base), 0.0, estimate) if any(self.over) else estimate

    def _ahead(self, places: tuple[float, ...], place: float) -> float:
        """u of a sample whose direction was computed at these places."""
        if self._reuse.degree == 0 or len(places) < 2 or places[1] <= places[0]:
            return 0.0
        return min(1.0, (place - places[1]) / (places[1] - places[0]))

    def _measure(self, base: Latent, prediction: Latent, direction: Latent, place: float) -> Tensor:
        """The error of Δ̂, [batch], in parts of the longest Δ. Keeps what is decided by."""
        length, tiny = norm(direction), torch.finfo(torch.float32).tiny
        longest = length if self._longest is None else torch.maximum(self._longest, length)
        if self._longest is not None and not all(self.computes):
            longest = torch.where(_column(self.computes, base), longest, self._longest)
        self._longest = longest
        unit = self._longest.clamp(min=tiny)
        error = norm(exact(direction) - exact(self._estimate(base, place))) / unit
        if self._decides:
            cosine = dot(base, prediction) / (norm(base) * norm(prediction)).clamp(min=tiny)
            self.measured = torch.stack([error, cosine, length / unit]).flatten(1)
        return error.flatten()

    def _keep(self, direction: Latent, place: float) -> None:
        """Δ was computed for those samples that compute it."""
        if all(self.computes) or self._newest is None:
            self._before, self._newest = self._newest, direction
        else:
            computed = _column(self.computes, direction)
            before = self._newest if self._before is None else self._before
            self._before = torch.where(computed, self._newest, before)
            self._newest = torch.where(computed, direction, self._newest)
        for at in (at for at, computed in enumerate(self.computes) if computed):
            known, last = self._places[at], self._steps[at]
            self._gaps[at] = self._index - last if known else 0
            self._places[at], self._steps[at] = (*known, place)[-2:], self._index


def place_of(step: Step, sigmas: Sequence[float]) -> float:
    """Where in the schedule the σ of an evaluation is: the number of a step, between two a fraction, linear in σ."""
    at = min(step.index, len(sigmas) - 2)
    while at + 2 < len(sigmas) and (sigmas[at + 1] - step.sigma) * (sigmas[at] - sigmas[at + 1]) >= 0:
        at += 1  # it lies at the next one or beyond
    here, there = sigmas[at], sigmas[at + 1]
    return at if here == there else at + (here - step.sigma) / (here - there)


def _column(values: Sequence[float | bool], like: Latent) -> Tensor:
    """One value for each sample, [batch, 1, …]."""
    column = torch.tensor(values, device=like.device, dtype=torch.bool if isinstance(values[0], bool) else like.dtype)
    return column.view(-1, *[1] * (like.ndim - 1))

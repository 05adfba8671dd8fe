"""The search: Optuna asks for settings in rounds, the pool makes their pictures, and Optuna is told what they are worth.

A round has a fixed number of settings, which are told in their order. So the outcome is the same for any number of
workers. And a search that was stopped goes on: with the same seed Optuna asks for the same settings again, and their
results are in the store.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import optuna
from scipy.stats.qmc import LatinHypercube

from ..cells import Cell, Failed, Result
from ..pool import Pool
from .axes import Axis, Settings

STARTUP = 10  # settings, spread evenly, before Optuna learns from them
OF_EACH_CHOICE = 3  # so many of them have each choice of an axis


@dataclass(frozen=True)
class Goal:
    """What a setting is judged by."""

    name: str
    more_is_better: bool


class Task(Protocol):
    """What is searched."""

    axes: Sequence[Axis]
    goals: Sequence[Goal]

    def cells(self, settings: Settings) -> list[Cell]:
        """The work that tells what these settings are worth."""
        raise NotImplementedError

    def score(self, results: Sequence[Result]) -> tuple[float, ...]:
        """The value of each goal, from the results of those cells."""
        raise NotImplementedError


@dataclass(frozen=True)
class Tried:
    """One trial. scores: one for each goal; none where it failed, with the reason in `why`."""

    settings: Settings
    scores: tuple[float, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Found:
    """All trials, in their order, and Optuna's study of them."""

    goals: Sequence[Goal]
    tried: list[Tried]
    study: Any

    @property
    def best(self) -> Tried:
        """The best by the first goal. Raises ValueError where every trial failed."""
        done = [one for one in self.tried if one.scores]
        if not done:
            raise ValueError(f"no trial has worked; the first one: {self.tried[0].why if self.tried else 'none'}")
        return max(done, key=lambda one: one.scores[0] if self.goals[0].more_is_better else -one.scores[0])

    @property
    def front(self) -> list[Tried]:
        """The Pareto front: those that no other trial beats in one goal without losing in another. By the last goal."""
        signs = [1 if goal.more_is_better else -1 for goal in self.goals]

        def beaten(one: Tried, other: Tried) -> bool:
            pairs = [(sign * a, sign * b) for sign, a, b in zip(signs, one.scores, other.scores, strict=True)]
            return all(b >= a for a, b in pairs) and any(b > a for a, b in pairs)

        done = [one for one in self.tried if one.scores]
        kept = [one for one in done if not any(beaten(one, other) for other in done)]
        return sorted(kept, key=lambda one: one.scores[-1])


def startup(axes: Sequence[Axis], trials: int) -> int:
    """How many settings a search of so many trials begins with: a third of them at most, if those have each choice."""
    choices = max(len(axis.choices) for axis in axes)
    wanted = min(max(STARTUP, OF_EACH_CHOICE * choices), trials // 3)
    return max(2, min(trials, max(wanted, choices)))


def spread(axes: Sequence[Axis], count: int, seed: int) -> list[Settings]:
    """So many first settings, as a Latin hypercube: each range is cut in so many equal parts, and each is tried once. So
    each choice is tried, and none much oftener than another. Drawn freely, a choice could be missed, and Optuna would
    hardly come back to it. Where there are few for the choices, the middle of each part is tried, else any place in it."""
    enough = count >= 2 * max(len(axis.choices) for axis in axes)
    parts = LatinHypercube(len(axes), scramble=enough, rng=seed).random(count)
    return [{axis.label: axis.at(float(part)) for axis, part in zip(axes, row, strict=True)} for row in parts]


def sampler_of(seed: int, known: int) -> optuna.samplers.BaseSampler:
    """Optuna's TPE of all axes together, which learns from the first `known` settings on; for several goals too."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls some of these options experimental
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=known, multivariate=True, constant_liar=True)


def search(
    task: Task,
    pool: Pool,
    trials: int,
    at_once: int,
    seed: int,
    first: Sequence[Settings] = (),
    said: Callable[[Tried], None] = lambda tried: None,
) -> Found:
    """Try so many settings, `at_once` of them in each round, `first` before all others. Raises what Pool.run raises."""
    way = optuna.study.StudyDirection
    directions = [way.MAXIMIZE if goal.more_is_better else way.MINIMIZE for goal in task.goals]
    start = [*first, *spread(task.axes, startup(task.axes, trials), seed)]
    study = optuna.create_study(directions=directions, sampler=sampler_of(seed, len(start)))
    for settings in start:
        study.enqueue_trial(dict(settings))
    found = Found(task.goals, [], study)
    while len(found.tried) < trials:
        asked = [study.ask() for _ in range(min(at_once, trials - len(found.tried)))]
        settings = [{axis.label: axis.suggest(trial) for axis in task.axes} for trial in asked]
        cells = [task.cells(each) for each in settings]
        results = iter(pool.run([cell for group in cells for cell in group]))
        for trial, each, group in zip(asked, settings, cells, strict=True):
            tried = _judged(task, each, [next(results) for _ in group])
            if tried.scores:
                study.tell(trial, [*tried.scores])
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            found.tried.append(tried)
            said(tried)
    return found


def _judged(task: Task, settings: Settings, results: Sequence[Result | Failed]) -> Tried:
    failed = [one.reason for one in results if isinstance(one, Failed)]
    if failed:
        return Tried(settings, why=failed[0])
    return Tried(settings, task.score([one for one in results if isinstance(one, Result)]))

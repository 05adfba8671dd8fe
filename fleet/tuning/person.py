"""A search by a person's eye: settings are compared two by two, with pictures of the same seed.

Half of the answers go to a first group of settings, the workflow's own among them. Their scores tell Optuna where to look,
and the other half goes to all that there are then. Which side a picture stands on is drawn.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import optuna

from ..cells import Failed
from ..pool import Pool
from ..store import digest
from .axes import Settings
from .page import ANSWERS, Question
from .preference import Preferences, order
from .search import Found, Goal, Task, Tried, sampler_of, spread

SCORE = Goal("score by the answers", True)


class Person(Protocol):
    """Who answers."""

    def ask(self, question: Question) -> Literal["left", "right", "same"]:
        """Which of the two pictures is better."""
        raise NotImplementedError


class Remembered:
    """A person whose answers are kept in a file: what was asked before is not asked again."""

    def __init__(self, person: Person, path: Path):
        self._person, self._path = person, path
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self._known: dict[str, Any] = {}
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # the last one, of a run that was killed
                kept = json.loads(line)
                self._known[kept["question"]] = kept["answer"]

    def ask(self, question: Question) -> Literal["left", "right", "same"]:
        """The answer that was given, or a new one."""
        name = digest(f"{question.number} {digest(question.left)} {digest(question.right)}".encode())
        if self._known.get(name) not in ANSWERS:
            self._known[name] = self._person.ask(question)
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps({"question": name, "answer": self._known[name]}))
        return self._known[name]


def compared(
    task: Task, pool: Pool, person: Person, answers: int, candidates: int, seed: int, first: Sequence[Settings] = (),
    said: Callable[[str], None] = lambda text: None,
) -> Found:  # fmt: skip
    """Ask so many questions about so many settings; each has its score. Raises what Pool.run raises, and ValueError where
    less than two settings give pictures."""
    rng, asked = np.random.default_rng(seed), 0
    known: list[Settings] = []
    pictures: list[list[bytes]] = []  # of each setting, one for each seed
    preferences, failed, study = Preferences(0), [], None
    early = max(2, candidates // 2) if candidates > 2 else candidates
    for count, until in ((early, answers // 2 if candidates > early else answers), (candidates, answers)):
        study = _study(task, known, preferences, seed, [*first, *spread(task.axes, max(2, count - len(first)), seed)])
        trials = [study.ask() for _ in range(count - len(known) - len(failed))]
        settings = [{axis.label: axis.suggest(trial) for axis in task.axes} for trial in trials]
        groups = [task.cells(each) for each in settings]
        results = iter(pool.run([cell for group in groups for cell in group]))
        for each, group in zip(settings, groups, strict=True):
            found = [next(results) for _ in group]
            why = [one.reason for one in found if isinstance(one, Failed)]
            why += ["the workflow makes no picture"] * (not why and not all(one.pictures for one in found))  # type: ignore
            if why:
                failed.append(Tried(each, why=why[0]))
                said(f"Settings are left out: {why[0]}")
            else:
                known.append(each)
                pictures.append([one.pictures[0] for one in found if not isinstance(one, Failed)])
        if len(known) < 2:
            raise ValueError(f"two settings at least must give pictures: {failed[0].why if failed else 'there is one'}")
        preferences.grow(len(known))
        while asked < until:
            asked += 1
            one, other = preferences.question()
            shown = asked % len(pictures[one])  # the seed
            left, right = (one, other) if rng.random() < 0.5 else (other, one)
            answer = person.ask(Question(asked, answers, pictures[left][shown], pictures[right][shown]))
            preferences.add(left, right, {"left": left, "right": right, "same": None}[answer])
    scores = preferences.scores()[0]
    tried = [Tried(known[at], (float(scores[at]),)) for at in order(scores.tolist())]
    return Found([SCORE], tried + failed, study)


def _study(task: Task, known: Sequence[Settings], preferences: Preferences, seed: int, first: Sequence[Settings]):
    """Optuna's study of what is known so far. Scores change with each answer, so each round has a new one."""
    study = optuna.create_study(direction="maximize", sampler=sampler_of(seed + len(known), max(2, len(known))))
    if not known:
        for settings in first:
            study.enqueue_trial(dict(settings))
        return study
    probe = study.ask()
    for axis in task.axes:
        axis.suggest(probe)
    study.tell(probe, state=optuna.trial.TrialState.FAIL)  # it was for the distributions
    for settings, score in zip(known, preferences.scores()[0], strict=True):
        study.add_trial(
            optuna.trial.create_trial(params=dict(settings), distributions=probe.distributions, value=float(score))
        )
    return study

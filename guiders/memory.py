"""What the steps of a run leave to later ones:   recalled in a step = kept in the step before

A sampler may evaluate several times in one step. All evaluations of a step recall the same, and what the first of them
keeps is what the next step recalls. A step that lies before the last one in the schedule begins anew: it recalls nothing.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from .base import Step

T = TypeVar("T")


class Memory(Generic[T]):
    """The memory of one rule in one run. In each evaluation `recall` comes first, then `keep`."""

    def __init__(self):
        self._index = -1  # of the step under way
        self._recalled: T | None = None
        self._kept: T | None = None
        self._is_first = True  # whether the evaluation under way is the first of its step

    def recall(self, step: Step) -> T | None:
        """What the last step before this one has kept; None where there is none."""
        self._is_first = step.index != self._index
        if self._is_first:
            self._recalled = self._kept if step.index > self._index else None
            self._index = step.index
        return self._recalled

    def keep(self, value: T) -> None:
        """Leave `value` to the next step. Does nothing but in the first evaluation of a step."""
        if self._is_first:
            self._kept = value

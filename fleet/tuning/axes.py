"""What a search may change: an input of a node of a workflow, with its range or its choices.

5.cfg=1:8                    any number from 1 to 8
5.steps=4:30:whole           a whole number
PAG.scale=0.1:10:log         the same, with as many tries from 0.1 to 1 as from 1 to 10
PAG.layers=auto|single.3     one of these
12.enabled=true|false
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...tools.console import Failure
from ..sweeps import named, values_of

Settings = Mapping[str, Any]  # label of an axis → value


@dataclass(frozen=True)
class Axis:
    """One input. It has choices, or all numbers from low to high."""

    node: str
    name: str
    low: float = 0.0
    high: float = 0.0
    is_log: bool = False
    is_whole: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def label(self) -> str:
        """What it is called in tables, and to Optuna."""
        return f"{self.node}.{self.name}"

    def suggest(self, trial) -> Any:
        """A value from an Optuna trial."""
        if self.choices:
            return trial.suggest_categorical(self.label, self.choices)
        if self.is_whole:
            return trial.suggest_int(self.label, round(self.low), round(self.high), log=self.is_log)
        return trial.suggest_float(self.label, self.low, self.high, log=self.is_log)

    def at(self, part: float) -> Any:
        """The value below which this part of the range lies, from 0 to less than 1."""
        if self.choices:
            return self.choices[int(part * len(self.choices))]
        if self.is_whole and not self.is_log:
            return round(self.low) + int(part * (round(self.high) - round(self.low) + 1))
        value = self.low * (self.high / self.low) ** part if self.is_log else self.low + part * (self.high - self.low)
        return round(value) if self.is_whole else value

    def holds(self, value: Any) -> bool:
        """Whether the search could try this value."""
        if self.choices:
            return value in self.choices
        return isinstance(value, (int, float)) and self.low <= value <= self.high


def axes_of(graph: Mapping[str, dict], texts: Sequence[str]) -> list[Axis]:
    """The axes that texts name. Raises Failure, which names the text and says what is wrong."""
    axes = [axis_of(graph, text) for text in texts]
    if not axes:
        raise Failure("There is nothing to search: name inputs with --vary, such as --vary PAG.scale=0:6.")
    labels = [axis.label for axis in axes]
    for label in labels:
        if labels.count(label) > 1:
            raise Failure(f"--vary names {label} twice.")
    return axes


def axis_of(graph: Mapping[str, dict], text: str) -> Axis:
    """The axis of one text. Raises Failure."""
    said = f"--vary {text[:60]}"
    target, equals, values = text.partition("=")
    if not equals:
        raise Failure(f"{said}: it must be of the form NODE.INPUT=LOW:HIGH or NODE.INPUT=ONE|OTHER.")
    node, name = named(dict(graph), target, said)
    before = graph[node]["inputs"][name]
    if "|" in values or isinstance(before, (str, bool)):
        parts = [part.strip() for part in values.split("|")]
        choices = [value for part in parts for value in values_of(f"\n{part}\n{part}", before, said)[:1]]
        if len({*map(str, choices)}) < 2:
            raise Failure(f"{said}: there is one choice only; write several with | between them.")
        return Axis(node, name, choices=tuple(choices))
    low, high, *ways = values.split(":") if ":" in values else ("", "")
    is_log, is_whole = "log" in ways, "whole" in ways
    try:
        low, high = float(low), float(high)
    except ValueError:
        raise Failure(f"{said}: it must be a range such as 0:6 or 0.1:10:log, or choices such as 1|2|4.") from None
    if {*ways} - {"log", "whole"}:
        raise Failure(f"{said}: after the range there can only be :log and :whole.")
    if not (math.isfinite(low) and math.isfinite(high)) or low >= high:
        raise Failure(f"{said}: the first number must be below the second, and both must be finite.")
    if is_log and low <= 0:
        raise Failure(f"{said}: with :log the range must begin above 0.")
    if is_whole and (low != round(low) or high != round(high)):
        raise Failure(f"{said}: with :whole the range must be of whole numbers.")
    return Axis(node, name, low, high, is_log, is_whole)

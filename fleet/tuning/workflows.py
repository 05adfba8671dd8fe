"""A workflow in the API format as what is searched: its pictures, by seeds, and what they are worth."""

from __future__ import annotations

import copy
import datetime
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ...tools import workflows
from ...tools.console import Failure
from ...tools.imports import file_of_the_user
from ..cells import Cell, Result
from .axes import Axis, Settings
from .search import Goal

SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom")  # nodes of the host that take the MODEL themselves
RECORDER, REPORT = "BeyondCFGRecorder", "BeyondCFGReport"
OURS = "BeyondCFG"  # the ids of our nodes begin with it
ROWS = "rows_per_step"  # what Guidance Report says beside its pictures


class Objective(Protocol):
    """What a result is worth."""

    name: str

    def __call__(self, result: Result) -> float:
        """Raises Failure where the result does not say it."""
        raise NotImplementedError


class Number:
    """A number that a node of the workflow gives out: NODE.NAME, as in the results' table."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, result: Result) -> float:
        if self.name not in result.values:
            known = ", ".join(result.values) or "none"
            raise Failure(f"--number {self.name}: no node of the workflow gives it. What they give: {known}.")
        value = result.values[self.name]
        try:
            number = float(value)
        except ValueError:
            raise Failure(f'--number {self.name}: the node gave "{str(value)[:60]}", which is no number.') from None
        if not np.isfinite(number):
            raise Failure(f"--number {self.name}: the node gave {value}.")
        return number


class Function:
    """A Python function of the pictures: FILE.py:NAME, which the user names on the command line. It gets a list of arrays
    [height, width, 3] of 0…1, and gives a number."""

    def __init__(self, text: str):
        path, _, name = text.rpartition(":")
        self.name, file = name, Path(path)
        if not file.is_file() or file.suffix != ".py":
            raise Failure(f"--function {text}: it must be FILE.py:NAME, and there is no file {path or text}.")
        function = getattr(file_of_the_user(file), name, None)
        if not callable(function):
            raise Failure(f"--function {text}: {file.name} has no function {name}.")
        self._function: Callable = function

    def __call__(self, result: Result) -> float:
        if not result.pictures:
            raise Failure("--function: the workflow makes no picture; it needs a Save Image or Preview Image.")
        pictures = [np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.float32) / 255 for png in result.pictures]
        value = float(self._function(pictures))
        if not np.isfinite(value):
            raise Failure(f"--function: {self.name} gave {value}; it must give a finite number.")
        return value


class WorkflowTask:
    """Settings → the workflow with them, once with each seed. With `cost`, a second goal: rows of the network per step."""

    def __init__(
        self, graph: dict, axes: Sequence[Axis], seeds: Sequence[int], objective: Objective | None, more_is_better: bool,
        cost: bool,
    ):  # fmt: skip
        self.axes: Sequence[Axis] = axes
        self.seeds, self.objective = seeds, objective
        self._graph, self._report = recorded(graph) if cost else (graph, "")
        goals = [Goal(objective.name, more_is_better)] if objective else []
        self.goals: Sequence[Goal] = goals + [Goal("rows per step", False)] * cost

    @property
    def start(self) -> dict[str, Any] | None:
        """The values that the workflow itself has; None where an axis does not hold its value."""
        values = {axis.label: self._graph[axis.node]["inputs"][axis.name] for axis in self.axes}
        return values if all(axis.holds(values[axis.label]) for axis in self.axes) else None

    def cells(self, settings: Settings) -> list[Cell]:
        """One for each seed."""
        made = with_settings(self._graph, self.axes, settings)
        cells = []
        for seed in self.seeds:
            graph = copy.deepcopy(made)
            workflows.set_seed(graph, seed)
            cells.append(Cell("workflow", {"workflow": graph}, {**settings, "seed": seed}))
        return cells

    def score(self, results: Sequence[Result]) -> tuple[float, ...]:
        """Means over the seeds."""
        scores = [float(np.mean([self.objective(one) for one in results]))] if self.objective else []
        if self._report:
            scores.append(float(np.mean([self._rows(one) for one in results])))
        return tuple(scores)

    def _rows(self, result: Result) -> float:
        key = f"{self._report}.{ROWS}"
        if key not in result.values:
            raise Failure(f"--cost: Guidance Report does not say {ROWS}; this ComfyUI has an older Beyond CFG.")
        return float(result.values[key])


def with_settings(graph: dict, axes: Sequence[Axis], settings: Settings) -> dict:
    """A copy of the workflow with these values."""
    made = copy.deepcopy(graph)
    for axis in axes:
        made[axis.node]["inputs"][axis.name] = settings[axis.label]
    return made


def recorded(graph: dict) -> tuple[dict, str]:
    """(the workflow with Guidance Recorder and Report, the report's id). Those that it has are used. Raises Failure where
    it is not plain which sampler is meant."""
    found = [node for node, about in graph.items() if about["class_type"] == REPORT]
    if len(found) > 1:
        raise Failure(f"--cost: the workflow has {len(found)} Guidance Reports; leave the one that is meant.")
    if found:
        return graph, found[0]
    samplers = [*_samplers(graph)]
    if len(samplers) != 1:
        raise Failure(
            f"--cost: the workflow has {len(samplers)} samplers with a model. Put Guidance Recorder and Guidance Report at "
            "the one that is meant."
        )
    (taker, sampler), made = samplers[0], copy.deepcopy(graph)
    model = made[taker]["inputs"]["model"]
    recorder, report = "tuner-recorder", "tuner-report"
    made[recorder] = {"class_type": RECORDER, "inputs": {"model": model, "predictions_at": ""}}
    made[taker]["inputs"]["model"] = [recorder, 0]
    inputs = {"report": [recorder, 1], "samples": [sampler, 0], "filename_prefix": ""}
    made[report] = {"class_type": REPORT, "inputs": inputs}
    return made, report


def _samplers(graph: dict):
    """(the node that takes the MODEL, the node that samples) of each sampler."""
    for node, about in graph.items():
        if about["class_type"] in SAMPLERS and isinstance(about["inputs"].get("model"), list):
            yield node, node
        guider = about["inputs"].get("guider")
        if isinstance(guider, list) and isinstance(graph.get(guider[0], {}).get("inputs", {}).get("model"), list):
            yield guider[0], node


def kept_values(graph: dict, axes: Sequence[Axis], settings: Settings) -> dict[str, dict]:
    """For each of our nodes: what is kept of it → a workflow that has it kept for its checkpoint."""
    found = {}
    by_node: dict[str, dict[str, Any]] = {}
    for axis in axes:
        by_node.setdefault(axis.node, {})[axis.name] = settings[axis.label]
    for node, values in by_node.items():
        about = graph[node]
        name, model = about["class_type"].removeprefix(OURS), about["inputs"].get("model")
        if name == about["class_type"] or not isinstance(model, list):
            continue
        inputs = {
            "model": model, "node": name, "values": json.dumps(values),
            "source": f"measured by Guidance Tuner, {datetime.date.today().isoformat()}",
        }  # fmt: skip
        made: dict[str, dict] = {f"tuner-keep-{node}": {"class_type": f"{OURS}KeepValues", "inputs": inputs}}
        ahead = [model[0]]
        while ahead:  # what the model comes from
            at = ahead.pop()
            if at not in made:
                made[at] = copy.deepcopy(graph[at])
                made[at]["inputs"] |= {axis.name: settings[axis.label] for axis in axes if axis.node == at}
                ahead += [value[0] for value in made[at]["inputs"].values() if isinstance(value, list)]
        found[f"{name}, node {node} ({', '.join(f'{key} {short(value)}' for key, value in values.items())})"] = made
    return found


def short(value: Any) -> str:
    """A value for a sentence."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)

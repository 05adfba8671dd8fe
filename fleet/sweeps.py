"""What a sweep is made of: a workflow, inputs with their values, seeds → one cell for each combination."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..tools import workflows
from ..tools.console import Failure
from .cells import Cell
from .kinds.base import KINDS

LISTED = 12
OURS = "BeyondCFG"  # the kinds of our nodes begin with it; PAG is BeyondCFGPAG


def named(graph: dict, target: str, said: str) -> tuple[str, str]:
    """(the node, its input) that a text such as KSampler.cfg names, as in the node Guidance Sweep: a node's number, else
    its title, else its kind, then a dot and the input. All may hold dots. Raises Failure, which says `said` first."""
    known = None
    for dot in (at for at, letter in enumerate(target) if letter == "."):
        name, given = target[:dot].strip().lower(), target[dot + 1 :].strip()
        found = _called(graph, name)
        having = [node for node in found if given in graph[node]["inputs"]]
        if len(having) == 1:
            if isinstance(graph[having[0]]["inputs"][given], list):
                raise Failure(f"{said}: {given} of {_title(graph, having[0])} comes from another node; vary it there.")
            return having[0], given
        if having:
            numbers = " or ".join(f"{node}.{given}" for node in having[:LISTED])
            raise Failure(f"{said}: {len(having)} nodes are called so. Write the number of one: {numbers}.")
        known = found[0] if found else known
    if known is not None:
        inputs = ", ".join(graph[known]["inputs"]) or "none"
        raise Failure(f"{said}: {_title(graph, known)} has no such input; its inputs are {inputs}.")
    listing = ", ".join(f"{node} ({graph[node]['class_type']})" for node in graph)
    raise Failure(f"{said}: it must be a node and one of its inputs, such as 5.cfg; the nodes are {listing}.")


def _called(graph: dict, name: str) -> list[str]:
    kind = lambda node: graph[node]["class_type"]  # noqa: E731
    for called in (
        lambda node: node,
        lambda node: _title(graph, node),
        kind,
        lambda node: kind(node).removeprefix(OURS),
    ):
        if found := [node for node in graph if str(called(node)).lower() == name]:
            return found
    return []


def _title(graph: dict, node: str) -> str:
    return (graph[node].get("_meta") or {}).get("title") or graph[node]["class_type"]


def values_of(text: str, before: Any, said: str) -> list[Any]:
    """The values in a text, of the type of the value that stands there now: with commas between them, one on each line
    where a value has commas of its own, or a JSON list. Raises Failure."""
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise Failure(f"{said}: this is no JSON list ({error}).") from None
    else:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        parts = (
            lines if len(lines) > 1 else [part.strip() for line in lines for part in line.split(",") if part.strip()]
        )
        found = [part if isinstance(before, str) else workflows.parse_value(part) for part in parts]
    if not found:
        raise Failure(f"{said}: there is no value; write some, such as 1,3,5.")
    return [_of_type(value, before, said) for value in found]


def _of_type(value: Any, before: Any, said: str) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(before, bool) and not isinstance(value, bool):
        raise Failure(f"{said}: {value} must be true or false.")
    if isinstance(before, (int, float)) and not isinstance(before, bool):
        if not number:
            raise Failure(f"{said}: {value} must be a number.")
        return float(value) if isinstance(before, float) else value
    return value


def swept(graph: dict, varied: Sequence[str], seeds: Sequence[int] = ()) -> list[Cell]:
    """The cells of a sweep: each combination of the values, with each seed. `varied`: texts such as 5.cfg=1,3,5."""
    axes: list[list[tuple[str, str, Any]]] = []
    for text in varied:
        said = f"--vary {text[:60]}"
        target, equals, values = text.partition("=")
        if not equals:
            raise Failure(f"{said}: it must be of the form NODE.INPUT=VALUE,VALUE.")
        node, name = named(graph, target, said)
        label = f"{node}.{name}"
        if label in (axis[0][0] + "." + axis[0][1] for axis in axes):
            raise Failure(f"{said}: {label} is varied twice.")
        axes.append([(node, name, value) for value in values_of(values, graph[node]["inputs"][name], said)])
    cells = []
    for chosen in itertools.product(*axes):
        for seed in seeds or [None]:
            made = copy.deepcopy(graph)
            labels: dict[str, Any] = {}
            for node, name, value in chosen:
                made[node]["inputs"][name] = value
                labels[f"{node}.{name}"] = value if isinstance(value, (int, float, str)) else json.dumps(value)
            if seed is not None:
                workflows.set_seed(made, seed)
                labels["seed"] = seed
            cells.append(Cell("workflow", {"workflow": made}, labels))
    return cells


def loaded(path: Path, varied: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """The cells of a file: of a workflow, or a list of cells with kind, work and labels. Raises Failure."""
    found = workflows.read(path)
    if not isinstance(found, list):
        return swept(workflows.load(path), varied, seeds)
    if varied or seeds:
        raise Failure(f"{path} is a list of cells: --vary and --seeds are for a workflow.")
    cells = []
    for at, one in enumerate(found):
        if not isinstance(one, dict) or one.get("kind") not in KINDS or not isinstance(one.get("work"), dict):
            kinds = ", ".join(KINDS)
            raise Failure(f"{path}: cell {at + 1} must have a kind (one of {kinds}) and a work.")
        labels = one.get("labels") or {}
        if not isinstance(labels, dict) or not all(isinstance(value, (int, float, str)) for value in labels.values()):
            raise Failure(f"{path}: the labels of cell {at + 1} must be numbers and texts.")
        cells.append(Cell(one["kind"], one["work"], labels))
    if not cells:
        raise Failure(f"{path} holds no cell.")
    return cells

"""What a kind of cell must say: what it needs of a worker, whether that is there, and how a cell is done."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cells import Cell, Result

KINDS = {  # kind → module and class; only these can be named in a file of cells
    "echo": "pack.fleet.kinds.simple:Echo",
    "sleep": "pack.fleet.kinds.simple:Sleep",
    "workflow": "pack.fleet.kinds.workflow:Workflows",
}


class Wrong(Exception):
    """A cell that fails on every worker, such as a workflow with an error: it is not tried again."""


class Broken(Exception):
    """A worker that could not do a cell; another try may succeed."""


@dataclass(frozen=True)
class Worker:
    """A place where cells are done."""

    name: str
    url: str = ""  # a ComfyUI server that runs already; empty: the worker starts its own where it needs one
    gpu: bool = False
    host: Mapping[str, str] | None = None  # of that ComfyUI: folder, python and version, as tools.hosts.Host has them
    cpus: float = 1.0  # what Ray counts it as


class Kind(ABC):
    """The cells of one kind, on one worker. Made when the first of them comes, and closed with the worker."""

    def __init__(self, worker: Worker, folder: Path):
        self.worker = worker
        self.folder = folder  # for logs and scratch files; it goes with the fleet

    @staticmethod
    def needs(cells: Sequence[Cell]) -> Any:
        """JSON: what these cells need of a worker. None: nothing that could be missing."""
        return None

    def check(self, needs: Any) -> str:
        """What this worker lacks of it, in one sentence without the worker's name; empty where it lacks nothing."""
        return ""

    @abstractmethod
    def do(self, work: Mapping[str, Any], limit: float) -> Result:
        """Do a cell in at most `limit` seconds. Raises Wrong or Broken."""

    def close(self) -> None:  # noqa: B027
        """End what it has started."""


def kind_of(name: str, more: Mapping[str, str]) -> type[Kind]:
    """The class of a kind. Raises Wrong where there is none."""
    known = {**KINDS, **more}
    if name not in known:
        raise Wrong(f'there is no kind of cell "{name}"; the kinds are {", ".join(known)}')
    module, _, found = known[name].partition(":")
    return getattr(importlib.import_module(module), found)

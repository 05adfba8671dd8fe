"""Workflows in the API format, run by a ComfyUI: one that this worker starts, or one that runs already."""

from __future__ import annotations

import contextlib
import math
import re
import tempfile
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import websocket

from ...tools import workflows
from ...tools.console import Failure
from ...tools.hosts import Host
from ...tools.server import Refused, Server, TooLong, running
from ..cells import MOST_BYTES, Cell, Result
from .base import Broken, Kind, Worker, Wrong

NO_VALUES = ("images", "animated", "gifs", "audio", "video")  # of a node's outputs: files, and what is said of them
LISTED = 5  # things in a sentence
MOST_LETTERS = 400  # of a sentence
LONGEST = 200  # letters of a value that may be a choice: longer ones are prompts


class Workflows(Kind):
    """work: {"workflow": nodes by their ids} → the pictures of its output nodes in the order of their ids, and the numbers
    and texts that nodes gave out, called NODE.NAME."""

    def __init__(self, worker: Worker, folder: Path):
        super().__init__(worker, folder)
        self._stack = contextlib.ExitStack()
        self._running: Server | None = None

    @property
    def server(self) -> Server:
        """The ComfyUI, started if it is not there. Raises Broken where none answers."""
        if self._running is None:
            try:
                self._running = Server(self.worker.url) if self.worker.url else self._start()
                if "system" not in self._running.ask("/system_stats"):
                    raise Failure(f"What answers at {self._running.url} is no ComfyUI.")
            except (Failure, TypeError, OSError) as error:
                raise Broken(_sentence(error, its_end=True)) from None  # which may stand below a log
        return self._running

    def _start(self) -> Server:
        given = self.worker.host
        if given is None:
            raise Broken("No ComfyUI is named that this worker could start.")
        host = Host(Path(given["folder"]), Path(given["python"]), given.get("version") or None)
        self.folder.mkdir(parents=True, exist_ok=True)
        tempfile.tempdir = str(self.folder)  # what is left there by a killed worker goes with the fleet
        log = self.folder / f"{re.sub(r'[^A-Za-z0-9]', '_', self.worker.name)}.log"
        return self._stack.enter_context(running(host, gpu=self.worker.gpu, log=log, tied=True))

    def close(self) -> None:
        """End the ComfyUI that this worker has started."""
        self._running = None
        self._stack.close()

    @staticmethod
    def needs(cells: Sequence[Cell]) -> dict[str, dict[str, list[str]]]:
        """Node kinds → their inputs → the texts that are given to those, which may be names of files."""
        found: dict[str, dict[str, set[str]]] = {}
        for cell in cells:
            for node in graph_of(cell.work).values():
                inputs = found.setdefault(node["class_type"], {})
                for name, value in node["inputs"].items():
                    if isinstance(value, str) and len(value) <= LONGEST:
                        inputs.setdefault(name, set()).add(value)
        return {kind: {name: sorted(texts) for name, texts in inputs.items()} for kind, inputs in found.items()}

    def check(self, needs: dict[str, dict[str, list[str]]]) -> str:
        """Nodes that this ComfyUI does not have, and models that it cannot choose."""
        nodes, choices = [], []
        for kind, inputs in sorted(needs.items()):
            about = self.server.ask("/object_info/" + urllib.parse.quote(kind, safe="")).get(kind)
            if not isinstance(about, dict):
                nodes.append(kind)
                continue
            declared = about.get("input") or {}
            takes = {**(declared.get("required") or {}), **(declared.get("optional") or {})}
            for name, texts in inputs.items():
                known = _choices(takes.get(name))
                if known is not None:
                    choices += [f'"{text}" for {name} of {kind}' for text in texts if text not in known]
        lacks = [f"the node{'s' * (len(nodes) > 1)} {_listed(nodes)}"] if nodes else []
        lacks += [f"the choice{'s' * (len(choices) > 1)} {_listed(choices)}"] if choices else []
        return f"this ComfyUI does not have {' and '.join(lacks)}." if lacks else ""

    def do(self, work: Mapping[str, Any], limit: float) -> Result:
        """Run a workflow once."""
        try:
            server = self.server
            record = server.record_of(graph_of(work), limit=limit, whole=True)
            if record["status"]["status_str"] != "success":
                raise _failed(record["status"].get("messages") or [])
            return _result(server, record["outputs"])
        except TooLong:
            raise Broken(f"it took longer than {limit:g} seconds") from None
        except Refused as refused:
            raise Wrong(_sentence(refused)) from None
        except Failure as failure:
            raise Broken(_sentence(failure, its_end=True)) from None
        except (KeyError, TypeError, AttributeError):
            raise Broken("what ComfyUI answered is no history of a workflow") from None
        except (OSError, websocket.WebSocketException) as error:
            raise Broken(f"the connection to ComfyUI broke ({type(error).__name__})") from None


def graph_of(work: Mapping[str, Any]) -> dict[str, dict]:
    """The nodes of a workflow cell. Raises Wrong where it has none."""
    graph: Any = work.get("workflow")
    nodes = [*graph.values()] if isinstance(graph, Mapping) else []
    if not nodes or not all(isinstance(node, Mapping) and "class_type" in node and "inputs" in node for node in nodes):
        raise Wrong("its work has no workflow in the API format")
    return dict(graph)


def _choices(declared: Any) -> list[str] | None:
    """What an input can choose from; None where it is no choice, or the page alone knows."""
    kind, options = (*(declared or ()), None, None)[:2]
    if kind == "COMBO" and isinstance(options, Mapping):
        kind = options.get("options")
    return [*map(str, kind)] if isinstance(kind, list) else None


def _failed(messages: list) -> Exception:
    whole = workflows.execution_error(messages)
    transient = re.search(r"OutOfMemory|out of memory|interrupted|CUDA error|No space left", str(whole))
    return (Broken if transient else Wrong)(_sentence(whole))


def _result(server: Server, outputs: Mapping[str, Mapping[str, Any]]) -> Result:
    """The pictures and values in the outputs of a history."""
    values: dict[str, float | str] = {}
    pictures = []
    for node in sorted(outputs, key=natural):
        for image in outputs[node].get("images") or []:
            name = str(image["filename"])
            if not name.lower().endswith(".png"):
                raise Wrong(f"node {node} put out {name[:80]}; the fleet takes PNG pictures only")
            pictures.append(server.picture(image, MOST_BYTES))
        for name, given in sorted(outputs[node].items()):
            if name in NO_VALUES or not isinstance(given, list):
                continue
            plain = [one for one in given if isinstance(one, (int, float, str))]
            for at, value in enumerate(plain):
                if isinstance(value, float) and not math.isfinite(value):
                    raise Wrong(f"node {node} gave {value} for {name}")
                key = f"{node}.{name}" + (f".{at}" if len(plain) > 1 else "")
                values[key] = int(value) if isinstance(value, bool) else value
    return Result(values, tuple(pictures))


def natural(name: str) -> tuple:
    """An order of node ids in which 9 comes before 10, and 57:3 after 57."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"[:.]", name))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _sentence(error: Exception | str, its_end: bool = False) -> str:
    """On one line, of a long one the beginning or its end."""
    words = " ".join(str(error).split())
    if len(words) <= MOST_LETTERS:
        return words
    if its_end:
        end = words[-MOST_LETTERS:]
        return f"… {end.partition(' ')[2] or end}"
    beginning = words[:MOST_LETTERS]
    return f"{beginning.rpartition(' ')[0] or beginning} …"

"""One worker: it does cells one after another, each by the class of its kind."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .cells import Result, Unusable, checked
from .kinds.base import Broken, Kind, Worker, Wrong, kind_of


class Doer:
    """What runs in a Ray actor, or in this process where there are no workers.

    Its answers are (outcome, what): "done" with (values, pictures, seconds), "wrong" or "broken" with the reason. So
    nothing but JSON values and bytes goes back."""

    def __init__(self, worker: Worker, folder: Path, kinds: Mapping[str, str]):
        self.worker, self.folder, self.more = worker, folder, kinds
        self.kinds: dict[str, Kind] = {}

    def check(self, needs: Mapping[str, Any]) -> str:
        """One sentence of what this worker lacks of what cells need, by kind; empty where it lacks nothing."""
        for name, needed in needs.items():
            try:
                if said := self._kind(name).check(needed):
                    return said
            except Exception as error:
                self.close()
                return str(error) if isinstance(error, (Wrong, Broken)) else in_words(error)
        return ""

    def do(self, kind: str, work: Mapping[str, Any], limit: float) -> tuple[str, Any]:
        """Do one cell."""
        start = time.perf_counter()
        try:
            result = checked(self._kind(kind).do(work, limit))
        except (Wrong, SystemExit) as error:
            return "wrong", str(error)
        except Exception as error:
            self.close()  # the next cell shall find all new
            if not isinstance(error, (Broken, Unusable)):
                traceback.print_exc()  # into the worker's log
            return "broken", str(error) if isinstance(error, (Broken, Unusable)) else in_words(error)
        return "done", (dict(result.values), result.pictures, time.perf_counter() - start)

    def close(self) -> None:
        """End what its kinds have started."""
        for kind in self.kinds.values():
            with contextlib.suppress(Exception):  # the others shall end too
                kind.close()
        self.kinds.clear()

    def _kind(self, name: str) -> Kind:
        if name not in self.kinds:
            self.kinds[name] = kind_of(name, self.more)(self.worker, self.folder)
        return self.kinds[name]


def result_of(answer: Any, worker: str) -> Result:
    """The result in a worker's answer. Raises Unusable where it is none."""
    values, pictures, seconds = answer
    return checked(Result(values, tuple(pictures), round(float(seconds), 4), worker))


def in_words(error: Exception) -> str:
    """An error that nobody foresaw, on one line."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

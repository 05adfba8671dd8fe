"""A kind of cell that misbehaves once, or always."""

import os
import signal
import time
from pathlib import Path

from pack.fleet.cells import Result
from pack.fleet.kinds.base import Broken, Kind, Wrong

KINDS = {"fault": "pack.tests.fleet.faults:Faults"}


class Faults(Kind):
    """work: {"fault": which one, "mark": a file that says that it has happened (each time without it), "value"}"""

    @staticmethod
    def needs(cells):
        return [lacking for cell in cells if (lacking := cell.work.get("lacks"))] or None

    def check(self, needs):
        return f"it does not have {needs[0]}." if needs else ""

    def do(self, work, limit):
        mark = work.get("mark")
        if mark is None or not Path(mark).exists():
            if mark:
                Path(mark).touch()
            self.misbehave(work["fault"])
            if work["fault"] == "broken picture":
                return Result({}, (b"\x89PNG\r\n\x1a\n and no more",))
        return Result({"value": work["value"]})

    def misbehave(self, fault):
        if fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hangs":
            time.sleep(3600)
        if fault == "broken":
            raise Broken("the connection broke")
        if fault == "wrong":
            raise Wrong("node 5 failed with ValueError: no such sampler")
        if fault == "unforeseen":
            raise RuntimeError("never\nseen before")

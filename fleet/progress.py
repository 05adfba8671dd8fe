"""How far the work is: bars for each worker and for all, and the time that is left. On no terminal, a line now and then."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..tools import console
from .cells import Cell, Failed, Result

EVERY = 5.0  # seconds between lines where there is no terminal
ROWS = 24  # workers in the table; a fleet may have more than a terminal has lines


class Bars:
    """Use it as a context manager around the runs of a pool."""

    def __init__(self, where: Console | None = None):
        self.console = where or console.console
        self.start = self.printed = time.monotonic()
        self.total = self.known = self.done = self.failed = 0
        self.workers: dict[str, list] = {}  # name → [cells done, label of the current one, since when]
        self.live = Live(console=self.console, get_renderable=self._table, refresh_per_second=4, transient=True)

    def __enter__(self) -> Bars:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *error) -> None:
        self.live.stop()
        if self.total:
            self.console.print(self._summary())

    def expect(self, workers: Sequence[str], total: int, known: int) -> None:
        """A run begins."""
        self.start = time.monotonic()
        self.total, self.known, self.done, self.failed = total, known, 0, 0
        self.workers = {name: self.workers.get(name, [0, "", 0.0]) for name in workers}
        if known:
            self.say(f"{known} of {total} cells are finished already.")

    def begin(self, worker: str, cell: Cell) -> None:
        """A worker has got a cell."""
        shown = ", ".join(f"{name} {value}" for name, value in cell.labels.items()) or cell.id[:8]
        entry = self.workers.setdefault(worker, [0, "", 0.0])
        entry[1], entry[2] = shown, time.monotonic()

    def end(self, worker: str, cell: Cell, result: Result | Failed | None) -> None:  # noqa: ARG002
        """It has ended; None: it will be tried again."""
        entry = self.workers.setdefault(worker, [0, "", 0.0])
        entry[1] = ""
        if result is None:
            return
        entry[0] += isinstance(result, Result)
        self.done += 1
        if isinstance(result, Failed):
            self.failed += 1
            self.say(f"A cell has failed: {result.reason}")
        if not self.console.is_terminal and time.monotonic() - self.printed > EVERY:
            self.printed = time.monotonic()
            self.console.print(self._summary())

    def say(self, text: str) -> None:
        """One sentence above the bars."""
        self.console.print(text)

    def _left(self) -> str:
        todo = self.total - self.known - self.done
        if not self.done or not todo:
            return ""
        seconds = (time.monotonic() - self.start) / self.done * todo
        return f", {seconds / 60:.0f} min left" if seconds >= 90 else f", {seconds:.0f} s left"

    def _summary(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.known + self.done - self.failed} of {self.total} cells are finished{failed}{self._left()}."

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        now = time.monotonic()
        for name, (count, shown, since) in [*self.workers.items()][:ROWS]:
            doing = f"{shown[:50]}, {now - since:.0f} s" if shown else ""
            bar = ProgressBar(total=max(1, self.total - self.known), completed=count, width=20)
            table.add_row(Text(name), bar, Text(f"{count}"), Text(doing))
        if len(self.workers) > ROWS:
            table.add_row(Text(f"and {len(self.workers) - ROWS} more"))
        bar = ProgressBar(total=max(1, self.total), completed=self.known + self.done, width=20)
        table.add_row(Text("all"), bar, Text(f"{self.known + self.done}"), Text(self._summary()))
        return table

"""Cells → results, by workers that may fail. Ray runs the workers; what is finished is in the store.

A worker has one cell at a time. One that dies, hangs or gives no result is replaced, and its cell is done again, at most
`tries` times. The results stand in the order of the cells, and do not depend on which worker did which cell."""

from __future__ import annotations

import collections
import contextlib
import errno
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ..tools.console import Failure
from . import cluster
from .cells import Cell, Failed, Result, Unusable
from .kinds.base import Worker, Wrong, kind_of
from .store import Store
from .worker import Doer, result_of

GRACE = 10.0  # seconds that a worker gets beyond the limit, to end a cell by itself
STARTING = 600.0  # seconds that a worker may take to start and to look what it has
IN_A_ROW = 3  # failures without a finished cell, after which a worker is given up
LOOK = 0.5  # seconds between two looks at the clocks of cells


class Progress(Protocol):
    """Who hears how far the work is."""

    def expect(self, workers: Sequence[str], total: int, known: int) -> None:
        """A run begins: of `total` cells `known` are in the store."""

    def begin(self, worker: str, cell: Cell) -> None:
        """A worker has got a cell."""

    def end(self, worker: str, cell: Cell, result: Result | Failed | None) -> None:
        """It has ended; None: it will be tried again."""

    def say(self, text: str) -> None:
        """One sentence for the user."""


class Silent:
    """Nobody hears it."""

    def expect(self, workers: Sequence[str], total: int, known: int) -> None:
        """Nothing."""

    def begin(self, worker: str, cell: Cell) -> None:
        """Nothing."""

    def end(self, worker: str, cell: Cell, result: Result | Failed | None) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


@dataclass
class Post:
    """A worker as the pool sees it."""

    worker: Worker
    actor: Any = None
    at: int | None = None  # the place of its cell among the missing ones
    since: float = 0.0
    failures: int = 0  # since it last finished a cell
    why: str = ""  # it was given up

    @property
    def name(self) -> str:
        return self.worker.name


@dataclass
class _Run:
    """What one call of Pool.run has to do, and has."""

    cells: list[Cell]  # the missing ones, each id once
    waiting: collections.deque[int]
    found: dict[str, Result | Failed] = field(default_factory=dict)
    tried: collections.Counter = field(default_factory=collections.Counter)


class Pool:
    """Workers that do cells. Without workers the cells are done in this process, one by one, and Ray is not needed.

    limit: seconds for a cell. tries: of a cell whose worker fails. kinds: more kinds of cells, "module:class" by name.
    address: of a Ray that runs already; without it Ray is started on this machine. Used as a context manager."""

    def __init__(
        self,
        workers: Sequence[Worker] = (),
        store: Store | Path | str | None = None,
        progress: Progress | None = None,
        limit: float = 600.0,
        tries: int = 3,
        kinds: Mapping[str, str] | None = None,
        address: str = "",
    ):
        names = [worker.name for worker in workers]
        if len({*names}) < len(names):
            raise ValueError("two workers have one name")
        self.store = store if isinstance(store, Store) or store is None else Store(store)
        self.progress, self.limit, self.tries = progress or Silent(), limit, tries
        self.kinds, self.address = dict(kinds or {}), address
        self._posts = [Post(worker) for worker in workers]
        self._stack = contextlib.ExitStack()
        self._ray: Any = None
        self._actor_class: Any = None
        self._folder = Path()
        self._here: Doer | None = None
        self._checked: set[str] = set()

    def __enter__(self) -> Pool:
        try:
            if not self._posts:
                self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
                self._here = Doer(Worker("here"), self._folder, self.kinds)
                self._stack.callback(self._here.close)
                return self
            cpus = max(1, round(sum(post.worker.cpus for post in self._posts) + 0.499))
            gpus = sum(post.worker.gpu for post in self._posts)
            self._folder = self._stack.enter_context(cluster.running(self.address, cpus, gpus))
            self._ray = cluster.ray()
            self._actor_class = cluster.actor_class()
            self._stack.callback(self._close_workers)
            for post in self._posts:
                self._hire(post)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *error) -> None:
        self._stack.close()

    @property
    def pids(self) -> dict[str, int]:
        """The processes of the workers, by their names."""
        return {post.name: self._ray.get(post.actor.pid.remote()) for post in self._posts if post.actor}

    def check(self, cells: Sequence[Cell]) -> list[str]:
        """What the workers lack of what these cells need: one sentence for each worker that lacks something."""
        kinds = sorted({cell.kind for cell in cells})
        needs = {}
        for kind in kinds:
            needed = kind_of(kind, self.kinds).needs([cell for cell in cells if cell.kind == kind])
            if needed is not None:
                needs[kind] = needed
        if not needs:
            return []
        if self._here:
            said = self._here.check(needs)
            return [said[:1].upper() + said[1:]] if said else []
        asked = {post.name: post.actor.check.remote(needs) for post in self._posts if not post.why}
        end = time.monotonic() + STARTING
        found = []
        for name, answer in asked.items():
            try:
                if said := self._ray.get(answer, timeout=max(1.0, end - time.monotonic())):
                    found.append(f"{name}: {said}")
            except Exception as error:
                found.append(f"{name}: {self._why(error)}")
        return found

    def run(self, cells: Sequence[Cell]) -> list[Result | Failed]:
        """The results in the order of the cells. Finished ones come from the store. A cell that stands there twice is done
        once. Raises Failure before the first cell where a worker lacks something, and where the store cannot be written or
        Ray's head is lost: what was finished until then is kept."""
        cells = [*cells]
        unique = {cell.id: cell for cell in cells}
        found: dict[str, Result | Failed] = {}
        for name, cell in unique.items():
            if self.store and (result := self.store.done(cell)):
                found[name] = result
        missing = [cell for name, cell in unique.items() if name not in found]
        self.progress.expect([post.name for post in self._posts], len(unique), len(found))
        if missing:
            if said := self.check(missing):
                raise Failure("\n".join(said))
            run = _Run(missing, collections.deque(range(len(missing))), found)
            if self._here:
                self._run_here(run)
            else:
                self._run(run)
        return [found[cell.id] for cell in cells]

    def _run_here(self, run: _Run) -> None:
        doer = self._here
        assert doer is not None
        while run.waiting:
            at = run.waiting.popleft()
            cell = run.cells[at]
            self.progress.begin("here", cell)
            self._settle(run, at, "here", *doer.do(cell.kind, cell.work, self.limit))

    def _run(self, run: _Run) -> None:
        under_way: dict[Any, Post] = {}
        try:
            while run.waiting or under_way:
                for post in self._posts:
                    if run.waiting and post.at is None and not post.why:
                        under_way[self._give(run, post)] = post
                if not under_way:  # no worker is left
                    self._give_up(run)
                    return
                ready, _ = self._ray.wait([*under_way], num_returns=1, timeout=LOOK)
                ready += [answer for answer in self._also_ready(under_way) if answer not in ready]
                for answer in ready:
                    self._take(run, under_way.pop(answer), answer)
                late = time.monotonic() - self.limit - GRACE
                for answer, post in [*under_way.items()]:
                    if post.since < late:
                        del under_way[answer]
                        self._take(run, post, None)
        finally:
            for post in under_way.values():  # stopped in mid-run
                post.at = None

    def _also_ready(self, under_way: dict) -> list:
        return self._ray.wait([*under_way], num_returns=len(under_way), timeout=0)[0]

    def _give(self, run: _Run, post: Post) -> Any:
        post.at = run.waiting.popleft()
        cell = run.cells[post.at]
        post.since = time.monotonic()
        self.progress.begin(post.name, cell)
        return post.actor.do.remote(cell.kind, dict(cell.work), self.limit)

    def _take(self, run: _Run, post: Post, answer: Any) -> None:
        """A cell has ended, or (None) taken too long."""
        at, post.at = post.at, None
        assert at is not None
        replaced = False
        if answer is None:
            outcome, what = "broken", f"it took longer than {self.limit:g} seconds"
            replaced = True
        else:
            try:
                outcome, what = self._ray.get(answer)
            except Exception as error:
                self._look_for_the_head(error)
                outcome, what, replaced = "broken", self._why(error), True
        outcome = self._settle(run, at, post.name, outcome, what)
        if outcome == "broken":
            post.failures += 1
            self._replace(post, str(what), needed=replaced)
        elif outcome == "done":
            post.failures = 0

    def _settle(self, run: _Run, at: int, worker: str, outcome: str, what: Any) -> str:
        """Keep what came of a cell, or have it tried again; the outcome."""
        cell = run.cells[at]
        result: Result | Failed | None = None
        if outcome == "done":
            try:
                result = result_of(what, worker)
            except (Unusable, ValueError, TypeError) as error:
                outcome, what = "broken", str(error)
            else:
                self._keep(cell, result)
        run.tried[at] += 1
        if result is None:
            what = f"{worker}: {what}"
            if outcome == "wrong" or run.tried[at] >= self.tries:
                result = Failed(cell, what, run.tried[at])
            else:
                self.progress.say(f"A cell is tried again ({run.tried[at]} of {self.tries} tries): {what}")
                run.waiting.append(at)
        if result is not None:
            run.found[cell.id] = result
        self.progress.end(worker, cell, result)
        return outcome

    def _keep(self, cell: Cell, result: Result) -> None:
        if self.store is None:
            return
        try:
            self.store.keep(cell, result)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            what = "The disk is full" if full else f"A result could not be written ({error.strerror or error})"
            cure = "free some space" if full else "cure that"
            raise Failure(
                f"{what}: all cells that were finished before are kept in {self.store.folder}; {cure} and run this again, "
                "it carries on."
            ) from None

    def _hire(self, post: Post) -> None:
        """A process for a worker. It starts while the others work."""
        worker = post.worker
        options = {"num_cpus": worker.cpus, "num_gpus": int(worker.gpu), "max_restarts": 0, "max_task_retries": 0}
        post.actor = self._actor_class.options(**options).remote(asdict(worker), str(self._folder), self.kinds)

    def _replace(self, post: Post, why: str, needed: bool) -> None:
        """A worker that failed gets a new process, or is given up if it fails again and again."""
        if needed:
            self._ray.kill(post.actor)
            post.actor = None
        if post.failures >= IN_A_ROW:
            post.why = why
            self.progress.say(f"{post.name} is given up after {post.failures} failures in a row: {why}")
        elif needed:
            self._hire(post)

    def _give_up(self, run: _Run) -> None:
        """No worker is left: what is still missing has failed."""
        why = "; ".join(f"{post.name}: {post.why}" for post in self._posts)
        for at in run.waiting:
            failed = Failed(run.cells[at], f"no worker is left ({why})", run.tried[at])
            run.found[run.cells[at].id] = failed
            self.progress.end("", run.cells[at], failed)
        run.waiting.clear()

    def _look_for_the_head(self, error: Exception) -> None:
        """Raises Failure where the error says that Ray itself is gone, and not one worker."""
        if not isinstance(error, self._ray.exceptions.RayActorError) and isinstance(
            error, (self._ray.exceptions.RaySystemError, ConnectionError)
        ):
            raise Failure("Ray's head is lost: what was finished is kept; run this again, it carries on.") from None

    def _why(self, error: Exception) -> str:
        """Ray's error in one sentence."""
        known = self._ray.exceptions
        if isinstance(error, known.OutOfMemoryError):
            return "its process was ended because the machine's memory was full"
        if isinstance(error, known.ActorUnschedulableError):
            return "Ray has no machine for it"
        if isinstance(error, known.RayActorError):
            return "its process died"
        if isinstance(error, known.GetTimeoutError):
            return f"it did not start within {STARTING:g} seconds"
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

    def _close_workers(self) -> None:
        """End them, gently where they answer."""
        asked = []
        for post in self._posts:
            if post.actor:
                if post.at is None:
                    asked.append(post.actor.close.remote())
                else:
                    self._ray.kill(post.actor)
        if asked:
            with contextlib.suppress(Exception):
                self._ray.wait(asked, num_returns=len(asked), timeout=15)
        for post in self._posts:
            if post.actor:
                with contextlib.suppress(Exception):
                    self._ray.kill(post.actor)
                post.actor = None


def local_workers(count: int, host: Mapping[str, str] | None = None, gpus: Sequence[int] = ()) -> list[Worker]:
    """Workers on this machine, with a ComfyUI each: of `count` on the processor, and one for each GPU."""
    cpu = [Worker(f"worker {at + 1}", host=host) for at in range(count)]
    return cpu + [Worker(f"gpu {at}", gpu=True, host=host) for at in gpus]


def remote_workers(urls: Sequence[str]) -> list[Worker]:
    """Workers that are ComfyUI servers which run already."""
    return [replace(Worker(url), url=url, cpus=0) for url in dict.fromkeys(urls)]


__all__ = ["Failed", "Pool", "Progress", "Silent", "Worker", "Wrong", "local_workers", "remote_workers"]

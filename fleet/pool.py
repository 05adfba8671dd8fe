"""Cells → results, by workers that may fail. Ray runs the workers; what is finished is in the store.

A worker has one cell at a time. One that dies, hangs or gives no result is replaced, and its cell is done again, at most
`tries` times. The results stand in the order of the cells, and do not depend on which worker did which cell."""

from __future__ import annotations

import collections
import contextlib
import errno
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..tools.console import Failure
from . import cluster
from .cells import Cell, Failed, Result, Unusable
from .kinds.base import Worker, Wrong, kind_of
from .store import Store
from .worker import Doer, in_words, result_of

GRACE = 10.0  # seconds that a worker gets beyond the limit, to end a cell by itself
STARTING = 600.0  # seconds that a worker may take to start and to look what it has
IN_A_ROW = 3  # failures, after which a worker is given up
REST = 5.0  # seconds more before each further start of a worker that does not start
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
    since: float = 0.0  # it has that cell, or starts
    spoilt: set[str] = field(default_factory=set)  # cells that it could not do, since it last finished one
    false_starts: int = 0  # in a row
    why: str = ""  # it was given up

    @property
    def name(self) -> str:
        return self.worker.name


@dataclass
class _Run:
    """What one run has to do, and has."""

    cells: list[Cell]  # the missing ones, each id once
    needs: dict[str, Any]
    waiting: collections.deque[int]
    found: dict[str, Result | Failed] = field(default_factory=dict)  # results only where there is no store
    tried: collections.Counter = field(default_factory=collections.Counter)
    spoilt_by: collections.defaultdict[int, set[str]] = field(default_factory=lambda: collections.defaultdict(set))


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
        self._busy: set[str] = set()  # workers that had something to do when the last run ended

    def __enter__(self) -> Pool:
        try:
            if not self._posts:
                self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
                self._here = Doer(Worker("here"), self._folder, self.kinds)
                self._stack.callback(self._here.close)
                return self
            cpus = max(1, math.ceil(sum(post.worker.cpus for post in self._posts)))
            gpus = sum(post.worker.gpu for post in self._posts)
            self._folder = self._stack.enter_context(cluster.running(self.address, cpus, gpus))
            self._ray = cluster.ray()
            self._actor_class = cluster.actor_class()
            there = int(self._ray.cluster_resources().get("GPU", 0))
            if gpus > there:
                self.progress.say(
                    f"Ray has {there} of the {gpus} GPUs that are asked for. It waits up to {STARTING / 60:.0f} minutes "
                    "for the others, and does not begin without them."
                )
            self._stack.callback(self._close_workers)
            for post in self._posts:
                self._hire(post)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *error) -> None:
        self._stack.close()
        self._here = self._ray = None

    @contextlib.contextmanager
    def entered(self) -> Iterator[Pool]:
        """The pool as it runs, or started for this context alone."""
        if self._here or self._ray:
            yield self
        else:
            with self:
                yield self

    @property
    def size(self) -> int:
        """How many cells it can do at a time."""
        return max(1, len(self._posts))

    @property
    def pids(self) -> dict[str, int]:
        """The processes of the workers, by their names."""
        return {post.name: self._ray.get(post.actor.pid.remote()) for post in self._posts if post.actor}

    def check(self, cells: Sequence[Cell]) -> list[str]:
        """What the workers lack of what these cells need: one sentence for each worker that lacks something."""
        return self._lacking(self._needs(cells))

    def run(self, cells: Sequence[Cell]) -> list[Result | Failed]:
        """The results in the order of the cells. Finished ones come from the store. A cell that stands there twice is done
        once. Raises Failure as `work` does."""
        cells = [*cells]
        found = self._work(cells)
        return [found.get(cell.id) or self._stored(cell) for cell in cells]

    def work(self, cells: Sequence[Cell]) -> list[Failed]:
        """Do what is missing in the store; the cells that failed. Keeps no result in memory, so that a run may be long.

        Raises Failure before the first cell where a worker lacks something, and where the store cannot be written or Ray's
        head is lost: what was finished until then is kept."""
        found = self._work(cells)
        return [one for one in (found.get(cell.id) for cell in cells) if isinstance(one, Failed)]

    def _stored(self, cell: Cell) -> Result:
        result = self.store.done(cell) if self.store else None
        if result is None:
            raise Failure(f"A finished cell has vanished from {self.store and self.store.folder}; run this again.")
        return result

    def _work(self, cells: Sequence[Cell]) -> dict[str, Result | Failed]:
        unique = {cell.id: cell for cell in cells}
        missing = [cell for cell in unique.values() if self.store is None or self.store.done(cell) is None]
        self.progress.expect([post.name for post in self._posts] or ["here"], len(unique), len(unique) - len(missing))
        run = _Run(missing, self._needs(missing), collections.deque(range(len(missing))))
        if missing:
            self._take_back()
            if said := self._lacking(run.needs):
                raise Failure("\n".join(said))
            if self._here:
                self._run_here(self._here, run)
            else:
                self._run(run)
        return run.found

    def _needs(self, cells: Sequence[Cell]) -> dict[str, Any]:
        by_kind: dict[str, list[Cell]] = {}
        for cell in cells:
            by_kind.setdefault(cell.kind, []).append(cell)
        try:
            return {kind: kind_of(kind, self.kinds).needs(of_kind) for kind, of_kind in by_kind.items()}
        except Wrong as error:
            raise Failure(f"This cannot run: {error}.") from None

    def _lacking(self, needs: dict[str, Any]) -> list[str]:
        if self._here:
            said = self._here.check(needs)
            return [said[:1].upper() + said[1:]] if said else []
        asked = {post.name: post.actor.check.remote(needs, 0) for post in self._posts if not post.why}
        end = time.monotonic() + STARTING
        found = []
        for name, answer in asked.items():
            try:
                if said := self._ray.get(answer, timeout=max(1.0, end - time.monotonic())):
                    found.append(f"{name}: {said}")
            except Exception as error:
                self._look_for_the_head(error)
                self._look_for_machines()
                found.append(f"{name}: {self._why(error)}")
        return found

    def _run_here(self, doer: Doer, run: _Run) -> None:
        while run.waiting:
            at = run.waiting.popleft()
            cell = run.cells[at]
            self.progress.begin("here", cell)
            self._settle(run, at, "here", *doer.do(cell.kind, cell.work, self.limit))

    def _run(self, run: _Run) -> None:
        under_way: dict[Any, Post] = {}
        try:
            while run.waiting or any(post.at is not None for post in under_way.values()):
                busy = {post.name for post in under_way.values()}
                for post in self._posts:
                    if not post.why and post.name not in busy and (at := self._next(run, post)) is not None:
                        under_way[self._give(run, post, at)] = post
                if not under_way:  # no worker is left
                    self._give_up(run)
                    return
                if any(
                    post.at is None for post in under_way.values()
                ):  # without a machine they would wait to start until they are given up
                    self._look_for_machines()
                answers = [*under_way]
                ready = self._ray.wait(answers, num_returns=1, timeout=LOOK)[0]
                if ready:
                    ready = self._ray.wait(answers, num_returns=len(answers), timeout=0)[0]
                now = time.monotonic()
                late = [
                    one
                    for one in answers
                    if one not in ready and now - under_way[one].since > self._patience(one, under_way)
                ]
                for answer in (*ready, *late):
                    post = under_way.pop(answer)
                    again = self._take(run, post, answer if answer in ready else None)
                    if again is not None:
                        under_way[again] = post
        finally:
            self._busy = {post.name for post in under_way.values()}

    def _patience(self, answer: Any, under_way: dict[Any, Post]) -> float:
        return STARTING if under_way[answer].at is None else self.limit + GRACE

    def _next(self, run: _Run, post: Post) -> int | None:
        """The first waiting cell that this worker has not failed at, if another worker is left that could do those."""
        for place, at in enumerate(run.waiting):
            others = {other.name for other in self._posts if not other.why} - {post.name}
            if post.name not in run.spoilt_by[at] or not others - run.spoilt_by[at]:
                del run.waiting[place]
                return at
        return None

    def _give(self, run: _Run, post: Post, at: int) -> Any:
        cell = run.cells[at]
        post.at, post.since = at, time.monotonic()
        self.progress.begin(post.name, cell)
        return post.actor.do.remote(cell.kind, dict(cell.work), self.limit)

    def _take(self, run: _Run, post: Post, answer: Any) -> Any:
        """What a worker was asked has ended, or (None) taken too long. What it is asked next, if it must start again."""
        at, post.at = post.at, None
        dead = False
        try:
            said = self._ray.get(answer) if answer is not None else None
            why = ""
        except Exception as error:
            self._look_for_the_head(error)
            said, why, dead = None, self._why(error), True
        if answer is None:
            why, dead = f"it took longer than {self.limit if at is not None else STARTING:g} seconds", True
        if at is None:  # it has started
            post.false_starts = post.false_starts + 1 if why or said else 0
            return self._start_again(run, post, str(why or said), dead) if why or said else None
        outcome, what = said if said is not None else ("broken", why)
        if (outcome := self._settle(run, at, post.name, outcome, what)) != "broken":
            post.spoilt.clear()
            return None
        post.spoilt.add(run.cells[at].id)
        return self._start_again(run, post, str(what), dead)

    def _start_again(self, run: _Run, post: Post, why: str, dead: bool) -> Any:
        """A worker that failed starts again, in a new process where it has none; or it is given up. That is when it does
        not start, or fails at one cell after the other while another worker does not."""
        sound = any(not other.why and not other.spoilt and other is not post for other in self._posts)
        give_up = post.false_starts >= IN_A_ROW or (len(post.spoilt) >= IN_A_ROW and sound)
        if dead or give_up:
            self._ray.kill(post.actor)
            post.actor = None
        if give_up:
            post.why = why
            self.progress.say(f"{post.name} is given up after {IN_A_ROW} failures in a row: {why}")
            return None
        if dead:
            self._hire(post)
        post.since = time.monotonic()
        return post.actor.check.remote(run.needs, REST * post.false_starts)

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
                self.progress.say(f"A cell is tried again ({run.tried[at]} of {self.tries} tries failed): {what}")
                run.spoilt_by[at].add(worker)
                run.waiting.append(at)
        if isinstance(result, Failed) or (result is not None and self.store is None):
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

    def _hire(self, post: Post, **more) -> None:
        """A process for a worker. It starts while the others work."""
        worker = post.worker
        options = {"num_cpus": worker.cpus, "num_gpus": int(worker.gpu), "max_restarts": 0, "max_task_retries": 0}
        post.actor = self._actor_class.options(**options, **more).remote(asdict(worker), str(self._folder), self.kinds)

    def _take_back(self) -> None:
        """In a new run each worker has a new chance."""
        for post in self._posts:
            post.spoilt.clear()
            post.false_starts, post.why = 0, ""
            if post.actor is None:
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

    def _look_for_machines(self) -> None:
        """Raises Failure where Ray's head lives, and none of its machines does."""
        if not any(node["Alive"] for node in self._ray.nodes()):
            raise Failure("Ray has lost all its machines: what was finished is kept; run this again, it carries on.")

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
        return in_words(getattr(error, "cause", None) or error)

    def _close_workers(self) -> None:
        """End them, gently where they answer."""
        asked = []
        for post in self._posts:
            if post.actor and post.name in self._busy:
                self._ray.kill(post.actor)
            elif post.actor:
                asked.append(post.actor.close.remote())
        if asked:
            with contextlib.suppress(Exception):
                self._ray.wait(asked, num_returns=len(asked), timeout=15)
        for post in self._posts:
            if post.actor:
                with contextlib.suppress(Exception):
                    self._ray.kill(post.actor)
                post.actor = None


__all__ = ["Failed", "Pool", "Progress", "Silent", "Worker", "Wrong"]

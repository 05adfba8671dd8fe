"""Workers that die, hang and give nonsense; and what the user is told. One Ray for all of it."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray", reason="this Python has no Ray: python dev.py fleet installs it")

from pack.fleet import pool as pools
from pack.fleet.cells import Cell, Failed, Result
from pack.fleet.pool import Pool, Silent, Worker
from pack.fleet.store import Store
from pack.tests.fleet.faults import KINDS
from pack.tests.fleet.test_workflows import changed
from pack.tools.console import Failure
from pack.tools.places import ROOT

pytestmark = pytest.mark.xdist_group("fleet")


class Ear(Silent):
    """Hears what the user would read, and when cells begin and end."""

    def __init__(self):
        self.said, self.on_end = [], lambda: None
        self.ended = 0

    def say(self, text):
        self.said.append(text)

    def end(self, worker, cell, result):
        self.ended += 1
        self.on_end()


@pytest.fixture(scope="module")
def fleet():
    """Two workers, on a Ray that is started once."""
    with Pool([Worker("worker 1"), Worker("worker 2")], progress=Ear(), kinds=KINDS) as pool:
        yield pool


@pytest.fixture
def pool(fleet, tmp_path):
    """The same workers with a store of their own and default limits."""
    fleet.store, fleet.progress, fleet.limit, fleet.tries = Store(tmp_path / "store"), Ear(), 600.0, 3
    return fleet


def echo(count, start=0):
    return [Cell("echo", {"values": {"value": at}}, {"at": at}) for at in range(start, start + count)]


def fault(name, mark=None, value=7):
    return Cell("fault", {"fault": name, "value": value} | ({"mark": str(mark)} if mark else {}))


def without_who(results):
    return [(one.values, one.pictures) for one in results]


def test_results_do_not_depend_on_the_number_of_workers(pool, tmp_path):
    cells = echo(40)
    with Pool((), tmp_path / "here") as here:
        alone = here.run(cells)
    assert without_who(pool.run(cells)) == without_who(alone)
    assert [one.values["value"] for one in alone] == [*range(40)]
    workers = {pool.store.done(cell).worker for cell in cells}
    assert workers == {"worker 1", "worker 2"}


def test_two_workers_take_little_more_than_half_the_time_of_one(pool):
    """Of cells that only wait; what real ones gain depends on the machine, and a benchmark measures it."""
    cells = [Cell("sleep", {"seconds": 0.5, "values": {"at": at}}) for at in range(12)]
    pool.run(echo(2))
    start = time.monotonic()
    pool.run(cells)
    assert time.monotonic() - start < 12 * 0.5 / 1.5  # 1.7 where the two cores are free


def test_a_cell_that_stands_there_twice_is_done_once_and_a_finished_one_never_again(pool):
    first = pool.run([*echo(2), *echo(2)])
    assert pool.progress.ended == 2 and first[:2] == first[2:]
    assert pool.run(echo(2)) == first[:2] and pool.progress.ended == 2


FAULTS = {
    "dies": "its process died",
    "broken": "the connection broke",
    "unforeseen": "RuntimeError: never seen before",
    "broken picture": "picture 1 of 1 is no whole PNG file",
}


@pytest.mark.parametrize(("name", "why"), FAULTS.items(), ids=FAULTS)
def test_a_worker_that_fails_is_replaced_and_its_cell_is_done_again(pool, tmp_path, name, why):
    results = pool.run([*echo(4), fault(name, tmp_path / "mark"), *echo(4, 4)])
    assert [one.values["value"] for one in results] == [0, 1, 2, 3, 7, 4, 5, 6, 7]
    (said,) = pool.progress.said
    assert "A cell is tried again (1 of 3 tries failed): worker " in said and said.endswith(f": {why}")


def test_a_worker_that_hangs_is_replaced(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(pools, "GRACE", 1.0)
    pool.limit = 3.0
    (result,) = pool.run([fault("hangs", tmp_path / "mark")])
    assert result.values == {"value": 7}
    assert pool.progress.said[0].endswith("it took longer than 3 seconds")


def test_a_cell_that_fails_each_time_is_reported_and_the_others_go_on(pool):
    pool.tries = 2
    results = pool.run([fault("broken"), *echo(3), fault("wrong")])
    assert isinstance(results[0], Failed) and results[0].tries == 2
    assert results[0].reason.endswith(": the connection broke")
    assert results[4].tries == 1 and results[4].reason.endswith("node 5 failed with ValueError: no such sampler")
    assert [one.values["value"] for one in results[1:4]] == [0, 1, 2]
    assert [pool.store.done(one.cell) for one in (results[0], results[4])] == [None, None]


def test_what_a_worker_lacks_is_said_before_the_first_cell_in_one_sentence_for_each(pool):
    lacking = Cell("fault", {"fault": "", "value": 1, "lacks": "the node Foo"})
    with pytest.raises(Failure) as failure:
        pool.run([*echo(2), lacking])
    assert str(failure.value).splitlines() == [f"worker {at}: it does not have the node Foo." for at in (1, 2)]
    assert pool.progress.ended == 0


def test_an_unknown_kind_is_named_with_those_there_are(pool):
    with pytest.raises(Failure, match='no kind of cell "dance"; the kinds are echo, sleep, workflow, fault'):
        pool.run([Cell("dance", {})])


def test_a_full_disk_loses_nothing_that_was_finished(pool, monkeypatch):
    kept, keep = [], Store.keep

    def full(store, cell, result):
        if len(kept) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        kept.append(cell)
        keep(store, cell, result)

    monkeypatch.setattr(Store, "keep", full)
    with pytest.raises(Failure, match=r"^The disk is full: all .* are kept in .*; free some space and run this"):
        pool.run(echo(8))
    monkeypatch.setattr(Store, "keep", keep)
    assert all(pool.store.done(cell) for cell in kept)
    before = pool.progress.ended
    assert [one.values["value"] for one in pool.run(echo(8))] == [*range(8)]
    assert pool.progress.ended - before == 5


def test_a_worker_that_is_killed_from_outside_loses_nothing(pool):
    cells = [Cell("sleep", {"seconds": 0.2, "values": {"value": at}}) for at in range(10)]
    victim = pool.pids["worker 1"]
    threading.Timer(0.5, os.kill, (victim, signal.SIGKILL)).start()
    assert [one.values["value"] for one in pool.run(cells)] == [*range(10)]
    assert pool.progress.said[0].endswith("its process died") and pool.pids["worker 1"] != victim


def memory_of(pid: int) -> int:
    """Its pages, in bytes."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="Windows has no /proc")
def test_a_thousand_tiny_cells_need_no_more_memory_than_a_hundred(pool):
    pool.work(echo(100))
    before = [memory_of(pid) for pid in (os.getpid(), *pool.pids.values())]
    assert pool.work(echo(1000, 100)) == []
    after = [memory_of(pid) for pid in (os.getpid(), *pool.pids.values())]
    assert max(late - early for early, late in zip(before, after, strict=True)) < 16 << 20


def test_two_workers_need_two_names():
    with pytest.raises(ValueError, match="two workers have one name"):
        Pool([Worker("a"), Worker("a")])


def test_a_result_holds_what_the_cell_gave_and_who_did_it(pool):
    (result,) = pool.run([Cell("echo", {"values": {"fd": 0.5, "name": "ä"}})])
    assert (
        isinstance(result, Result) and result.values == {"fd": 0.5, "name": "ä"} and result.worker.startswith("worker")
    )


def report_of(folder: Path) -> tuple[bytes, bytes]:
    """What a run has written of its results; who did what and when stands in another file."""
    return (folder / "results.parquet").read_bytes(), (folder / "report.html").read_bytes()


def run_in(top: Path, cells: list[dict]) -> list:
    """The command that runs these cells, but for the folder and the number of workers."""
    file = top / "cells.json"
    file.write_text(json.dumps(cells))
    return [sys.executable, "-m", "tools", str(top), "fleet", "run", str(file), "--out"]


def processes_of(command: subprocess.Popen) -> list[psutil.Process]:
    """The command and all that it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        head = psutil.Process(command.pid)
        return [*head.children(recursive=True), head]
    return []


def words_of(process: psutil.Process) -> list[str]:
    """Its command line."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline() or [""]
    return [""]


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@contextlib.contextmanager
def under_way(command: list, folder: Path, finished: int, log: Path):
    """The command with two workers, when so many cells are finished. It writes into `log`, and in the end it is killed."""
    with log.open("wb") as said:
        head = subprocess.Popen([*command, str(folder), "--workers", "2"], cwd=ROOT, stdout=said, stderr=said)
    try:
        deadline = time.monotonic() + 240
        while len([*folder.glob("cells/*/*.json")]) < finished:
            assert head.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        yield head
    finally:
        kill(processes_of(head))
        head.wait()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_lost_head_loses_nothing_that_was_finished(tmp_path):
    """The command and all of its Ray are killed in mid-run. The same command then does the rest alone, and its report is
    that of a run that nothing has disturbed."""
    folder = tmp_path / "run"
    work = [{"seconds": 0.5, "values": {"value": at}} for at in range(20)]
    command = run_in(tmp_path, [{"kind": "sleep", "work": each, "labels": {"at": at}} for at, each in enumerate(work)])
    with under_way(command, folder, 4, tmp_path / "said.log") as head:
        kill(processes_of(head))
    before = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/*.json")}
    assert 4 <= len(before) < 20
    for other, workers in ((folder, "2"), (tmp_path / "undisturbed", "1")):
        subprocess.run([*command, str(other), "--workers", workers], cwd=ROOT, check=True, timeout=240)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [Store(folder).done(Cell("sleep", each)).values["value"] for each in work] == [*range(20)]
    assert report_of(folder) == report_of(tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_without_a_machine_of_ray_the_run_ends_with_a_sentence(tmp_path):
    """Ray's process for this machine is killed, and its head lives: no worker could start."""
    work = [{"seconds": 0.5, "values": {"value": at}} for at in range(60)]
    command, log = run_in(tmp_path, [{"kind": "sleep", "work": each} for each in work]), tmp_path / "said.log"
    with under_way(command, tmp_path / "run", 2, log) as head:
        kill([process for process in processes_of(head) if Path(words_of(process)[0]).name == "raylet"])
        assert head.wait(timeout=120) == 1
    assert "Ray has lost all its machines: what was finished is kept; run this again" in log.read_text()
    assert 2 <= len([*(tmp_path / "run").glob("cells/*/*.json")]) < 60


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_comfyui_that_is_killed_in_mid_run_changes_no_picture(tmp_path):
    """One of two workers loses its ComfyUI. It starts another, and the report is that of one worker without any harm."""
    main = str(Path(os.environ["COMFYUI_PATH"], "main.py"))
    work = [{"workflow": changed(_10_seed=seed, _10_steps=60)} for seed in range(8)]
    command = run_in(
        tmp_path, [{"kind": "workflow", "work": each, "labels": {"at": at}} for at, each in enumerate(work)]
    )
    with under_way(command, tmp_path / "run", 1, tmp_path / "said.log") as head:
        servers = [process for process in processes_of(head) if main in words_of(process)[1:2]]
        assert len(servers) == 2
        kill(servers[:1])
        assert head.wait(timeout=300) == 0
    assert "is tried again" in (tmp_path / "said.log").read_text()
    subprocess.run([*command, str(tmp_path / "calm"), "--workers", "1"], cwd=ROOT, check=True, timeout=300)
    assert report_of(tmp_path / "run") == report_of(tmp_path / "calm")
    pictures = [[path.read_bytes() for path in sorted((tmp_path / one).rglob("*.png"))] for one in ("run", "calm")]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 16

"""Child processes that end with the command that started them, whatever ends it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path

from .console import Failure, busy
from .places import OUTPUT, ROOT

WINDOWS = os.name == "nt"
SIGNALS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, n)]
_running: list[subprocess.Popen] = []
_starting = False
_stop_signal = 0


class Stopped(BaseException):
    """A signal asked the command to end."""

    def __init__(self, number: int):
        self.number = number


def listen_to_signals() -> None:
    """From now on a signal to end raises Stopped in the main thread."""
    for number in SIGNALS:
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # nohup stays in force
            signal.signal(number, _on_signal)


def _on_signal(number, _frame):
    global _stop_signal
    _stop_signal = number
    if not _starting:  # a child that is just being born would be left behind
        raise Stopped(number)


def spawn(command, **options) -> subprocess.Popen:
    """Start a child in a process group of its own, so that the child and its children can be stopped together."""
    global _starting
    options.setdefault("cwd", ROOT)
    if WINDOWS:
        options["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP  # pyright: ignore[reportAttributeAccessIssue]
    else:
        options["start_new_session"] = True
    _starting = True
    try:
        process = subprocess.Popen([str(part) for part in command], **options)
        _running.append(process)
    finally:
        _starting = False
    if _stop_signal:
        raise Stopped(_stop_signal)
    return process


def stop(process: subprocess.Popen) -> None:
    """End a child and all that it has started."""
    if WINDOWS:
        if process.poll() is None:
            subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True)
            process.wait()
    else:
        for number, patience in ((signal.SIGINT, 5), (signal.SIGTERM, 3), (signal.SIGKILL, None)):
            try:
                os.killpg(process.pid, number)  # also when the leader has ended: its group may outlive the leader
            except (ProcessLookupError, PermissionError):
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
        process.wait()
    if process in _running:
        _running.remove(process)


def stop_everything() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for process in list(_running):
        stop(process)


def wait(process: subprocess.Popen, tick=lambda: None) -> int:
    """The child's exit status, when it has ended. `tick` is called a few times a second."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
            stop(process)
            return process.returncode
        tick()


def run_step(what: str, command, env=None) -> None:
    """Run a command that has nothing to say unless it fails. Raises Failure with one sentence of what it wrote."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    path = OUTPUT / "setup.log"
    with path.open("wb") as log:
        process = spawn(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    with busy(what) as detail:
        code = wait(process, lambda: detail(tail(path, 1).strip()))
    if code:
        raise explained(what, path.read_text("utf-8", "replace"))


def tail(path: Path, lines: int) -> str:
    """The last lines of a log, without colours."""
    try:
        return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(path.read_text("utf-8", "replace").splitlines()[-lines:]))
    except OSError:
        return ""


def explained(what: str, log: str) -> Failure:
    """One sentence out of what a failed installer wrote."""
    if re.search(r"no space left|os error (28|112)\)|disk quota|not enough space", log, re.I):
        return Failure(f"{what} failed because the disk is full: free some space and run this again, it carries on.")
    if re.search(r"permission denied|access is denied|read-only file system", log, re.I):
        return Failure(f"{what} failed because a file could not be written (permission denied, see output/setup.log).")
    if re.search(r"dns error|connect|timed? ?out|failed to fetch|name resolution|retrying|certificate", log, re.I):
        return Failure(
            f"{what} failed because the package index could not be reached (see output/setup.log): "
            "check the network and run this again, it carries on."
        )
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    cause = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "no message")
    return Failure(f"{what} failed: {cause[:300]} (all of it is in output/setup.log).")

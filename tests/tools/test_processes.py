"""Children of the commands: nothing is left behind, and what they wrote becomes a sentence."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pack.tools import processes
from pack.tools.places import ROOT
from pack.tools.server import GUARD


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ("error: Failed to fetch: `https://x`\n  dns error", "could not be reached"),
        ("error: failed to write\n  No space left on device (os error 28)", "disk is full"),
        ("PermissionError: [Errno 13] Permission denied: 'x'", "permission denied"),
        ("Traceback\nValueError: no such thing\n\n", "failed: ValueError: no such thing"),
        ("", "no message"),
    ],
)
def test_installer_logs_become_one_sentence(log, says):
    failure = processes.explained("Installing", log)
    assert says in str(failure) and "\n" not in str(failure)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups")
def test_stopping_leaves_no_process_behind(tmp_path):
    """A child that ignores the polite signal's sender still goes, and its own child with it."""
    code = (
        "import pathlib; from tools import __main__, processes;"
        f"processes.OUTPUT = pathlib.Path({str(tmp_path)!r});"
        "command = ['sh', '-c', 'sleep 98 & echo $!; echo $$; sleep 99'];"
        "__main__.commands.main = lambda *a, **k: processes.run_step('x', command);"
        "raise SystemExit(__main__.main([]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT
    )
    log = tmp_path / "setup.log"
    end = time.monotonic() + 20
    while time.monotonic() < end and not (log.exists() and len(log.read_text().split()) == 2):
        threading.Event().wait(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    assert process.stderr.read().strip() == b"Stopped."
    process.stderr.close()
    for pid in map(int, log.read_text().split()):
        while time.monotonic() < end and alive(pid):
            threading.Event().wait(0.02)
        assert not alive(pid)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("killed", ["parent", *["guard"] * (sys.platform == "linux")])
def test_a_guarded_command_ends_with_its_parent_and_with_the_guard(killed):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(99)"
    command, pipe = [sys.executable, GUARD, sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True) as guard:
        child = int(guard.stdout.readline())
        assert alive(child)
        guard.kill() if killed == "guard" else guard.stdin.close()
    end = time.monotonic() + 20
    while time.monotonic() < end and alive(child):
        threading.Event().wait(0.02)
    assert not alive(child)


def test_a_guard_ends_with_the_exit_status_of_its_command_and_says_nothing():
    command = [sys.executable, GUARD, sys.executable, "-c", "raise SystemExit(7)"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as guard:
        assert (guard.wait(20), guard.stderr.read()) == (7, b"")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")  # zombies hold nothing

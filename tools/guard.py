"""Runs a command, and ends it when the process that started this one is gone, whatever ended that.

python guard.py COMMAND...    its standard input is a pipe from that process, which the system closes with it
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading

PR_SET_PDEATHSIG = 1  # of Linux's prctl


def end_with_the_pipe(child: subprocess.Popen) -> None:
    """Wait for the pipe's end, then kill the child and all that it has started."""
    while os.read(0, 1 << 16):  # not sys.stdin, whose lock this thread would hold when Python ends
        pass
    if os.name == "nt":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(child.pid)], capture_output=True)
    else:
        os.killpg(0, signal.SIGKILL)  # this process too: it leads a group of its own


def end_with_this_process() -> None:
    """Runs in the child: Linux itself then kills it when this process is killed, so that it cannot read the pipe's end."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """The exit status of the command."""
    prepare = end_with_this_process if sys.platform == "linux" else None
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, preexec_fn=prepare)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child has it too, and its end is awaited
    threading.Thread(target=end_with_the_pipe, args=(child,), daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Set up, test, show and serve the pack. Needs Python 3.10 to 3.13 and nothing else.

    python dev.py demo                  pictures of a small model by each guidance, in output/demo/grid.png; a minute
    python dev.py test [pytest args]    the tests, e.g.  python dev.py test -k interval
    python dev.py --help                the other commands, and their options

This file only makes .venv, of the Python that runs it and with the tools' own packages, then starts tools/ there.
"""

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV, LOCK, LOG = ROOT / ".venv", ROOT / ".host/bootstrap", ROOT / "output/setup.log"
REQUIREMENTS = ROOT / "tools/requirements.txt"
PYTHONS = (3, 10), (3, 13)  # those that PyTorch and ComfyUI run on
WINDOWS = os.name == "nt"


class Failure(Exception):
    """Something the user can act on; its text is all that is shown."""


def venv_python() -> Path:
    return VENV / ("Scripts/python.exe" if WINDOWS else "bin/python")


def bootstrap(python: str) -> None:
    """.venv with the packages of tools/requirements.txt. What is there already is not made again."""
    state, stamp = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest(), VENV / "made-by-dev-py"
    before = stamp.read_text() if stamp.is_file() else ""
    if before == state and venv_python().exists():
        return
    if not before and (VENV / "pyvenv.cfg").exists():
        raise Failure(f"{VENV} exists but was not made by dev.py: move it away and run this again.")
    if before in ("", "unfinished") or not venv_python().exists():
        check_python(python)
        shutil.rmtree(VENV, ignore_errors=True)
        VENV.mkdir()
        stamp.write_text("unfinished")
        run("Making .venv", [python, "-m", "venv", VENV])
        run("Installing uv", [venv_python(), "-m", "pip", "install", "uv"])
    uv = venv_python().with_name("uv.exe" if WINDOWS else "uv")
    run("Installing the tools' packages", [uv, "pip", "install", "--python", venv_python(), "-r", REQUIREMENTS])
    stamp.write_text(state)


def check_python(python: str) -> None:
    """Raises Failure where this Python cannot make .venv."""
    code = "import sys; print(*sys.version_info[:2]); import venv, ensurepip"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    except OSError as error:
        raise Failure(f"Cannot run the Python {python} ({error.strerror}).") from None
    version = tuple(map(int, done.stdout.split()))
    low, high = PYTHONS
    if not low <= version <= high:
        raise Failure(
            f"{python} is Python {'.'.join(map(str, version)) or '?'}, but PyTorch and ComfyUI need {low[0]}.{low[1]} to "
            f"{high[0]}.{high[1]}: start dev.py with such a Python."
        )
    if done.returncode:
        raise Failure(
            f"{python} lacks the venv or ensurepip module: install it (Debian and Ubuntu: apt install python3-venv) "
            "and run this again."
        )


def run(what: str, command: list) -> None:
    """One step, whose output goes to a log. Raises Failure with the log's last line that names an error."""
    print(f"{what} ...", flush=True)
    LOG.parent.mkdir(exist_ok=True)
    env = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1")
    index = next((env[name] for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL") if env.get(name)), None)
    if index:
        env["UV_DEFAULT_INDEX"] = env["PIP_INDEX_URL"] = index
    with LOG.open("wb") as log:
        code = subprocess.run([*map(str, command)], cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT).returncode
    if code:
        lines = [line.strip() for line in LOG.read_text("utf-8", "replace").splitlines() if line.strip()]
        cause = next((line for line in reversed(lines) if "error" in line.lower()), (lines or ["no message"])[-1])
        raise Failure(f"{what} failed: {cause[:300]} (all of it is in {LOG}). Run this again, it carries on.")


@contextlib.contextmanager
def one_at_a_time():
    """Waits for another dev.py that is making .venv. Closing the file, or the end of this process, unlocks it."""
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("a+b") as file:
        with contextlib.suppress(OSError):  # some file systems have no locks
            if WINDOWS:
                import msvcrt

                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: list[str]) -> int:
    if sys.version_info < PYTHONS[0]:
        print(f"dev.py needs Python 3.10 to 3.13; this is {platform.python_version()}.", file=sys.stderr)
        return 1
    try:
        with one_at_a_time():
            bootstrap(sys.executable)
    except (Failure, OSError) as failure:
        print(failure, file=sys.stderr)
        return 1
    command = [str(venv_python()), "-m", "tools", os.getcwd(), *(arguments or ["--help"])]
    if not WINDOWS:
        os.chdir(ROOT)
        os.execv(command[0], command)  # does not return
    return subprocess.run(command, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

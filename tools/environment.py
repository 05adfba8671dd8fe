"""The Python environment that a fetched ComfyUI, the tests and the tools run in: .venv."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
from pathlib import Path

from .console import Failure, say
from .places import BROWSERS, ROOT, VENV
from .processes import WINDOWS, run_step

PACKAGES = (
    "torch==2.11.0",
    "torchvision==0.26.0",
    "torchaudio==2.11.0",
    "pytest",
    "pytest-xdist",
    "pyright[nodejs]==1.1.414",
    "ruff==0.17.6",
    "playwright",
    "diffusers",  # its guiders are what ours are compared with
)
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
STAMP = VENV / "host-packages"  # names whose needs .venv meets


def python_of(folder: Path) -> Path:
    """The Python of a virtual environment."""
    return folder / ("Scripts/python.exe" if WINDOWS else "bin/python")


def variables() -> dict[str, str]:
    """The environment variables of every child."""
    env = dict(os.environ, PYTHONIOENCODING="utf-8", PIP_DISABLE_PIP_VERSION_CHECK="1")
    env["UV_DEFAULT_INDEX"] = env["PIP_INDEX_URL"] = package_index()
    env.setdefault("PLAYWRIGHT_BROWSERS_PATH", str(BROWSERS))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores <= 2:
        env.setdefault("OMP_NUM_THREADS", "1")  # two busy threads on two cores are far slower than one
    return env


def package_index() -> str:
    names = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
    return next((os.environ[name] for name in names if os.environ.get(name)), "https://pypi.org/simple")


def install(host_folder: Path) -> None:
    """PyTorch, the tests' packages, and those of a ComfyUI and of the pack. All fetched hosts share them: their needs
    differ in little but the page's packages."""
    requirements = [host_folder / "requirements.txt", ROOT / "requirements.txt"]
    text = "\n".join([*PACKAGES, *(path.read_text("utf-8") for path in requirements)])
    state = hashlib.sha256(text.encode()).hexdigest()
    before = STAMP.read_text() if STAMP.is_file() else ""
    if before == state:
        return
    if not before:
        say("PyTorch and ComfyUI's packages: about 2.5 GB to fetch, 6 GB on disk (in .venv).")
        check_disk(7)
        if sys.platform == "darwin" and platform.machine() == "x86_64":
            raise Failure("PyTorch 2.11 does not exist for Intel Macs: name your own ComfyUI with --comfyui.")
    uv = python_of(VENV).with_name("uv.exe" if WINDOWS else "uv")
    files = [part for path in requirements for part in ("-r", path)]
    command = [uv, "pip", "install", "--python", python_of(VENV), *PACKAGES, *files]
    # An interrupted install may leave packages that look whole; uv's cache keeps what was fetched.
    STAMP.write_text("unfinished")
    run_step("Installing the packages of ComfyUI", command + ["--reinstall"] * (before == "unfinished"), variables())
    STAMP.write_text(state)


def install_fleet() -> None:
    """What the fleet needs besides, into .venv."""
    path, stamp = ROOT / "requirements-fleet.txt", VENV / "fleet-packages"
    state = hashlib.sha256(path.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == state:
        return
    uv = python_of(VENV).with_name("uv.exe" if WINDOWS else "uv")
    command = [uv, "pip", "install", "--python", python_of(VENV), "-r", path]
    run_step("Installing the packages of the fleet", command, variables())
    stamp.write_text(state)


def check_disk(need_gb: float) -> None:
    """Raises Failure where the disk has less free."""
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < need_gb:
        raise Failure(f"The disk has {free:.1f} GB free, {need_gb:g} GB are needed: free some and run this again.")


def get_browser(pytest_args: tuple[str, ...]) -> None:
    """A Chromium for the tests in the real page, where none is installed: Playwright's own, or the system's package.

    Without one these tests are skipped, and the last line of the tests says so."""
    chosen = [argument for argument in pytest_args if argument.startswith("tests")]
    if (chosen and not any("browser" in argument for argument in chosen)) or any(map(shutil.which, CHROMIUMS)):
        return
    env = variables() | {"DEBIAN_FRONTEND": "noninteractive"}
    attempts = [[python_of(VENV), "-m", "playwright", "install", "--only-shell", "chromium"]]
    if shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        attempts += [["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]]
    for command in attempts:
        try:
            run_step("Getting a Chromium for the tests in the real page", command, env)
        except Failure:
            continue  # the next may do
        if command[-1] == "chromium":
            return
    say("No Chromium could be fetched: the tests in the real page will be skipped. Install Chromium or Chrome.")

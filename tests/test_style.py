"""Style and types: what ruff and pyright find is a failure. Their settings are in pyproject.toml."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TYPED_AGAINST = "0.30.0"  # the host that types are checked against: its functions differ between versions


def run(tool: str, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"this Python has no {tool}; dev.py's own has")
    command = [sys.executable, "-m", tool, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **env})


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_ruff_finds_nothing(command):
    done = run("ruff", *command.split(), "--no-cache", ".")
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright_finds_nothing():
    import comfyui_version

    if comfyui_version.__version__ != TYPED_AGAINST:
        pytest.skip(f"types are checked against ComfyUI {TYPED_AGAINST}")
    done = run("pyright", "--pythonpath", sys.executable, PYTHONPATH=str(Path(comfyui_version.__file__).parent))
    assert done.returncode == 0, done.stdout + done.stderr

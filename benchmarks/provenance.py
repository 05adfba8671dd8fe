"""What made a result: command, commit, machine, files. It stands in every file of benchmarks/results."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def facts_of_run(program: str, arguments: Sequence[str], **more) -> dict:
    """`more`, such as seeds and the host's version, stands beside what every run has."""

    def git(*command: str) -> str:
        found = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False)
        return found.stdout.strip()

    commit = "unknown"
    with contextlib.suppress(OSError):  # without git
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")  # made by it
        dirty = " with changes" if changed else ""
        commit = (git("rev-parse", "--short=12", "HEAD") or commit) + dirty
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    arguments = [Path(each).name if os.path.isabs(each) else each for each in map(str, arguments)]  # no one's folders
    return {
        "command": " ".join([f"python dev.py benchmark {program}", *arguments]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit,
        "machine": f"{platform.machine()} {device}, threads: {torch.get_num_threads()}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        **more,
    }


def named(path: Path) -> str:
    """A file by its name and content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return f"{path.name} sha256:{digest.hexdigest()[:12]}"

"""Values that were measured for one checkpoint: a file for each, in the user's folder.

    beyond_cfg/measured/FINGERPRINT.json
    {"fingerprint": "…", "model": "what a user calls it",
     "settings": [{"node": "PAG", "values": {"layers": "single.3"}, "source": "measured by …"}]}

`node` is the end of a node's id, as in presets. The newest stands first. Whoever reads a file takes nothing on trust: one
that is broken, or not of this form, is as good as none, and a warning names it.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths

from ...patches.host.fingerprint import fingerprint, name_of
from ...patches.host.log import warn_once
from ..presets import Setting

LARGEST = 2**20  # bytes of a file that is read
MOST = 20  # settings of one node that are kept


@dataclass(frozen=True)
class Measured:
    """The values that were measured for one checkpoint."""

    path: Path
    model: str
    settings: tuple[Setting, ...]


def folder() -> Path:
    """Where the files are, whether or not it is there."""
    return Path(folder_paths.get_user_directory()) / "beyond_cfg" / "measured"


def measured_for(model) -> Measured | None:
    """What was measured for the checkpoint of MODEL; None where there is nothing that can be read."""
    path = folder() / f"{fingerprint(model)}.json"
    return _read(path) if path.exists() else None


def all_measured() -> list[Measured]:
    """What was measured for any checkpoint, the last one first."""
    paths = sorted(folder().glob("*.json"), key=lambda path: (-_time(path), path.name))
    return [found for found in map(_read, paths) if found is not None]


def state() -> str:
    """A text that changes with the files."""
    return repr([(path.name, _time(path)) for path in sorted(folder().glob("*.json"))])


def _time(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns
    return 0


def keep(model, node: str, values: Mapping[str, float | str], source: str, **more: Any) -> Path:
    """Put a setting into the file of MODEL's checkpoint, before those it has. `more`: what else is known of it, which
    nobody needs to read. Raises ValueError where the file cannot be written. A file that cannot be read is kept aside."""
    key = fingerprint(model)
    path = folder() / f"{key}.json"
    entry = {"node": node, "values": dict(values), "source": source, **more}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        before = _content(path) if path.exists() else None
        if path.exists() and before is None:
            os.replace(path, path.with_suffix(".unread"))
        settings = [entry]
        for old in before["settings"] if before else ():
            same = [one for one in settings if one["node"] == old["node"]]
            if len(same) < MOST and not any(one["values"] == old["values"] for one in same):
                settings.append(old)
        found = {**(before or {}), "fingerprint": key, "model": name_of(model), "settings": settings}
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1, ensure_ascii=False)
        os.replace(name, path)
    except OSError as error:
        raise ValueError(f"the values cannot be written to {path} ({error.strerror})") from None
    return path


def _read(path: Path) -> Measured | None:
    content = _content(path)
    if content is None:
        return None
    settings = tuple(Setting(one["node"], one["values"], one["source"]) for one in content["settings"])
    return Measured(path, content["model"], settings)


def _content(path: Path) -> dict | None:
    """What a file holds; None, with a warning that names it, where that is not of the form above."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes")
        content = json.loads(path.read_text("utf-8"))
        _check(content)
    except (OSError, ValueError, RecursionError) as error:
        warn_once(f"the measured values in {path} are not used: {error}")
        return None
    return content


def _check(content) -> None:
    """Raise ValueError where it is not of the form above."""
    wanted = {"fingerprint": str, "model": str, "settings": list}
    if not isinstance(content, dict) or any(not isinstance(content.get(key), kind) for key, kind in wanted.items()):
        raise ValueError("it must have fingerprint and model, as texts, and settings, as a list")
    for setting in content["settings"]:
        parts = {"node": str, "values": dict, "source": str}
        if not isinstance(setting, dict) or any(not isinstance(setting.get(key), kind) for key, kind in parts.items()):
            raise ValueError("each setting must have node and source, as texts, and values")

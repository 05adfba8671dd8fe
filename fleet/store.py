"""Finished cells in a folder. Each is kept for good before the next is given out, and checked when it is read.

FOLDER/cells/ab/ab12….json       the cell, its values, and the hash of each picture: this file makes a cell a finished one
FOLDER/cells/ab/ab12….0.png      its pictures
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from .cells import Cell, Result, Unusable, canonical, checked

FORMAT = 1


class Store:
    """What is finished. One process may write to it, any number may read."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)

    def done(self, cell: Cell) -> Result | None:
        """The result of a cell; None where it is not finished, or what is there is damaged."""
        return self.get(cell.id)

    def keep(self, cell: Cell, result: Result) -> None:
        """Keep a result for good. Raises OSError where it cannot be written; then nothing of it is there."""
        checked(result)
        place = self._place(cell.id)
        place.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "format": FORMAT, "kind": cell.kind, "work": cell.work, "values": dict(result.values),
            "seconds": result.seconds, "worker": result.worker, "pictures": [*map(digest, result.pictures)],
        }  # fmt: skip
        text = canonical(record | {"sum": digest(canonical(record).encode())})
        try:
            for at, picture in enumerate(result.pictures):
                write(self.picture(cell.id, at), picture)
            write(place, text.encode())
        except OSError:
            for at in range(len(result.pictures)):
                with contextlib.suppress(OSError):
                    self.picture(cell.id, at).unlink()
            raise

    def picture(self, name: str, at: int) -> Path:
        """Where a picture of a cell lies."""
        return self._place(name).with_suffix(f".{at}.png")

    def __iter__(self) -> Iterator[tuple[Cell, Result]]:
        """All finished cells, without labels, in the order of their ids."""
        for path in sorted(self.folder.glob("cells/??/*.json")):
            if (result := self.get(path.stem)) is not None:
                record = json.loads(path.read_bytes())
                yield Cell(record["kind"], record["work"]), result

    def _place(self, name: str) -> Path:
        if not re.fullmatch("[0-9a-f]{32}", name):
            raise ValueError(f"{name[:40]} is no id of a cell")
        return self.folder / "cells" / name[:2] / f"{name}.json"

    def get(self, name: str) -> Result | None:
        """The result of the cell with this id."""
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError, Unusable):
            record = json.loads(self._place(name).read_bytes())
            if record.pop("sum") != digest(canonical(record).encode()) or record["format"] != FORMAT:
                return None
            if Cell(record["kind"], record["work"]).id != name:
                return None
            pictures = tuple(self.picture(name, at).read_bytes() for at in range(len(record["pictures"])))
            if [*map(digest, pictures)] == record["pictures"]:
                return Result(record["values"], pictures, record["seconds"], record["worker"])
        return None


def digest(content: bytes) -> str:
    """The hash that a file's content is checked by."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: also a power cut leaves the old one or the new one."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    if os.name != "nt":  # Windows has no handle of a folder to sync
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

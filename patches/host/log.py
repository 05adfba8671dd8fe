"""What the pack tells the user while it works: in the log, a logger named `beyond_cfg`, and to those who listen."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

LOG = logging.getLogger("beyond_cfg")
LISTENERS: list[Callable[[str], None]] = []  # each is told every warning, also one that the log has had before


def warn(message: str) -> None:
    """Warn the user, in the host's log."""
    log(message)
    _tell(message)


def warn_once(message: str) -> None:
    """Warn the user, in the host's log once per process."""
    log_once(message)
    _tell(message)


def log(message: str) -> None:
    """Write a warning into the log alone."""
    LOG.warning(f"Beyond CFG: {message}")


log_once = functools.cache(log)  # the same message once per process


def _tell(message: str) -> None:
    for listener in LISTENERS:
        listener(message)

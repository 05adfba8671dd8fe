"""The log of the pack: a logger named `beyond_cfg`."""

from __future__ import annotations

import functools
import logging

LOG = logging.getLogger("beyond_cfg")


def warn(message: str) -> None:
    """Warn the user, in the host's log."""
    LOG.warning(f"Beyond CFG: {message}")


warn_once = functools.cache(warn)  # the same message once per process

"""What ran: the forwards of a block of code, for tests and reports, and what the log is told."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from ..base import Branch


@dataclass(frozen=True)
class Forward:
    """One forward of the network in a model call where terms acted."""

    sigma: float
    branches: tuple[Branch | None, ...]  # by row of the batch; None: a row of the guider's own
    roles: tuple[int, ...]


_TRACE: contextvars.ContextVar[list[Forward] | None] = contextvars.ContextVar("trace", default=None)


@contextlib.contextmanager
def trace() -> Iterator[list[Forward]]:
    """Collects the forwards that carry rows of ours, in the order they run."""
    token = _TRACE.set(record := [])
    try:
        yield record
    finally:
        _TRACE.reset(token)


def record(sigma: float, branches: tuple[Branch | None, ...], roles: tuple[int, ...]) -> None:
    """Note one forward where somebody traces."""
    if (forwards := _TRACE.get()) is not None:
        forwards.append(Forward(sigma, branches, roles))


def warn(message: str) -> None:
    logging.warning(f"Beyond CFG: {message}")


warn_once = functools.cache(warn)

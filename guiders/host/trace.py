"""What ran: the network's forwards during a block of code, for tests and reports."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from dataclasses import dataclass

from ..base import Branch


@dataclass(frozen=True)
class ForwardRecord:
    """One forward of the network in a model call where terms acted."""

    sigma: float
    branches: tuple[Branch | None, ...]  # for each chunk of the batch; None: the guider's own
    roles: tuple[int, ...]  # what other packs take each chunk for: 0 positive, 1 negative


_TRACE: contextvars.ContextVar[list[ForwardRecord] | None] = contextvars.ContextVar("beyond_cfg_trace", default=None)


@contextlib.contextmanager
def trace() -> Iterator[list[ForwardRecord]]:
    """Within this context the list that is yielded gets each forward in which terms act, in the order they run."""
    token = _TRACE.set(forwards := [])
    try:
        yield forwards
    finally:
        _TRACE.reset(token)


def record(sigma: float, branches: tuple[Branch | None, ...], roles: tuple[int, ...]) -> None:
    """Note one forward where somebody traces."""
    if (forwards := _TRACE.get()) is not None:
        forwards.append(ForwardRecord(sigma, branches, roles))

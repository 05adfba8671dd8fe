"""The host's Comfy Compiler, which runs with perturbations leave off.

From 0.34 on the host records in which order the blocks of some networks ask for memory, and expects the same of the next
call. Terms that come and go along the schedule, and blocks that are perturbed, ask in another order. What the host makes
is right all the same, but it cannot free that memory, and other packs saw it crash. Its only switch is a command-line
setting, for all networks of the process. The host reads it each time it calls a network that it would compile.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import comfy.cli_args

SWITCH = "disable_comfy_compiler"  # among the host's settings; older hosts have neither compiler nor switch
_LOCK = threading.Lock()
_BEFORE: list[bool] = []  # for each run that has the compiler off now, how the switch stood before the first of them


@contextlib.contextmanager
def compiler_off() -> Iterator[None]:
    """Within this context the compiler is off. Runs in other threads may have it off too: the last turns it on again."""
    settings = comfy.cli_args.args
    if not hasattr(settings, SWITCH):
        yield
        return
    with _LOCK:
        _BEFORE.append(_BEFORE[0] if _BEFORE else getattr(settings, SWITCH))
        setattr(settings, SWITCH, True)
    try:
        yield
    finally:
        with _LOCK:
            before = _BEFORE.pop()
            if not _BEFORE:
                setattr(settings, SWITCH, before)

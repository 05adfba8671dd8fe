"""Failing at a chosen moment of a run: at any operation on tensors, as running out of memory does."""

from __future__ import annotations

import sys
from collections.abc import Callable

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Counts the operations on tensors while it lasts, and notes which functions were on the stack, at which of them."""

    def __init__(self):
        super().__init__()
        self.count = 0
        self.code: dict = {}  # a function's code → its first and its last operation

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        frame = sys._getframe(1)
        while frame:
            self.code.setdefault(frame.f_code, [self.count, self.count])[1] = self.count
            frame = frame.f_back
        self.count += 1
        return operation(*args, **(kwargs or {}))

    def functions(self) -> dict[tuple[str, str], list[int]]:
        """(folder/file, name) of each function → its first and its last operation"""
        found: dict[tuple[str, str], list[int]] = {}
        for code, (first, last) in self.code.items():
            place = ("/".join(code.co_filename.replace("\\", "/").split("/")[-2:]), code.co_name)
            known = found.setdefault(place, [first, last])
            known[:] = min(known[0], first), max(known[1], last)
        return found


class At(TorchDispatchMode):
    """Does `event` before operation number `moment`, once."""

    def __init__(self, moment: int, event: Callable[[], None]):
        super().__init__()
        self.left, self.event = moment, event

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.left -= 1
        if self.left == -1:
            self.event()
        return operation(*args, **(kwargs or {}))


def on_stack(file: str) -> bool:
    """Whether a function of a file of this name is being run."""
    frame = sys._getframe(1)
    while frame and not frame.f_code.co_filename.endswith(file):
        frame = frame.f_back
    return frame is not None

"""Attention in modules that the host gives no transformer_options.

The host's own slot for an attention override is in the transformer_options, and these modules never see them. So for the
length of a call the functions `optimized_attention` and `optimized_attention_masked`, in the host's Python modules where
such modules are written, are replaced by ones that hand the options over. No other hook of the host reaches there. The
package's docstring names the networks.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .attention import ATTENTION
from .forwards import OF_THIS_CALL

FUNCTIONS = ("optimized_attention", "optimized_attention_masked")
_LOCK = threading.Lock()
_USERS: dict[tuple[str, str], list] = {}  # (Python module, name) → [how many calls use it now, the host's function]


@dataclass(frozen=True)
class OptionsFreeModule:
    """The forward of such a module: within it the attention function finds `attention` as its override."""

    forward: Callable
    attention: Callable

    def __call__(self, *args, **kwargs):
        token = OF_THIS_CALL.set({**(OF_THIS_CALL.get() or {}), ATTENTION: self.attention})
        try:
            return self.forward(*args, **kwargs)
        finally:
            OF_THIS_CALL.reset(token)


@dataclass(frozen=True)
class OptionsFreeOverride:
    """The host's attention override for a whole network that has such modules: the host may give options to the attention
    though it gives none to the module."""

    previous: Callable | None  # another pack's override

    def __call__(self, func, *args, **kwargs):
        attention = (OF_THIS_CALL.get() or {}).get(ATTENTION, self.previous)
        return func(*args, **kwargs) if attention is None else attention(func, *args, **kwargs)


@contextlib.contextmanager
def replaced_attention_functions(modules: list) -> Iterator[None]:
    """Within this context the attention functions of the Python modules in which the classes of `modules` are written
    hand over what an OptionsFreeModule sets. Calls in other threads may share the replacement."""
    homes = {type(module).__module__ for module in modules}
    names = [(home, name) for home in homes for name in FUNCTIONS if hasattr(sys.modules[home], name)]
    with _LOCK:
        for home, name in names:
            users = _USERS.setdefault((home, name), [0, getattr(sys.modules[home], name)])
            users[0] += 1
            setattr(sys.modules[home], name, _handing_over(users[1]))
    try:
        yield
    finally:
        with _LOCK:
            for home, name in names:
                users = _USERS[home, name]
                users[0] -= 1
                if not users[0]:
                    setattr(sys.modules[home], name, _USERS.pop((home, name))[1])


def _handing_over(function: Callable) -> Callable:
    def attention(*args, **kwargs):
        options = OF_THIS_CALL.get()
        if options is None or ATTENTION not in options:
            return function(*args, **kwargs)
        return function(*args, **{**kwargs, "transformer_options": options})

    return attention

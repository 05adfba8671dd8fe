"""Replaces `forward` of chosen modules for the length of one network call, and restores it."""

from __future__ import annotations

import contextlib
import contextvars
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from .lookup import uncompiled

FORWARDS = "beyond_cfg_forwards"  # in a call's transformer_options: name → the forward that stands there in this call
# The same, where a module gets no options or another pack has lost them. See also options_free.
OF_THIS_CALL: contextvars.ContextVar[dict | None] = contextvars.ContextVar("beyond_cfg_forwards", default=None)


@dataclass(frozen=True)
class ForwardPatch:
    """What stands around a module's own forward in one call of the network."""

    name: str  # of who puts it there and where; no two in a call are the same
    module: torch.nn.Module
    make: Callable[[Callable], Callable]  # (the forward that is there) → the one that calls it; both of the same inputs


@contextlib.contextmanager
def patched_forwards(patches: list[ForwardPatch], options: dict) -> Iterator[dict]:
    """Within this context the forward of each module in `patches` is wrapped; the last of several on one module is
    outermost. Yields a copy of the transformer_options `options` that holds the wrappers: call the network with it."""
    wrappers, before = dict(options.get(FORWARDS, {})), []
    token = OF_THIS_CALL.set(wrappers)
    try:
        for patch in patches:
            module = patch.module
            before.append((module, vars(module).get("forward")))  # another pack's, where it has put one there
            wrappers[patch.name] = patch.make(module.forward)
            stand_in = _WithOptions if takes_options(module) else _WithoutOptions
            module.forward = cast(Callable, stand_in(patch.name))
        yield {**options, FORWARDS: wrappers}
    finally:
        OF_THIS_CALL.reset(token)
        for module, forward in reversed(before):
            if forward is None:
                vars(module).pop("forward", None)  # another pack may have removed it already
            else:
                module.forward = forward


class _Named:
    """A module's forward in its place: it looks up by its name what stands there in this call. There is one object for
    each name, kept for ever, because torch.compile guards on the identity of `forward`: another one would recompile."""

    name: str
    _known: dict = {}  # noqa: RUF012 (shared by all on purpose)

    def __new__(cls, name: str):
        if (cls, name) not in _Named._known:
            _Named._known[cls, name] = super().__new__(cls)
            _Named._known[cls, name].name = name
        return _Named._known[cls, name]


class _WithOptions(_Named):
    """For a module that the host gives transformer_options."""

    def __call__(self, *args, **kwargs):
        options = kwargs["transformer_options"] if "transformer_options" in kwargs else args[-1] if args else None
        if isinstance(options, dict) and FORWARDS in options:
            return options[FORWARDS][self.name](*args, **kwargs)
        return (OF_THIS_CALL.get() or {})[self.name](*args, **kwargs)  # another pack has lost the options


class _WithoutOptions(_Named):
    """For a module that the host gives no options. A compiled network is left to run it in Python."""

    @torch.compiler.disable
    def __call__(self, *args, **kwargs):
        return (OF_THIS_CALL.get() or {})[self.name](*args, **kwargs)


@dataclass(frozen=True)
class Inputs:
    """Reads some inputs of a forward by their names, whether they are given by place or by keyword."""

    names: tuple[str, ...]
    places: tuple[int, ...]

    @classmethod
    def of(cls, module, names: tuple[str, ...]):
        """Reads the inputs `names` of `module`'s forward; one without a name is called by the number of its place."""
        known = list(parameters(module))
        places = (int(name) if name.isdigit() else known.index(name) if name in known else None for name in names)
        return cls(names, tuple(at if place is None else place for at, place in enumerate(places)))

    def read(self, args: tuple, kwargs: dict) -> list:
        """Those inputs, in the order of the names, from one call's arguments."""
        return [
            kwargs[name] if name in kwargs else args[place] for name, place in zip(self.names, self.places, strict=True)
        ]


class Streams(Inputs):
    """Reads the inputs that a block gives back changed. One input may hold several of them, as a tuple."""

    def read(self, args: tuple, kwargs: dict) -> list:
        """The tensors in those inputs, from one call's arguments."""
        inputs = super().read(args, kwargs)
        return [part for given in inputs for part in (given if isinstance(given, tuple) else (given,))]

    def replaced(self, args: tuple, kwargs: dict, at: int, tokens: Tensor) -> tuple[tuple, dict]:
        """(args, kwargs) of one call with `tokens` in place of the tensor that `read` gives at place `at`."""
        for name, place in zip(self.names, self.places, strict=True):
            given = kwargs[name] if name in kwargs else args[place]
            parts = given if isinstance(given, tuple) else (given,)
            if at < len(parts):
                new = (*parts[:at], tokens, *parts[at + 1 :]) if isinstance(given, tuple) else tokens
                if name in kwargs:
                    return args, {**kwargs, name: new}
                return (*args[:place], new, *args[place + 1 :]), kwargs
            at -= len(parts)
        raise IndexError(f"{', '.join(self.names)} hold too few tensors")

    def changed(self, out, change: Callable[[int, Tensor], Tensor]):
        """A block's output `out` in which each stream is change(its number, the stream)."""
        if isinstance(out, Tensor):
            return change(0, out)
        # The last of SD3's blocks gives no text.
        return tuple(None if part is None else change(at, part) for at, part in enumerate(out))


def takes_options(module) -> bool:
    """Whether a module's forward takes the host's transformer_options: by name, or with whatever else it is given. A
    layer of weights, which has no modules in it, may take whatever it is given and passes the options to nobody."""
    given = parameters(module).values()
    takes_all = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= {one.kind for one in given}
    named = any(one.name == "transformer_options" for one in given)
    return named or (takes_all and any(True for _ in module.children()))


def parameters(module) -> dict[str, inspect.Parameter]:
    """The inputs of a module's forward, by name. They are read from its class, since a patch may stand in front of the
    module's own forward."""
    _, *given = inspect.signature(type(uncompiled(module)).forward).parameters.items()  # without self
    return dict(given)

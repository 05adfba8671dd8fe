"""Around a transformer's modules: their forwards are ours while the network is called."""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import math
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..base import Moment
from .attention import ATTENTION, PARTS, TEXT, Present, Shares, TransformerAttention, by_share, witness
from .lookup import uncompiled

AROUND = "beyond_cfg_around"  # name → what a forward of ours does, in the options of a call
_TOLD: contextvars.ContextVar[dict | None] = contextvars.ContextVar("told", default=None)  # the same, and ATTENTION


@dataclass(frozen=True)
class Forward:
    """What is to stand around a module's own forward in one call of the network."""

    name: str  # of its place in the network and of who puts it there
    module: torch.nn.Module
    make: Callable[[Callable], Callable]  # (the forward that is there) → ours, of the module's inputs


@contextlib.contextmanager
def around(forwards: list[Forward], options: dict) -> Iterator[dict]:
    """Each module's forward is ours while the context lasts, for network calls with the transformer_options that it
    gives: `options`, and in them what ours do. The last forward of one module is outermost."""
    told, kept = dict(options.get(AROUND, {})), []
    token = _TOLD.set(told)
    try:
        for forward in forwards:
            module = forward.module
            kept.append((module, vars(module).get("forward")))  # another pack's, where it has put one there
            told[forward.name] = forward.make(module.forward)
            module.forward = (_Told if takes_options(module) else _Untold)(forward.name)
        yield {**options, AROUND: told}
    finally:
        _TOLD.reset(token)
        for module, own in reversed(kept):
            if own is None:
                vars(module).pop("forward", None)  # another pack may have taken ours off already
            else:
                module.forward = own


class _Named:
    """A module's forward of ours: always the same one under one name, since a compiled network is compiled again for
    another. What it does is in the call's options."""

    _known: dict = {}

    def __new__(cls, name: str):
        if (cls, name) not in _Named._known:
            _Named._known[cls, name] = super().__new__(cls)
            _Named._known[cls, name].name = name
        return _Named._known[cls, name]


class _Told(_Named):
    def __call__(self, *args, **kwargs):
        options = kwargs["transformer_options"] if "transformer_options" in kwargs else args[-1] if args else None
        told = (
            options[AROUND] if isinstance(options, dict) and AROUND in options else _TOLD.get()
        )  # others may lose them
        return told[self.name](*args, **kwargs)


class _Untold(_Named):
    """The same for a module that the host gives no options. A compiled network is left for it."""

    @torch.compiler.disable
    def __call__(self, *args, **kwargs):
        return _TOLD.get()[self.name](*args, **kwargs)


@dataclass(frozen=True)
class Inputs:
    """Some of a forward's inputs by name, whether they are given by place or by keyword."""

    names: tuple[str, ...]
    places: tuple[int, ...]

    @classmethod
    def of(cls, module, names: tuple[str, ...]):
        known = list(_parameters(module))
        return cls(names, tuple(known.index(name) if name in known else at for at, name in enumerate(names)))

    def read(self, args: tuple, kwargs: dict) -> list:
        return [
            kwargs[name] if name in kwargs else args[place] for name, place in zip(self.names, self.places, strict=True)
        ]


class Streams(Inputs):
    """The inputs that a block gives back changed. An input may hold several of them."""

    def read(self, args: tuple, kwargs: dict) -> list:
        inputs = super().read(args, kwargs)
        return [part for given in inputs for part in (given if isinstance(given, tuple) else (given,))]

    def changed(self, out, change: Callable[[int, Tensor], Tensor]):
        """A block's output `out` with each stream s as `change(s, out of it)`."""
        if isinstance(out, Tensor):
            return change(0, out)
        # The last of SD3's blocks gives no text.
        return tuple(None if part is None else change(at, part) for at, part in enumerate(out))


@dataclass(frozen=True)
class AttendingModule:
    """The forward of a module in which the host's attention is ours."""

    forward: Callable
    attention: TransformerAttention
    text: Inputs | None  # the text that comes first
    parts: bool = False  # whether the attention may come in several calls
    sliced: bool = False  # whether the host's "img_slice" tells of the text

    def __call__(self, *args, **kwargs):
        options = kwargs.get("transformer_options", {})
        if self.sliced and "img_slice" not in options:
            raise self.attention.refusal("nothing tells how much text comes first.")
        if self.parts:
            options = {**options, PARTS: []}
        if self.text is not None:
            (tokens,) = self.text.read(args, kwargs)
            options = {**options, TEXT: tokens.shape[1]}
        elif "img_slice" in options:
            options = {**options, TEXT: options["img_slice"][0]}
        return self.forward(*args, **{**kwargs, "transformer_options": {**options, ATTENTION: self.attention}})


@dataclass(frozen=True)
class UntoldModule:
    """The same for a module that the host gives no transformer_options, so that its attention cannot be told there."""

    forward: Callable
    attention: TransformerAttention

    def __call__(self, *args, **kwargs):
        token = _TOLD.set({**_TOLD.get(), ATTENTION: self.attention})
        try:
            return self.forward(*args, **kwargs)
        finally:
            _TOLD.reset(token)


@dataclass(frozen=True)
class SkippedBlock:
    """The forward of a block that is left out for some shares of the batch."""

    forward: Callable
    streams: Streams
    axis: int  # of the batch in them
    shares: Shares
    reached: set = field(compare=False)
    present: Present = field(compare=False)

    def __call__(self, *args, **kwargs):
        witness(self.reached, self.shares)
        before, shares = self.streams.read(args, kwargs), self.present.of(self.shares)
        if all(shares):
            return before[0] if len(before) == 1 else tuple(before)
        before = [tokens.clone() for tokens in before]  # blocks add to their inputs in place
        out = self.forward(*args, **kwargs)

        def left_out(stream: int, after: Tensor) -> Tensor:
            old, new = before[stream].movedim(self.axis, 0), after.movedim(self.axis, 0)
            kept = by_share(new.shape[0], shares, lambda at: new[at], lambda at, _: old[at])
            return kept.movedim(0, self.axis)

        return self.streams.changed(out, left_out)


@dataclass(frozen=True)
class TimeModule:
    """The forward of the timestep's embedder, which gives some shares another embedding."""

    forward: Callable
    shares: Shares
    rows: int
    which: str  # as the architecture says
    moment: Moment
    reached: set = field(compare=False)
    grid: tuple[int, ...] = ()  # of the picture's tokens
    called: list = field(default_factory=list, compare=False)

    def __call__(self, *args, **kwargs):
        witness(self.reached, self.shares)
        embedding = self.forward(*args, **kwargs)
        if self.which == "first call" and self.called:
            return embedding
        self.called.append(True)
        if self.which == "tokens":
            return self._of_tokens(embedding)
        start = len(embedding) - self.rows if self.which == "last" else 0
        # There may be embeddings of other times, such as the references'.
        before, own, after = embedding.split([start, self.rows, len(embedding) - self.rows - start])

        def perturbed(at: slice, perturbation) -> Tensor:
            return perturbation.time_embedding(own[at], self.moment)

        out = by_share(self.rows, self.shares, lambda at: own[at], perturbed)
        channels = embedding.shape[-1]
        return torch.cat([part.reshape(-1, channels) for part in (before, out, after)]).reshape(embedding.shape)

    def _of_tokens(self, embedding: Tensor) -> Tensor:
        """Of one time a row, a frame or a token; those of guides come after."""
        times = embedding.reshape(self.rows, -1, embedding.shape[-1])
        many = next((n for n in (math.prod(self.grid), self.grid[0]) if times.shape[1] >= n), 1)

        def perturbed(at: slice, perturbation) -> Tensor:
            own = perturbation.time_embedding(times[at, :many], self.moment)
            return torch.cat([own, times[at, many:]], 1)

        return by_share(self.rows, self.shares, lambda at: times[at], perturbed).reshape(embedding.shape)


# ------------------------------------------------------------------------------- networks that forward no options

_LOCK = threading.Lock()
_USERS: dict[tuple[str, str], list] = {}  # (python module, name) → [how many calls are under way, the host's function]
_FUNCTIONS = ("optimized_attention", "optimized_attention_masked")


def takes_options(module) -> bool:
    """Whether a module's forward takes the host's transformer_options, by name or with whatever else it is given, which
    a layer of weights, that has no modules in it, passes to nobody."""
    parameters = _parameters(module).values()
    takes_all = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= {p.kind for p in parameters}
    named = any(parameter.name == "transformer_options" for parameter in parameters)
    return named or (takes_all and any(True for _ in module.children()))


def _parameters(module) -> dict[str, inspect.Parameter]:
    """Of its class's forward: the module may have another pack's, or ours."""
    _, *given = inspect.signature(type(uncompiled(module)).forward).parameters.items()  # without self
    return dict(given)


@contextlib.contextmanager
def attention_told(modules: list) -> Iterator[None]:
    """While the context lasts, the attention functions of the Python modules that define `modules` hear of the options
    that an UntoldModule wants to give them. Calls in other threads may share it."""
    homes = {type(module).__module__ for module in modules}
    names = [(home, name) for home in homes for name in _FUNCTIONS if hasattr(sys.modules[home], name)]
    with _LOCK:
        for home, name in names:
            users = _USERS.setdefault((home, name), [0, getattr(sys.modules[home], name)])
            users[0] += 1
            setattr(sys.modules[home], name, _telling(users[1]))
    try:
        yield
    finally:
        with _LOCK:
            for home, name in names:
                users = _USERS[home, name]
                users[0] -= 1
                if not users[0]:
                    setattr(sys.modules[home], name, _USERS.pop((home, name))[1])


@dataclass(frozen=True)
class ToldAttention:
    """The host's attention override where it gives options to an UntoldModule's attention, but not to the module."""

    previous: Callable | None

    def __call__(self, func, *args, **kwargs):
        attention = (_TOLD.get() or {}).get(ATTENTION, self.previous)
        return func(*args, **kwargs) if attention is None else attention(func, *args, **kwargs)


def _telling(function: Callable) -> Callable:
    def attention(*args, **kwargs):
        told = _TOLD.get()
        if told is None or ATTENTION not in told:
            return function(*args, **kwargs)
        return function(*args, **{**kwargs, "transformer_options": told})

    return attention

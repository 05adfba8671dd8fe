"""Prefix sharing: rows that are equal so far are computed once.

A perturbed row is a copy of another until the first layer in which it is perturbed. Each module before that layer gets
the rows that differ, and what it makes of them is repeated for the others. Between the modules all rows are there: what
the host adds to them there (skips, controls) finds the batch it expects, and a module that cannot be shared runs as it
would without this. The one difference is rounding, since kernels of PyTorch depend on the size of a batch.

Where something of another pack could be inside those modules, or where rows are no copies, nothing is shared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor

from .. import architectures
from ..architectures import Architecture
from ..base import BlockPerturbation, Observation, Perturbation
from ..layers import Layer
from .attention import ATTENTION
from .chunks import Chunks, PresentChunks
from .forwards import FORWARDS, ForwardPatch, Streams
from .log import LOG
from .lookup import is_compiled, uncompiled
from .others import names, patches, treats_rows_alike, whose


@dataclass
class PrefixSharing:
    """Whether and how the rows of a run are shared. Lives as long as the run."""

    on: bool = True
    refused: str = ""  # why all rows are computed whole
    saved: list[int] = field(default_factory=list)  # for each chunk of the last batch: the modules that ran without it
    modules: int = 0  # how many modules the network of the last batch has
    _units: dict = field(default_factory=dict)  # of each kind of batch that has come
    _logged: set = field(default_factory=set)  # the perturbations that the log has been told of

    def patches(
        self,
        architecture: Architecture,
        network,
        inputs: dict,
        options: dict,
        chunks: Chunks,
        copies: tuple[Hashable, ...],
        present: PresentChunks,
    ) -> list[ForwardPatch]:
        """What stands around the modules of `network` in which some `chunks` equal others, in a call with these inputs.
        `copies`: for each chunk what it is a copy of, but for what is done in it."""
        self.saved = []
        if not (self.on and copies) or self.refused or (not architecture.stacks and architectures.has_frames(network)):
            return []
        key, why = (network, chunks, copies), _inside(options)
        is_new = key not in self._units
        if is_new:
            self._units[key] = [*_units(architecture, uncompiled(network), chunks, copies)]
        units = self._units[key]
        shared = [unit for unit in units if unit.same != tuple(range(len(chunks)))]
        if not shared:
            return []
        if is_new:
            why = why or _changed(network, shared) or _unequal(inputs, _same(chunks, copies, set()))
        if why:
            self.refused = why
            LOG.info(f"Beyond CFG: all rows are computed whole, since {why}")
            return []
        self.saved, self.modules = [0] * len(chunks), len(units)
        make = partial(SharedModule, rows=inputs["x"].shape[0], present=present, saved=self.saved)
        return [ForwardPatch(f"shared {unit.name}", unit.module, partial(make, unit=unit)) for unit in shared]

    def log(self, chunks: Chunks) -> None:
        """Tell the log once, for each perturbation in the last batch, how many modules ran without its rows."""
        new = {
            chunk: count
            for chunk, count in zip(chunks, self.saved, strict=False)
            if count and isinstance(chunk, Perturbation) and chunk not in self._logged
        }
        self._logged.update(new)
        if new:
            parts = ", ".join(f"{chunk.about.name} {count}" for chunk, count in new.items())
            LOG.info(f"Beyond CFG: of {self.modules} modules, computed once with the row that is perturbed: {parts}")


def _inside(options: dict) -> str:
    """What of another pack the host would call inside the network's modules, or between them; "" for nothing."""
    for kind in ("patches", "patches_replace"):
        if found := patches(options, kind):
            return f"{names(found)} has put {kind} into the network"
    override = options.get(ATTENTION)
    return f"{whose(override)} has replaced the attention" if override and not treats_rows_alike(override) else ""


def _changed(network, units: list[Unit]) -> str:
    """A reason not to share: a module or a hook in `units` that is not the host's. Leaf layers of other packs, which hold
    weights in another format, are fine."""
    if is_compiled(network):
        return "the network is compiled"
    for module in (unit.module for unit in units):
        if any(module.children()) and not type(module).__module__.startswith("comfy."):
            return f"{whose(module)} is not the host's own"
        for part in module.modules():
            replaced = [vars(part)["forward"]] if "forward" in vars(part) else []
            if found := [*replaced, *part._forward_hooks.values(), *part._forward_pre_hooks.values()]:
                return f"{names(found)} has changed {type(part).__name__} in the network"
    return ""


def _unequal(inputs: dict, same: tuple[int, ...]) -> str:
    """A reason not to share: an input whose rows for a chunk are not those of the chunk that it should equal."""
    rows = inputs["x"].shape[0]
    if rows % len(same):
        return "another node has changed how many rows the network gets"
    for name, given in inputs.items():
        for part in given if isinstance(given, list | tuple) else (given,):
            if isinstance(part, Tensor) and part.ndim and part.shape[0] == rows:
                by_chunk = part.unflatten(0, (len(same), -1))
                if not torch.equal(by_chunk, by_chunk[list(same)]):
                    return f"rows of the network's {name} differ"
    return ""


@dataclass(frozen=True)
class Unit:
    """A module that rows pass through."""

    name: str
    module: torch.nn.Module
    streams: tuple[str, ...]  # the names of its inputs that are tokens; none: its first input is a picture
    same: tuple[int, ...]  # for each chunk of the batch the first that is equal, before and after the module


def _units(architecture: Architecture, network, chunks: Chunks, copies: tuple[Hashable, ...]) -> Iterator[Unit]:
    """The network's modules, in the order in which they run."""
    layers, passed = architecture.layers(network), set()
    of_block = {key: [*those] for key, those in groupby(layers, key=lambda layer: (layer.stack, layer.index))}

    def unit(name: str, module, streams: tuple[str, ...] = (), after: Iterable[Layer] = ()) -> Unit:
        passed.update(after)
        return Unit(name, module, streams, _same(chunks, copies, passed))

    if architecture.stacks:
        for layer in layers:
            stack = architecture.stack(layer)
            block = unit(str(layer), architecture.block(network, layer), stack.streams, [layer])
            if stack.prefix_sharing and stack.streams and not stack.rows:
                yield block
        return
    for at, (stack, index, module) in enumerate(architectures.unet_modules(network)):
        transformers = getattr(module, "transformer_blocks", ())
        inside = of_block[stack, index] if transformers else ()
        if _same(chunks, copies, passed) == _same(chunks, copies, passed.union(inside)):
            yield unit(f"{at}", module, after=inside)
        else:
            for layer, transformer in zip(inside, transformers, strict=True):
                yield unit(f"{at} {layer.part}", transformer, after=[layer])


def _same(chunks: Chunks, copies: tuple[Hashable, ...], passed: set[Layer]) -> tuple[int, ...]:
    """For each chunk the first that equals it after all layers of `passed` have run."""
    pasts = [(copy, _past(at, chunk, passed)) for at, (chunk, copy) in enumerate(zip(chunks, copies, strict=True))]
    return tuple(map(pasts.index, pasts))


def _past(at: int, acting, passed: set[Layer]) -> Hashable:
    """What has been done in chunk number `at`, as something that is equal where the same has been done."""
    if acting is None:
        return None
    if not acting.layers:  # a time embedding, which all layers get
        return acting
    done = frozenset(layer for layer in acting.layers if layer.whole in passed)
    if isinstance(acting, Observation):  # it reports rows of its own chunk
        return (at, done) if done else None
    if not done:
        return None
    if acting.random and isinstance(acting, BlockPerturbation):  # its draw is among all of its layers
        return acting, done
    return dataclasses.replace(cast(Any, acting), layers=()), done


@dataclass(frozen=True)
class SharedModule:
    """The forward of a module in which some chunks of the batch equal others."""

    forward: Callable
    unit: Unit
    rows: int
    present: PresentChunks = field(compare=False)
    saved: list[int] = field(compare=False)

    def __call__(self, *args, **kwargs):
        same = self.unit.same
        kept, size = tuple(dict.fromkeys(same)), self.rows // len(same)
        if not self._has_rows(args, kwargs):
            return self.forward(*args, **kwargs)
        try:
            few_args, few_kwargs = _mapped(partial(_rows_of, self.rows, kept, size), (args, kwargs))
        except NotRows:
            return self.forward(*args, **kwargs)
        with self.present.limited_to(kept):
            out = self.forward(*few_args, **few_kwargs)
        for chunk, first in enumerate(same):
            self.saved[chunk] += chunk != first
        return _mapped(partial(_repeated, [kept.index(first) for first in same], len(kept) * size), out)

    def _has_rows(self, args: tuple, kwargs: dict) -> bool:
        """Whether the first axis of what the module changes is the batch, and could be no other of its axes."""
        if not self.unit.streams:
            return args[0].shape[0] == self.rows
        streams = Streams.of(self.unit.module, self.unit.streams).read(args, kwargs)
        streams = [stream for stream in streams if stream is not None]
        tokens = [stream.shape[1] for stream in streams]
        return all(s.shape[0] == self.rows for s in streams) and self.rows not in (*tokens, sum(tokens))


class NotRows(Exception):
    """An input of a module holds rows in a way that is not known here."""


def _mapped(change: Callable[[Tensor], Tensor], given) -> Any:
    """`given` with each tensor in it changed."""
    if isinstance(given, Tensor):
        return change(given)
    if given is None or isinstance(given, int | float | str | torch.Size):
        return given
    if isinstance(given, dict):  # the host's options are for all rows
        return given if FORWARDS in given else {key: _mapped(change, value) for key, value in given.items()}
    if type(given) in (tuple, list):
        return type(given)(_mapped(change, part) for part in given)
    if dataclasses.is_dataclass(given) and not isinstance(given, type):
        parts = {part.name: _mapped(change, getattr(given, part.name)) for part in dataclasses.fields(given)}
        return dataclasses.replace(given, **parts)
    raise NotRows


def _rows_of(rows: int, kept: tuple[int, ...], size: int, given: Tensor) -> Tensor:
    if given.ndim > 3 and given.shape[:2] == (2, rows):  # cosines and sines, each of all rows: older hosts' Ernie-Image
        raise NotRows
    if not given.ndim or given.shape[0] not in (rows, 2 * rows):
        return given
    if given.shape[0] == 2 * rows:  # such as of two times
        raise NotRows
    if kept == tuple(range(len(kept))):
        return given[: len(kept) * size]
    return torch.cat([given[at * size : (at + 1) * size] for at in kept])


def _repeated(places: list[int], rows: int, given: Tensor) -> Tensor:
    if not given.ndim or given.shape[0] != rows:
        return given
    size = rows // (max(places) + 1)
    return torch.cat([given[at * size : (at + 1) * size] for at in places])

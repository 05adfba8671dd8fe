"""Rows that are equal so far are computed once.

A perturbed row is a copy of another until the first layer in which it is perturbed. Each module before that layer gets
the rows that differ, and what it makes of them is repeated for the others. Between the modules all rows are there: what
the host adds to them there (skips, controls) finds the batch it expects, and a module that cannot be shared runs as it
would without us. The one difference is rounding, since kernels of PyTorch depend on the size of a batch.

Where anything of others could be inside those modules, or the rows are no copies after all, nothing is shared.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from .. import architectures
from ..architectures import Architecture
from ..layers import Layer
from .attention import ATTENTION, Present, Shares
from .lookup import is_compiled, uncompiled
from .modules import AROUND, Forward, Streams
from .others import names, patches, whose


@dataclass
class Sharing:
    """Whether and how the rows of a run are shared."""

    on: bool = True
    refused: str = ""  # why rows are computed whole
    taken: list[int] = field(default_factory=list)  # by share of the last batch: modules that were not computed for it
    modules: int = 0  # that there were
    _units: dict = field(default_factory=dict)  # those of every batch that has come
    _told: set = field(default_factory=set)  # the perturbations that the log knows of

    def forwards(
        self,
        architecture: Architecture,
        network,
        inputs: dict,
        options: dict,
        shares: Shares,
        copies: tuple[Hashable, ...],
        present: Present,
    ) -> list[Forward]:
        """What is put around the modules of `network` in which some `shares` equal others in a call with these inputs.
        `copies`: what each share is a copy of, but for its perturbation."""
        self.taken = []
        if not (self.on and copies) or self.refused or (not architecture.stacks and architectures.has_frames(network)):
            return []
        key, why = (network, shares, copies), _inside(options)
        is_new = key not in self._units
        if is_new:
            self._units[key] = [*_units(architecture, uncompiled(network), shares, copies)]
        units = self._units[key]
        shared = [unit for unit in units if unit.same != tuple(range(len(shares)))]
        if not shared:
            return []
        if is_new:
            why = why or _changed(network, shared) or _unequal(inputs, _same(shares, copies, set()))
        if why:
            self.refused = why
            logging.info(f"Beyond CFG: all rows are computed whole, since {why}")
            return []
        self.taken, self.modules = [0] * len(shares), len(units)
        make = partial(SharedModule, rows=inputs["x"].shape[0], present=present, taken=self.taken)
        return [Forward(f"shared {unit.name}", unit.module, partial(make, unit=unit)) for unit in shared]

    def say(self, shares: Shares) -> None:
        """Tell the log once of each perturbation in the last batch what it has shared."""
        new = {
            share: count
            for share, count in zip(shares, self.taken, strict=False)
            if count and hasattr(share, "about") and share not in self._told
        }
        self._told.update(new)
        if new:
            parts = ", ".join(f"{share.about.title} {count}" for share, count in new.items())
            logging.info(
                f"Beyond CFG: of {self.modules} modules, computed once with the row that is perturbed: {parts}"
            )


def _inside(options: dict) -> str:
    """What of others the host would call inside the network's modules, or between them."""
    for kind in ("patches", "patches_replace"):
        if found := patches(options, kind):
            return f"{names(found)} has put {kind} into the network"
    return f"{whose(options[ATTENTION])} has replaced the attention" if options.get(ATTENTION) else ""


def _changed(network, units: list[Unit]) -> str:
    """What is not the host's own in the modules of `units`. Layers of weights may be others' in a format of theirs."""
    if is_compiled(network):
        return "the network is compiled"
    for module in (unit.module for unit in units):
        if any(module.children()) and not type(module).__module__.startswith("comfy."):
            return f"{whose(module)} is not the host's own"
        for part in module.modules():
            own = [vars(part)[name] for name in ("forward",) if name in vars(part)]
            if found := [*own, *part._forward_hooks.values(), *part._forward_pre_hooks.values()]:
                return f"{names(found)} has changed {type(part).__name__} in the network"
    return ""


def _unequal(inputs: dict, same: tuple[int, ...]) -> str:
    """Which input has other rows for a share than for the one it should be the same as."""
    rows = inputs["x"].shape[0]
    if rows % len(same):
        return "another node has changed how many rows the network gets"
    for name, given in inputs.items():
        for part in given if isinstance(given, list | tuple) else (given,):
            if isinstance(part, Tensor) and part.ndim and part.shape[0] == rows:
                own = part.unflatten(0, (len(same), -1))
                if not torch.equal(own, own[list(same)]):
                    return f"rows of the network's {name} differ"
    return ""


@dataclass(frozen=True)
class Unit:
    """A module that rows pass through."""

    name: str
    module: torch.nn.Module
    streams: tuple[str, ...]  # the names of its inputs that are tokens; none: its first input is a picture
    same: tuple[int, ...]  # for each share of the batch the first that is the same, in and out


def _units(architecture: Architecture, network, shares: Shares, copies: tuple[Hashable, ...]) -> Iterator[Unit]:
    """The network's modules, in the order in which they run."""
    layers, passed = architecture.layers(network), set()
    of_block = {key: [*own] for key, own in groupby(layers, key=lambda layer: (layer.stack, layer.index))}

    def unit(name: str, module, streams: tuple[str, ...] = (), after: Iterable[Layer] = ()) -> Unit:
        passed.update(after)
        return Unit(name, module, streams, _same(shares, copies, passed))

    if architecture.stacks:
        for layer in layers:
            stack = architecture.stack(layer)
            block = unit(str(layer), architecture.block(network, layer), stack.streams, [layer])
            if stack.shares and stack.streams and not stack.rows:
                yield block
        return
    for at, (stack, index, module) in enumerate(architectures.unet_modules(network)):
        transformers = getattr(module, "transformer_blocks", ())
        own = of_block[stack, index] if transformers else ()
        if _same(shares, copies, passed) == _same(shares, copies, passed.union(own)):
            yield unit(f"{at}", module, after=own)
        else:
            for layer, transformer in zip(own, transformers, strict=True):
                yield unit(f"{at} {layer.part}", transformer, after=[layer])


def _same(shares: Shares, copies: tuple[Hashable, ...], passed: set[Layer]) -> tuple[int, ...]:
    """For each share the first that has been the same until all layers of `passed` have run."""
    pasts = [(copy, _past(at, share, passed)) for at, (share, copy) in enumerate(zip(shares, copies, strict=True))]
    return tuple(map(pasts.index, pasts))


def _past(at: int, perturbation, passed: set[Layer]) -> Hashable:
    """What has been done to a share."""
    if perturbation is None:
        return None
    if not perturbation.layers:  # of the time, which all layers are told
        return perturbation
    done = frozenset(passed.intersection(perturbation.layers))
    if hasattr(perturbation, "observe"):  # of its own rows
        return (at, done) if done else None
    return (dataclasses.replace(perturbation, layers=()), done) if done else None


@dataclass(frozen=True)
class SharedModule:
    """The forward of a module in which some shares of the batch are the same as others."""

    forward: Callable
    unit: Unit
    rows: int
    present: Present = field(compare=False)
    taken: list[int] = field(compare=False)

    def __call__(self, *args, **kwargs):
        same = self.unit.same
        kept, size = tuple(dict.fromkeys(same)), self.rows // len(same)
        if not self._has_rows(args, kwargs):
            return self.forward(*args, **kwargs)
        try:
            few_args, few_kwargs = _mapped(partial(_taken, self.rows, kept, size), (args, kwargs))
        except NotRows:
            return self.forward(*args, **kwargs)
        self.present.kept = kept
        try:
            out = self.forward(*few_args, **few_kwargs)
        finally:
            self.present.kept = None
        for share, first in enumerate(same):
            self.taken[share] += share != first
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


def _mapped(change: Callable[[Tensor], Tensor], given):
    """`given` with each tensor in it changed."""
    if isinstance(given, Tensor):
        return change(given)
    if given is None or isinstance(given, int | float | str | torch.Size):
        return given
    if isinstance(given, dict):  # the host's options are for all rows
        return given if AROUND in given else {key: _mapped(change, value) for key, value in given.items()}
    if type(given) in (tuple, list):
        return type(given)(_mapped(change, part) for part in given)
    if dataclasses.is_dataclass(given):
        parts = {part.name: _mapped(change, getattr(given, part.name)) for part in dataclasses.fields(given)}
        return dataclasses.replace(given, **parts)
    raise NotRows


def _taken(rows: int, kept: tuple[int, ...], size: int, given: Tensor) -> Tensor:
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

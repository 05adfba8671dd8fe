"""In which modules of a network the attention over the picture is, and what those give: layers, stacks, streams, time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..architectures import Stack
from ..layers import Layer
from .architecture import Found
from .probes import UNSURE, NotProven, Probe, SeenAttention, where


def layers_of(
    network: torch.nn.Module,
    base: Probe,
    pictures: Mapping[int, tuple[list[int], int]],
    places: Mapping[int, tuple[int, int]],
    grids: Mapping[int, tuple[int, ...]],
) -> dict[Layer, Found]:
    """The layers with an attention over the picture, in the order in which they run. Raises NotProven."""
    modules = dict(network.named_modules())
    of_block: dict[str, list[int]] = {}
    for at in pictures:
        of_block.setdefault(_block(modules, base.attentions[at]), []).append(at)
    names = _stack_names({block.rpartition(".")[0] for block in of_block})
    found = {}
    for block, numbers in of_block.items():
        parent, _, index = block.rpartition(".")
        layer = Layer(names[parent], [*dict(modules[parent].named_children())].index(index))
        grid, across, prefix = _alike(block, [(grids[at], places[at][1], pictures[at][1]) for at in numbers])
        attention, options_free = _attending([base.attentions[at] for at in numbers], block)
        name = f"{block}.{attention}".rstrip(".")
        inside = [at for at, seen in enumerate(base.attentions) if name in seen.path]
        calls: dict[tuple[int, int], int | None] = {}
        for at in inside:
            size, start = base.attentions[at].size, places[at][0] if at in numbers else None
            if calls.setdefault(size, start) != start:
                raise NotProven(
                    "attention", f"two attentions in {name} have as many tokens, and other ones are the picture"
                )
        found[layer] = Found(layer, block, attention, options_free, grid, calls, across, prefix)
    return found


def _alike(where: str, facts: Sequence) -> Any:
    if len({*facts}) > 1:
        raise NotProven("attention", f"the attentions in {where} are not alike")
    return facts[0]


def _block(modules: dict[str, torch.nn.Module], seen: SeenAttention) -> str:
    """The outermost module on the way to an attention that is one of a list. Raises NotProven where there is none."""
    for name in seen.path:
        parent = name.rpartition(".")[0]
        if name and isinstance(modules[parent], torch.nn.ModuleList | torch.nn.ModuleDict):
            return name
    raise NotProven("layers", f"the attention in {where(seen)} lies in no list of modules")


def _attending(seen: list[SeenAttention], block: str) -> tuple[str, bool]:
    """(the module inside `block` around all these attentions, whether the host gives it no transformer_options): the
    innermost one whose options reach them, else the innermost one."""

    def innermost(ways: list[tuple[str, ...]]) -> str | None:
        inside = [name for name in ways[0] if name == block or name.startswith(f"{block}.")]
        return next((name for name in reversed(inside) if all(name in way for way in ways)), None)

    told = innermost([one.told for one in seen])
    name = innermost([one.path for one in seen]) if told is None else told
    return (name or block)[len(block) + 1 :], told is None


def _stack_names(parents: set[str]) -> dict[str, str]:
    """A name for each list of modules, in letters: the last part of its own name, or all of it where two are alike."""

    def letters(text: str) -> str:
        text = re.sub(r"\d", lambda digit: "abcdefghij"[int(digit[0])], text.lower())
        return re.sub("[^a-z]+", "_", text).strip("_") or "blocks"

    short = {parent: letters(parent.rpartition(".")[2]) for parent in parents}
    alike = [*short.values()]
    return {parent: letters(parent) if alike.count(name) > 1 else name for parent, name in short.items()}


def stacks_of(found: dict[Layer, Found], probes: Sequence[Probe], can_skip: bool) -> Iterator[Stack]:
    """The stacks of the layers, from a probe with nothing changed and others. can_skip: whether a block may be left out."""
    base, *others = probes
    for name in dict.fromkeys(layer.stack for layer in found):
        of_stack = [one for layer, one in found.items() if layer.stack == name]
        parent = of_stack[0].block.rpartition(".")[0]
        streams = _streams(base.became.get(parent, []), base.alike.get(parent, []))
        axis = _axis_of_rows(base.sums.get(parent, []), [other.sums.get(parent, []) for other in others])
        if axis is None or not can_skip:
            streams = ()
        free = _alike(parent, [one.options_free for one in of_stack])
        # Rows are computed whole: nothing proves that a block can run with some of them left out.
        # Probes show which tokens of an attention are the picture, and not which of those that enter the block.
        setting = {"rows": axis or 0, "picture": None, "options_free": free, "prefix_sharing": False}
        yield Stack(name, parent, streams=streams, **setting)


def _axis_of_rows(base: list[tuple], others: list[list[tuple]]) -> int | None:
    """The axis of all outputs of blocks of which the second half, and nothing else, changes when the second row does.
    None: there is no such axis."""
    if any([*map(len, sums)] != [*map(len, base)] for sums in others):
        return None
    outs = [(block, out) for block, sums in enumerate(base) for out, one in enumerate(sums) if one is not None]
    for axis in range(min((len(base[block][out]) for block, out in outs), default=0)):
        if all(_is_of_rows([sums[block][out][axis] for sums in (base, *others)]) for block, out in outs):
            return axis
    return None


def _is_of_rows(sums: list[Tensor]) -> bool:
    """Whether exactly the second half of the first of `sums` is another in one of the others, and no more in any."""
    was, *now = sums
    half, moved = len(was) // 2, [(one - was).abs() for one in now]
    changed = [one > UNSURE * one.max() for one in moved]  # rounding may depend on the other row
    return any(one[half:].all() for one in changed) and not any(one[:half].any() for one in changed)


def _streams(became: list[tuple[str | None, ...]], alike: list[tuple[tuple[str, ...] | None, ...]]) -> tuple[str, ...]:
    """The inputs that a block gives back changed: those that its outputs become in the next block, and where an output
    is changed in between, the one input of its shape that is left. None where blocks differ in it or nothing tells."""
    if len({len(outs) for outs in (*became, *alike)}) != 1:
        return ()
    names: list[str] = []
    for out in range(len(alike[0])):
        next_inputs = {outs[out] for outs in became} - {None}
        if not next_inputs:
            of_shape = [outs[out] for outs in alike]
            same = {tuple(name for name in of if name not in names) for of in of_shape if of is not None}
            next_inputs = {*same.pop()} if len(same) == 1 else set()
        if len(next_inputs) != 1 or None in next_inputs:
            return ()
        names += [name for name in next_inputs if name is not None]
    return tuple(dict.fromkeys(names))


def time_module(network: torch.nn.Module, probes: Sequence[Probe]) -> str:
    """The module that embeds the time, from probes with nothing, the latent, the time and the text changed. It runs
    once, before all attention; it gives each row one embedding, which follows the time alone; nothing else of the time
    leaves it. "" where there is none."""
    names = [name for name, _ in probes[0].outputs]
    if any([name for name, _ in probe.outputs] != names for probe in probes):
        return ""
    of_time: dict[str, bool] = {}  # module → whether it gives one embedding for each row, and nothing else
    for (name, was), (_, with_x), (_, with_t), (_, with_text) in zip(*(probe.outputs for probe in probes), strict=True):
        if _equal(was, with_x) and _equal(was, with_text) and not _equal(was, with_t):
            whole = len(was) == 1 and was[0].shape[:1] == (2,) and was[0].numel() == 2 * was[0].shape[-1]
            of_time[name] = whole and names.count(name) == 1
    modules = dict(network.named_modules())
    linear = [name for name in of_time if getattr(getattr(modules[name], "weight", None), "ndim", 0) == 2]
    if len(linear) < 2:
        return ""
    around = [name for name in of_time if name and f"{linear[1]}.".startswith(f"{name}.")]
    return around[-1] if all(of_time[name] for name in around) else ""


def _equal(before: tuple[Tensor, ...], after: tuple[Tensor, ...]) -> bool:
    return len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

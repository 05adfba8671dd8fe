"""Which layers a perturbation touches: one small language for every network.

    auto                what the architecture recommends
    all, *              every layer
    0.5, 0.4-0.6        by depth: the layer half way through the network, or those between; 0 is the first, 1 the last
    middle              a UNet's middle block
    input.4  output.3-5 a UNet's encoder and decoder blocks
    input.8.2-9         some of the transformers of one block
    double.7-9          a transformer's blocks by stack: double, single, block
    blocks.3-5          of a network without a row in the table, by its own name for a list of blocks
    7, 8, 9             a transformer with one stack only
    single.3:h0,h5-7    some heads of a layer's attention; the others stay as they are
    d4, m0, u3-5, d8.2  what other packs write: down, middle, up  (i, o: input, output)

Selections are joined by commas. `parse` and `print_layers` are inverse to one another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from .texts import shown

LONGEST = 2000  # characters: several times a list of every layer by itself
SHORTHAND = {"d": "input", "i": "input", "m": "middle", "u": "output", "o": "output"}
# Of items whose white space is single spaces: runs of it would be tried in all ways to divide them.
FRACTION = re.compile(r"(0?\.\d+|[01]|1\.0+)(?: ?- ?(0?\.\d+|1|1\.0+))?", re.ASCII)
ITEM = re.compile(
    r"(?:(?P<stack>[a-z][a-z_]*) ?\.?)? ?"
    r"(?:(?P<first>\d+)(?: ?- ?(?:(?P<again>[a-z][a-z_]*) ?\.?)? ?(?P<last>\d+))?)?"
    r"(?:(?<=\d) ?\. ?(?P<part>\d+)(?: ?- ?(?P<last_part>\d+))?)?",
    re.ASCII,
)
HEADS = re.compile(r"h ?(\d{1,3})(?: ?- ?h? ?(\d{1,3}))?", re.ASCII)


@dataclass(frozen=True, order=True)
class Layer:
    """One self-attention of the network: its block's stack and number there, as the host counts, and where a block has
    several transformers, which of them. It may stand for some heads of that attention."""

    stack: str
    index: int
    part: int = 0
    parts: int = 1
    heads: tuple[int, ...] = ()  # empty: all of them

    @property
    def whole(self) -> Layer:
        """The same with all heads, as the network's own layers are."""
        return replace(self, heads=()) if self.heads else self

    @property
    def block(self) -> str:
        """Its block, as a user writes it."""
        return self.stack if self.stack == "middle" else f"{self.stack}.{self.index}"

    def __str__(self) -> str:
        name = self.block if self.parts == 1 else f"{self.stack}.{self.index}.{self.part}"
        return name + (":" + ",".join(f"h{run}" for run in _runs(self.heads)) if self.heads else "")


@dataclass(frozen=True, order=True)
class Unread(Layer):
    """Stands for all layers that a text names in a network that nobody knows before it runs. `stack` is the text."""

    skip: bool = False  # whether they are to be skipped, and not perturbed

    def __str__(self) -> str:
        return self.stack


def parse(text: str, layers: Sequence[Layer], auto: Iterable[Layer]) -> tuple[Layer, ...]:
    """The layers that `text` selects among `layers`, in the network's order.

    Raises ValueError for a text beyond LONGEST, else naming the part of the text that cannot be read or found, and the
    layers that there are.
    """
    if len(text) > LONGEST:
        raise ValueError(f'layers "{shown(text)}": it is too long; at most {LONGEST:,} characters are read')
    stacks = list(dict.fromkeys(layer.stack for layer in layers))
    chosen: dict[Layer, set[int]] = {}  # the heads of each; none: all of them
    for item, heads in _items(text, layers):
        if item == "auto":
            named = auto
        elif item in ("all", "*"):
            named = layers
        elif "." in item and (depths := FRACTION.fullmatch(item)):
            named = _by_depth(item, text, layers, float(depths[1]), float(depths[2] or depths[1]))
        else:
            named = _range(item, text, stacks, layers)
        for layer in named:
            before = chosen.get(layer, heads)
            chosen[layer] = before | heads if before and heads else set()
    return tuple(replace(layer, heads=tuple(sorted(chosen[layer]))) for layer in layers if layer in chosen)


def _items(text: str, layers: Sequence[Layer]) -> Iterator[tuple[str, set[int]]]:
    """The parts of `text` between commas, each with its heads. What looks like heads belongs to the part before it, where
    that has some."""
    item, heads = "", set[int]()
    for number, part in enumerate(text.lower().split(",")):
        part = " ".join(part.split())
        name, colon, named = (side.strip() for side in part.partition(":"))
        match = HEADS.fullmatch(named if colon else part)
        if colon and not match:
            raise _unreadable(part, text, layers)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if match and last < first and (colon or heads):
            raise _refusal(text, f'there is no "{shown(part)}"; the smaller head comes first.', layers)
        if match and not colon and heads:
            heads |= {*range(first, last + 1)}
            continue
        if number:
            yield item, heads
        item, heads = name, {*range(first, last + 1)} if colon else set()
    yield item, heads


def whole_layers(text: str, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """`layers`, which `text` names. Raises ValueError where it names heads."""
    if headed := [layer for layer in layers if layer.heads]:
        why = f"{headed[0]} is a part of an attention, and here blocks are taken whole. Leave the heads out."
        raise ValueError(f'layers "{shown(text)}": {why}')
    return layers


def with_auto(text: str, auto: str) -> str:
    """`text` in which "auto" stands for what `auto` selects."""
    return ",".join(auto if item.strip().lower() == "auto" else item for item in text.split(","))


def _by_depth(item: str, text: str, layers: Sequence[Layer], first: float, last: float) -> Sequence[Layer]:
    """The layers whose middle lies from `first` to `last` of the network's depth; at least the one at `first`."""
    if last < first:
        raise _refusal(text, f'there is no "{shown(item)}"; the smaller depth comes first.', layers)
    at = [layer for place, layer in enumerate(layers) if first <= (place + 0.5) / len(layers) <= last]
    return at or [layers[min(int(first * len(layers)), len(layers) - 1)]]


def _refusal(text: str, why: str, layers: Sequence[Layer]) -> ValueError:
    return ValueError(f'layers "{shown(text)}": {why} This model has {print_layers(layers)}.')


def _unreadable(item: str, text: str, layers: Sequence[Layer]) -> ValueError:
    such = ", ".join(dict.fromkeys((layers[0].block, layers[-1].block)))
    return _refusal(
        text, f'cannot read "{shown(item)}". Write auto, all, or a comma-separated list such as {such}.', layers
    )


def _range(item: str, text: str, stacks: list[str], layers: Sequence[Layer]) -> list[Layer]:
    match = ITEM.fullmatch(item)
    if not match or not (match["stack"] or match["first"]) or (match["part"] and not match["stack"]):
        raise _unreadable(item, text, layers)
    stack, first, last, again = match["stack"], match["first"], match["last"], match["again"]
    if stack is None and len(stacks) > 1:
        why = f'"{shown(item)}" could be in {" or ".join(stacks)}; put the stack before it.'
        raise _refusal(text, why, layers)
    stack = stacks[0] if stack is None else SHORTHAND.get(stack, stack)
    wanted = [layer for layer in layers if layer.stack == stack]
    if first is not None:
        first, last = int(first), int(last or first)
        wanted = [layer for layer in wanted if first <= layer.index <= last]
        if not {first, last} <= {layer.index for layer in wanted}:
            wanted = []  # a range that reaches beyond the layers is a mistake
    if match["part"] is not None:
        part, last_part = int(match["part"]), int(match["last_part"] or match["part"])
        wanted = [layer for layer in wanted if part <= layer.part <= last_part and first == last]
        if not {part, last_part} <= {layer.part for layer in wanted}:
            wanted = []
    if not wanted or (again is not None and SHORTHAND.get(again, again) != stack):
        raise _refusal(text, f'there is no "{shown(item)}".', layers)
    return wanted


def print_layers(layers: Iterable[Layer]) -> str:
    """`layers` in the language above, runs joined: "input.1-2, input.4, middle"."""
    parts = groupby(layers, key=lambda layer: bool(layer.heads))
    return ", ".join(", ".join(map(str, some)) if headed else _print_whole(some) for headed, some in parts)


def _print_whole(layers: Iterable[Layer]) -> str:
    blocks = [(block, [*members]) for block, members in groupby(layers, key=lambda layer: (layer.stack, layer.index))]

    def run_of(numbered) -> tuple:  # whole blocks that follow one another are one run, a block in part is one by itself
        place, ((stack, index), members) = numbered
        whole = len(members) == members[0].parts
        return stack, whole, index - place if whole else place

    texts = []
    for (stack, whole, _), run in groupby(enumerate(blocks), key=run_of):
        run = [block for _, block in run]
        (_, index), members = run[0]
        if not whole:
            texts += [f"{stack}.{index}.{parts}" for parts in _runs([layer.part for layer in members])]
        elif stack == "middle":
            texts.append(stack)
        else:
            texts += [f"{stack}.{numbers}" for numbers in _runs([index for (_, index), _ in run])]
    return ", ".join(texts)


def _runs(numbers: Sequence[int]) -> list[str]:
    """[1, 2, 4] → ["1-2", "4"]"""
    runs = []
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        first, *rest = [number for _, number in run]
        runs.append(f"{first}-{rest[-1]}" if rest else f"{first}")
    return runs

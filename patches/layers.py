"""Which layers a perturbation touches: one small language for every network.

    auto                what the architecture recommends
    all                 every layer
    middle              a UNet's middle block
    input.4  output.3-5 a UNet's encoder and decoder blocks
    double.7-9          a transformer's blocks by stack: double, single
    7, 8, 9             a transformer with one stack only
    d4, m0, u3-5        what other packs write: down, middle, up  (i, o: input, output)

Selections are joined by commas. `parse` and `print_layers` are inverse to one another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

SHORTHAND = {"d": "input", "i": "input", "m": "middle", "u": "output", "o": "output"}
ITEM = re.compile(r"(?:(?P<stack>[a-z]+)\s*\.?)?\s*(?:(?P<first>\d+)(?:\s*-\s*(?P<last>\d+))?)?")


@dataclass(frozen=True, order=True)
class Layer:
    """One block of the network: its stack and its place in it, as the host numbers them."""

    stack: str
    index: int

    def __str__(self) -> str:
        return self.stack if self.stack == "middle" else f"{self.stack}.{self.index}"


def parse(text: str, layers: Sequence[Layer], auto: Iterable[Layer]) -> tuple[Layer, ...]:
    """The layers that `text` selects among `layers`, in the network's order.

    Raises ValueError, naming the part of the text that cannot be read or found, and the layers that there are.
    """
    stacks = list(dict.fromkeys(layer.stack for layer in layers))
    chosen: set[Layer] = set()
    for item in text.lower().split(","):
        item = item.strip()
        if item == "auto":
            chosen.update(auto)
        elif item == "all":
            chosen.update(layers)
        else:
            chosen.update(_range(item, text, stacks, layers))
    return tuple(layer for layer in layers if layer in chosen)


def _range(item: str, text: str, stacks: list[str], layers: Sequence[Layer]) -> list[Layer]:
    has = f"This model has {print_layers(layers)}."
    match = ITEM.fullmatch(item)
    if not match or not (match["stack"] or match["first"]):
        raise ValueError(
            f'layers "{text}": cannot read "{item}". Write auto, all, or a comma-separated list such as '
            f"{', '.join(dict.fromkeys((str(layers[0]), str(layers[-1]))))}. {has}"
        )
    stack, first, last = match["stack"], match["first"], match["last"]
    if stack is None and len(stacks) > 1:
        raise ValueError(f'layers "{text}": "{item}" could be in {" or ".join(stacks)}; put the stack before it. {has}')
    stack = stacks[0] if stack is None else SHORTHAND.get(stack, stack)
    if first is None:
        wanted = [layer for layer in layers if layer.stack == stack]
    else:
        first, last = int(first), int(last or first)
        wanted = [layer for layer in layers if layer.stack == stack and first <= layer.index <= last]
        if not {Layer(stack, first), Layer(stack, last)} <= set(wanted):
            wanted = []  # a range that reaches beyond the layers is a mistake
    if not wanted:
        raise ValueError(f'layers "{text}": there is no "{item}". {has}')
    return wanted


def print_layers(layers: Iterable[Layer]) -> str:
    """`layers` in the language above, runs joined: "input.1-2, input.4, middle"."""
    parts = []
    for stack, members in groupby(layers, key=lambda layer: layer.stack):
        if stack == "middle":
            parts.append("middle")
            continue
        indices = [layer.index for layer in members]
        for _, run in groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0]):
            run = [index for _, index in run]
            parts.append(f"{stack}.{run[0]}" + (f"-{run[-1]}" if len(run) > 1 else ""))
    return ", ".join(parts)

"""A network as a user sees it: its blocks in their order, how many tokens each attends over, and which are chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby

from .layers import Layer, print_layers


@dataclass(frozen=True)
class LayerMap:
    """The layers of a network for a picture of one size, and which of them are chosen."""

    architecture: str
    size: tuple[int, int]  # width and height of the picture
    grids: dict[tuple[str, int], tuple[int, ...]]  # block → tokens per axis, in the network's order
    layers: tuple[Layer, ...]  # all with a self-attention that can be perturbed
    chosen: tuple[Layer, ...]
    auto: tuple[Layer, ...]
    source: str  # where auto comes from

    def parts(self, block: tuple[str, int]) -> list[Layer]:
        """The layers of one block."""
        return [layer for layer in self.layers if (layer.stack, layer.index) == block]

    def drawing(self) -> dict:
        """What a page draws, of texts and numbers alone: a line for each run of blocks of one stack and grid, each block
        with its layers as they can be written."""
        blocks = [block for block in self.grids if self.parts(block)]
        lines = [
            {
                "stack": stack,
                "grid": list(grid),
                "blocks": [
                    {"name": parts[0].block, "index": parts[0].index, "layers": [*map(str, parts)]}
                    for parts in map(self.parts, run)
                ],
            }
            for (stack, grid), run in groupby(blocks, key=lambda block: (block[0], self.grids[block]))
        ]
        return {
            "architecture": self.architecture,
            "size": list(self.size),
            "lines": lines,
            "chosen": [*map(str, self.chosen)],
            "auto": [*map(str, self.auto)],
        }

    def text(self) -> str:
        """The list: one line for each run of blocks with equal grids that are chosen alike."""
        width, height = self.size
        lines = [
            f"{self.architecture}, {width} x {height}",
            f"chosen: {print_layers(self.chosen)}",
            f"auto: {print_layers(self.auto)} ({self.source})",
            "",
        ]
        blocks = [block for block in self.grids if self.parts(block)]

        def alike(block: tuple[str, int]) -> tuple:
            parts = self.parts(block)
            return block[0], self.grids[block], len(parts), [part.part for part in parts if part in self.chosen]

        for (_, grid, count, chosen), run in groupby(blocks, key=alike):
            layers = [layer for block in run for layer in self.parts(block)]
            tokens = f"{' x '.join(map(str, grid))} = {math.prod(grid)} tokens"
            each = f", {count} transformers" if count > 1 else ""
            mark = " < chosen" if len(chosen) == count else f" < chosen: {len(chosen)} of them" if chosen else ""
            lines.append(f"{print_layers(layers)}: {tokens}{each}{mark}")
        return "\n".join(lines)

"""A network as probes have found it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..architectures import Architecture
from ..layers import Layer
from ..layout import Layout


@dataclass(frozen=True)
class Found:
    """Where the picture is in the attentions of one layer."""

    layer: Layer
    block: str  # its name in the network
    attention: str  # the module in the block whose attention is replaced; "": the block itself
    options_free: bool  # whether the host gives that attention no transformer_options of its own
    grid: tuple[int, ...]
    calls: Mapping[tuple[int, int], int | None]  # (queries, keys) → where the picture begins; None: it is not in there
    across: int  # tokens that are not the picture, after each line of the grid
    prefix: int  # keys that have no queries, before all others


@dataclass(frozen=True)
class Discovered(Architecture):
    """A network without a row in the table, as probes have found it. It holds for the inputs that they were made with."""

    found: Mapping[Layer, Found] = field(default_factory=dict)

    def layers(self, network) -> tuple[Layer, ...]:
        """The layers whose picture is proven, in the order in which they run."""
        return tuple(self.found)

    def tokens(self, network, shape, conds, layer: Layer | None = None) -> tuple[int, ...]:
        """The grid of the picture, in `layer` or in the first one."""
        return (self.found[layer] if layer else next(iter(self.found.values()))).grid

    def grids(self, network, spatial: tuple[int, ...]) -> dict[tuple[str, int], tuple[int, ...]]:
        """Tokens per axis of every block, for a latent of the size that was probed, whatever `spatial` says."""
        return {(layer.stack, layer.index): found.grid for layer, found in self.found.items()}

    def blocks(self, network) -> dict[Layer, Any]:
        """The module of each layer."""
        return {layer: network.get_submodule(found.block) for layer, found in self.found.items()}

    def block(self, network, layer: Layer):
        """The module that is `layer`."""
        return network.get_submodule(self.found[layer].block)

    def attention(self, block, layer: Layer):
        """The module in whose calls the self-attention of `layer`, which is `block`, happens."""
        return block.get_submodule(self.found[layer].attention)

    def layout(self, network, shape, conds, layer: Layer) -> Layout:
        """Where the picture's tokens are in the self-attention of `layer`."""
        found = self.found[layer]
        return Layout(found.grid, self.is_set, known=found.calls, across=found.across, prefix=bool(found.prefix))

"""What differs between the host's networks, one row each: which layers there are, where their self-attention is caught,
which of its tokens are the picture, and which layers PAG and its kin perturb when nobody chooses.

A network without a row is refused by name. To add one: a row here, and a row in the tests that run every row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .layers import Layer, parse


@dataclass(frozen=True)
class Architecture:
    name: str  # as people know it
    network: str  # the end of the module path and the class name of the host's network
    layers: Callable[[Any], tuple[Layer, ...]]  # the network's layers with a self-attention that can be perturbed
    site: str  # where it is caught: "attn1" (the UNet's replace patch) or "block" (the block's replace patch, by stack)
    auto: str  # the layers whose attention is perturbed by default …
    source: str  # … and where that comes from
    time: str  # the module that embeds the timestep
    auto_skip: str = ""  # the layers that are skipped by default; none where a layer cannot be skipped

    def select(self, text: str, network: Any, skip: bool = False) -> tuple[Layer, ...]:
        """The layers of `network` that `text` names, to be perturbed or skipped. Raises ValueError as `parse` does."""
        layers = self.layers(network)
        if not layers:
            raise ValueError(f"this {self.name} has no self-attention that can be perturbed")
        if skip and not self.auto_skip:
            raise ValueError(f"no layer of a {self.name} can be skipped; this works on transformers. PAG works on both")
        return parse(text, layers, auto=_auto(self.auto_skip if skip else self.auto, layers))


def _auto(text: str, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The layers that `text` names, or in a network that is too small to have them the one in the middle."""
    try:
        return parse(text, layers, auto=())
    except ValueError:
        return (layers[len(layers) // 2],)


def grid(network: Any, spatial: tuple[int, ...]) -> tuple[int, ...]:
    """Tokens per axis of a transformer's latent; height and width are cut into patches, frames are not."""
    *frames, height, width = spatial
    return (*frames, -(-height // network.patch_size), -(-width // network.patch_size))


def _unet_layers(network) -> tuple[Layer, ...]:
    stacks = {"input": network.input_blocks, "middle": [network.middle_block], "output": network.output_blocks}
    return tuple(
        Layer(stack, index)
        for stack, blocks in stacks.items()
        for index, block in enumerate(blocks)
        if any(hasattr(module, "transformer_blocks") and not hasattr(module, "time_stack") for module in block or ())
    )


def _stacks(**attributes: str) -> Callable[[Any], tuple[Layer, ...]]:
    """Layers of a transformer, from the names of its lists of blocks."""

    def layers(network) -> tuple[Layer, ...]:
        return tuple(
            Layer(stack, index) for stack, name in attributes.items() for index in range(len(getattr(network, name)))
        )

    return layers


ARCHITECTURES = (
    Architecture(
        name="UNet (SD 1.x, SD 2.x, SDXL)",
        network="openaimodel.UNetModel",
        layers=_unet_layers,
        site="attn1",
        auto="middle",
        source="PAG's official Stable Diffusion demo (SD 1.5: m0; SDXL: all ten transformers of the middle block)",
        time="time_embed",
    ),
    Architecture(
        name="SD3, SD3.5",
        network="mmdit.OpenAISignatureMMDITWrapper",
        layers=_stacks(double="joint_blocks"),
        site="block",
        auto="double.1",
        source="diffusers' SD3 PAG pipeline (blocks.1); not tried on real weights",
        time="t_embedder",
        auto_skip="double.7-9",  # Stability's own for SD3.5 medium, and the host's Skip Layer nodes
    ),
    Architecture(
        name="Flux",
        network="flux.model.Flux",
        layers=_stacks(double="double_blocks", single="single_blocks"),
        site="block",
        auto="single.0",
        source="a peer's default (Fluxtapoz: single 0); not tried on real weights",
        time="time_in",
        auto_skip="double.7-9, single.7-9",  # the host's Skip Layer node, whose defaults are the same for all models
    ),
)


def find(network) -> Architecture | None:
    """The row of a network of the host's, or None."""
    names = [f"{cls.__module__}.{cls.__qualname__}" for cls in type(network).__mro__]
    return next((row for row in ARCHITECTURES if any(name.endswith(f".{row.network}") for name in names)), None)

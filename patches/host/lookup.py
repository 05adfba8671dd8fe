"""A MODEL's row in the table of architectures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .. import architectures
from ..architectures import Architecture
from ..layer_map import LayerMap
from ..layers import Layer
from .others import is_anothers, names, whose


def select_layers(model, text: str, skip: bool = False) -> tuple[Layer, ...]:
    """The layers of MODEL that `text` names, to be perturbed or skipped. Raises ValueError, with what there is, for a
    network without a row in the table, a text that cannot be read, or a layer that the network does not have."""
    return architecture_of(model).select(text, network_of(model), skip)


def architecture_of(model) -> Architecture:
    """The row of MODEL's network in the table. Raises ValueError where it has none."""
    network = network_of(model)
    architecture = architectures.find(network)
    if architecture is None:
        known = "; ".join(row.name for row in architectures.ARCHITECTURES)
        raise ValueError(
            f"{type(model.model).__name__} ({type(network).__name__}) is not supported: "
            f"{architectures.why_not(network)}. Supported: {known}"
        )
    return architecture


def architecture_in(network) -> Architecture:
    """The row of a network in a call. Raises RuntimeError where it has none: another node has put it in place."""
    architecture = architectures.find(network)
    if architecture is None:
        raise RuntimeError(
            f"the network is now {whose(network)}, which is not supported: {architectures.why_not(network)}"
        )
    return architecture


def layer_map(model, text: str, width: int, height: int, skip: bool = False) -> LayerMap:
    """MODEL's network for a picture of this size, with the layers that `text` names. Raises ValueError as select_layers
    does."""
    architecture, network = architecture_of(model), network_of(model)
    form = model.get_model_object("latent_format")
    side = getattr(form, "spacial_downscale_ratio", 8)  # so spelled by the host
    spatial = (1, -(-height // side), -(-width // side))[-getattr(form, "latent_dimensions", 2) :]
    return LayerMap(
        architecture.name,
        (width, height),
        architecture.grids(network, spatial),
        architecture.layers(network),
        architecture.select(text, network, skip),
        architecture.select("auto", network, skip),
        architecture.skip_source if skip else architecture.source,
    )


def check_time(model) -> None:
    """Raise ValueError where nothing is known of how MODEL's network is told the time."""
    architecture = architecture_of(model)
    if not architecture.time:
        raise ValueError(f"the time embedding of {architecture.name} cannot be perturbed. PAG and SEG work here")


def network_of(model):
    """MODEL's diffusion network."""
    return uncompiled(model.get_model_object("diffusion_model"))


def uncompiled(network):
    """The network inside one that torch.compile has wrapped; else the network."""
    return getattr(network, "_orig_mod", network)


def is_compiled(network) -> bool:
    """Whether a network, or any module in it, is compiled."""
    return any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in network.modules())


@dataclass(frozen=True)
class Blocks:
    """The blocks of a network as they are when a run begins. Another pack may hide them in a module of its own for the
    length of a call, as caches do."""

    network: object = None
    of: dict[Layer, Any] = field(default_factory=dict)

    @classmethod
    def at_the_begin(cls, network) -> Blocks:
        """The blocks of `network` as they are now."""
        return cls(network, _blocks(network))

    def now(self, network) -> dict[Layer, Any]:
        """Those of `network`, which may be another; a compiled one stands for itself."""
        now = _blocks(network)
        if network is not self.network:
            return now
        return now | {layer: was for layer, was in self.of.items() if uncompiled(now.get(layer)) is not was}


def _blocks(network) -> dict[Layer, Any]:
    architecture = architectures.find(network)
    return architecture.blocks(network) if architecture else {}


def check_layers(title: str, layers: Iterable[Layer], network, blocks: dict[Layer, Any]) -> None:
    """Raise RuntimeError where the network is no longer the one that the layers were chosen in."""
    if not blocks.keys() >= set(layers):
        kinds = names(type(block) for block in blocks.values() if block is not None and is_anothers(type(block)))
        has = f", whose blocks are {kinds}" if kinds else ""
        raise RuntimeError(
            f"{title}: the network is now {whose(network)}{has}, without the layers {', '.join(map(str, layers))} that "
            f"were chosen. Another node has put it in place after this one. Put this node after it, or take it out."
        )

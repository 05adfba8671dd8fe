"""A MODEL's row in the table of architectures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch.nn import ModuleDict, ModuleList

from .. import architectures
from ..architectures import Architecture
from ..layers import Layer, Unread, parse, print_layers, whole_layers
from .others import is_anothers, names, whose


def select_layers(model, text: str, skip: bool = False) -> tuple[Layer, ...]:
    """The layers of MODEL that `text` names, to be perturbed or skipped. Raises ValueError, with what there is, for a
    network without a row in the table, a text that cannot be read, or a layer that the network does not have."""
    return architecture_of(model).select(text, network_of(model), skip)


def choose_layers(model, text: str, skip: bool = False, enter: bool = False) -> tuple[Layer, ...]:
    """As select_layers; but of a network that is to be probed the text is read when it first runs. With `enter` also raises
    ValueError for a layer of which it is not known what enters it, and for heads."""
    if is_to_be_probed(network_of(model)):
        return (Unread(text, 0, skip=skip),)
    layers, architecture = select_layers(model, text, skip), architecture_of(model)
    if not enter:
        return layers
    if unknown := [layer for layer in layers if not architecture.knows_what_enters(layer)]:
        raise ValueError(
            f"what enters {print_layers(unknown)} of {architecture.name} is not known, so TPG and SSG do not work there. "
            f"PAG and SEG work here"
        )
    return whole_layers(text, layers)


def choose_prompt_layers(model, text: str) -> tuple[Layer, ...]:
    """The layers of MODEL that `text` names, for a negative prompt to act in their attention; "auto" is all. Raises
    ValueError as select_layers does, and where no negative prompt can act."""
    network = network_of(model)
    if is_to_be_probed(network):
        raise ValueError(
            f"{type(network).__name__} is a network that this pack has no row for, and probes do not tell which of its "
            f"tokens are text. CFG works here"
        )
    architecture = architecture_of(model)
    layers = architecture.prompt_layers(network)
    if not layers:
        why = architecture.no_prompt or "it attends to a picture and not to a text"
        raise ValueError(f"no negative prompt can act in the attention of {architecture.name}: {why}. CFG works here")
    return whole_layers(text, parse(text, layers, auto=layers))


def is_to_be_probed(network) -> bool:
    """Whether a network has no row in the table and may still be one whose layers probes can find: it is no refused one,
    and it has lists of modules."""
    if architectures.find(network) is not None or architectures.refused(network):
        return False
    return any(isinstance(module, ModuleList | ModuleDict) for module in network.modules())


def read(layers: tuple[Layer, ...], architecture: Architecture, network) -> tuple[Layer, ...]:
    """`layers`, with those that each Unread stands for in its place. Raises ValueError as select_layers does."""
    found = (
        architecture.select(layer.stack, network, layer.skip) if isinstance(layer, Unread) else (layer,)
        for layer in layers
    )
    return tuple(layer for some in found for layer in some)


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


def check_time(model, embedding: bool = True) -> None:
    """Raise ValueError where MODEL's network is not supported; with `embedding` also where it is not known which module
    embeds the time. Of a network that is to be probed that is found out when it first runs."""
    if not is_to_be_probed(network_of(model)):
        architecture = architecture_of(model)
        if embedding:
            time_of(architecture)


def time_of(architecture: Architecture) -> str:
    """The module that embeds the time. Raises ValueError where it is not known."""
    if not architecture.time:
        raise ValueError(f"the time embedding of {architecture.name} cannot be perturbed. PAG and SEG work here")
    return architecture.time


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
        architecture = architectures.find(network)
        return cls(network, architecture.blocks(network) if architecture else {})

    def now(self, network, architecture: Architecture) -> dict[Layer, Any]:
        """Those of `network`, which may be another; a compiled one stands for itself."""
        now = architecture.blocks(network)
        if network is not self.network:
            return now
        return now | {layer: was for layer, was in self.of.items() if uncompiled(now.get(layer)) is not was}


def check_layers(title: str, layers: Iterable[Layer], network, blocks: dict[Layer, Any]) -> None:
    """Raise RuntimeError where the network is no longer the one that the layers were chosen in."""
    if not blocks.keys() >= {layer.whole for layer in layers}:
        kinds = names(type(block) for block in blocks.values() if block is not None and is_anothers(type(block)))
        has = f", whose blocks are {kinds}" if kinds else ""
        raise RuntimeError(
            f"{title}: the network is now {whose(network)}{has}, without the layers {', '.join(map(str, layers))} that "
            f"were chosen. Another node has put it in place after this one. Put this node after it, or take it out."
        )

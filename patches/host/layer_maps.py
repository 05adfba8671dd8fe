"""The Layer Map of a MODEL."""

from __future__ import annotations

from ..architectures import Architecture
from ..layer_map import LayerMap
from ..layers import Layer
from .lookup import architecture_of, is_to_be_probed, network_of
from .probe import last_discovered


def layer_map(model, text: str, width: int, height: int, skip: bool = False) -> LayerMap:
    """MODEL's network for a picture of this size, with the layers that `text` names. Raises ValueError as select_layers
    does."""
    network = network_of(model)
    architecture = _architecture(model, network)
    form = model.get_model_object("latent_format")
    side = getattr(form, "spacial_downscale_ratio", 8)  # so spelled by the host
    spatial = (1, -(-height // side), -(-width // side))[-getattr(form, "latent_dimensions", 2) :]
    return LayerMap(
        architecture.name,
        (width, height),
        architecture.grids(network, spatial),
        architecture.layers(network),
        tuple(layer.whole for layer in architecture.select(text, network, skip)),
        architecture.select("auto", network, skip),
        architecture.skip_source if skip else architecture.source,
    )


def known_layers(model, text: str, skip: bool = False) -> tuple[Layer, ...]:
    """The layers of MODEL that `text` names, also of a network that was found by probes. Raises ValueError as layer_map."""
    network = network_of(model)
    return _architecture(model, network).select(text, network, skip)


def _architecture(model, network) -> Architecture:
    if not is_to_be_probed(network):
        return architecture_of(model)
    found = last_discovered(network)
    if found is None:
        raise ValueError(
            f"{type(network).__name__} is a network that this pack has no row for. Its layers are found when it first runs "
            f"with a guidance such as PAG at layers auto: do that once, then queue this node again"
        )
    return found

"""Which tokens of an unknown network are the picture, proven by probes of the network itself.

While a probe runs, every attention of the network gives zeros. Tokens then do not mix: a token changes if its own cells
of the latent change, and in no other case, however deep in the network it is. A probe is a batch of two rows. The first
row stays the same, and something of the second is changed. What changes in the queries and keys of each attention is
compared with what a grid of tokens foretells.

Nothing is guessed. Where one of the steps below cannot be proven, NotProven says which.

    calls           the same attentions run in every probe, in one row as in two
    rows            the first row never changes: a row of the network depends on no other
    self-attention  an attention whose queries, keys and values change for the same tokens, as many as a grid has
    grid            random cells of the latent change exactly the tokens that one grid foretells, and no other grid does
    place           those tokens lie together, or line by line at one distance
    layers          each such attention lies in a list of modules: the stack, whose blocks are the layers
    attention       each lies in a module to which the pack can give an attention of its own
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..layers import Layer
from .architecture import Discovered, Found
from .grids import Grids, place
from .modules import layers_of, stacks_of, time_module
from .probes import Change, NotProven, Probe, Proof, Run, SeenAttention, pictures_between

__all__ = ["Change", "Discovered", "Found", "NotProven", "Probe", "Run", "SeenAttention", "discover"]
__all__ += ["pictures_at_a_glance"]


def discover(network: torch.nn.Module, spatial: tuple[int, ...], run: Run, tokens_first: bool = False) -> Discovered:
    """What is proven of `network` by probes that `run` makes, for a latent with the axes `spatial`. `tokens_first`: it is
    [tokens, channels], a set. Raises NotProven."""
    proof = Proof(run)
    everywhere = proof.probe(Change(cells=torch.ones(spatial, dtype=torch.bool)))
    pictures = pictures_between(proof.base.attentions, everywhere.attentions, 1)
    grids = Grids(spatial, {len(tokens) for tokens, _ in pictures.values()})
    for cells in grids.masks():
        probe = proof.probe(Change(cells=cells))
        grids.keep(cells, {at: proof.changed(probe, at, tokens) for at, (tokens, _) in pictures.items()})
        if grids.are_sure:
            break
    on = {at: grids.of(at) for at in pictures}
    places = {at: place(tokens, on[at]) for at, (tokens, _) in pictures.items()}
    is_set = tokens_first or (len(spatial) == 1 and proof.is_set(pictures))
    later, other = proof.probe(Change(time=True)), proof.probe(Change(text=True))
    found = layers_of(network, proof.base, pictures, places, on)
    probes = (proof.base, everywhere, later, other)
    stacks = tuple(stacks_of(found, probes, can_skip=proof.base.kept_state or proof.forgets()))
    longest = max(stacks, key=lambda stack: sum(layer.stack == stack.name for layer in found))
    sides = " x ".join(map(str, spatial))
    source = f"half way of the longest stack; layers and tokens as probes have found them with a latent of {sides}"
    auto = str(_half_way(layer for layer in found if layer.stack == longest.name))
    return Discovered(
        name=f"{type(network).__name__} (discovered)",
        network=f"{type(network).__module__}.{type(network).__qualname__}",
        stacks=stacks,
        auto=auto,
        auto_skip=auto,
        source=source,
        skip_source=source,
        time=time_module(network, probes),
        is_set=is_set,
        found=found,
    )


def _half_way(layers: Iterable[Layer]) -> Layer:
    layers = [*layers]
    return layers[len(layers) // 2]


def pictures_at_a_glance(
    network: torch.nn.Module, spatial: tuple[int, ...], run: Run, tokens_first: bool = False
) -> list[tuple[SeenAttention, list[int]]]:
    """The attentions over the picture with the numbers of its tokens, from one probe in which the rows have different
    latents. It says less than `discover` and costs one forward. Raises NotProven."""
    seen = run(Change(cells=torch.ones(spatial, dtype=torch.bool))).attentions
    return [(seen[at], tokens) for at, (tokens, _) in pictures_between(seen, seen, 0).items()]

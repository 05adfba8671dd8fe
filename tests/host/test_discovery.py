"""Networks without a row in the table: what probes prove of them, and that guidance then acts as by a written row."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from pack.patches import (
    BlurredQuery,
    IdentityAttention,
    MaskedAttention,
    SkippedLayer,
    architectures,
)
from pack.patches.base import BlockPerturbation
from pack.patches.discovery import Discovered, NotProven, discover
from pack.patches.host import choose_layers, probe
from pack.patches.host.forwards import Streams, takes_options
from pack.patches.layout import Layout
from pack.tests.host.test_architectures import forward
from pack.tests.host.zoo import SPECIMENS

GOLDEN = Path(__file__).parents[1] / "golden/discovery.json"
UNCHECKED = {  # specimens of whose picture one probe says too little
    "Kandinsky 5", "LTX-Video with keyframes", "LTX-Video with weaker keyframes", "LTX-2.3 with weaker keyframes", "SDXL",
    "Stable Diffusion 1",
}  # fmt: skip
PROVEN = 76  # of the specimens; those of a host that lacks some of them are fewer


def probed(specimen, model) -> Discovered:
    """What probes prove of a specimen's network, whatever the table says."""
    x, conds = specimen.inputs([1])
    sigma = float(model.model.model_sampling.percent_to_sigma(0.4))
    inputs = {"x": x, "t": torch.full((1,), sigma), **conds}
    return probe._watched(discover, model.model, model.model.diffusion_model, inputs, {})


def hide(monkeypatch) -> None:
    """From here on the table is empty."""
    monkeypatch.setattr(architectures, "find", lambda network: None)


# ------------------------------------------------------------------------------------------------ leave each row out


def test_what_is_proven_of_a_network_is_what_its_row_says(specimen, model):
    """Picture tokens, grid, layers, where their attention is, and what a block gives back. Nothing may be wrong: where
    a network cannot be proven, a golden file says at which step."""
    network, row = model.model.diffusion_model, architectures.find(model.model.diffusion_model)
    refused = json.loads(GOLDEN.read_text("utf-8"))
    if specimen.name in refused:
        with pytest.raises(NotProven) as error:
            probed(specimen, model)
        assert f"{error.value.step}: {error.value}" == refused[specimen.name]
        return
    found = probed(specimen, model)
    by_block = {found.block(network, layer): layer for layer in found.found}
    of_table = {row.block(network, layer): layer for layer in row.layers(network)}
    assert by_block.keys() >= of_table.keys()
    for block, layer in of_table.items():
        one, stack = found.found[by_block[block]], row.stack(layer)
        grid = specimen.grid_of(str(layer))
        assert found.is_set == row.is_set == (grid is None)
        assert grid is None or without_ones(one.grid) == without_ones(grid)
        for at, label in enumerate(specimen.calls):
            if label == str(layer):
                tokens = tokens_of(specimen.image_of(label, at))
                width = one.grid[-1]
                assert tokens[0] in one.calls.values() and len(tokens) == math.prod(one.grid)
                assert one.across == (tokens[width] - tokens[0] - width if len(tokens) > width else 0)
        assert attends_alike(found.attention(block, by_block[block]), row.attention(block, layer))
        assert one.options_free != takes_options(row.attention(block, layer))
        streams = found.stack(by_block[block]).streams
        assert found.stack(by_block[block]).rows == stack.rows or not streams
        assert Streams.of(block, streams).places == Streams.of(block, stack.streams).places
        assert all(name.isdigit() for name in streams) or streams == stack.streams
    others = {layer.stack for block, layer in by_block.items() if block not in of_table}
    assert others <= {"noise_refiner", "vace_blocks"}  # the table leaves them out on purpose


def tokens_of(image) -> list[int]:
    return [*range(image.start, image.stop)] if isinstance(image, slice) else image


def without_ones(grid: tuple[int, ...]) -> list[int]:
    return [side for side in grid if side != 1]


def attends_alike(found, written) -> bool:
    """Whether one of two modules is in the other; where a block has one attention, both serve."""
    return found in written.modules() or written in found.modules()


def test_at_least_so_many_are_proven():
    """The golden file names all specimens that are not."""
    refused = json.loads(GOLDEN.read_text("utf-8"))
    assert refused.keys() <= {specimen.name for specimen in SPECIMENS}
    assert len(SPECIMENS) - len(refused) >= PROVEN


ATTENDING = [IdentityAttention, lambda layers: BlurredQuery(layers, 1.5), MaskedAttention]


def test_guidance_by_a_discovered_row_is_bit_equal_to_that_by_the_written_one(specimen, model, monkeypatch):
    """All perturbations, in all layers that the table has."""
    if specimen.name in json.loads(GOLDEN.read_text("utf-8")):
        return
    network, row = model.model.diffusion_model, architectures.find(model.model.diffusion_model)
    written = row.layers(network)
    made = [make(written) for make in ATTENDING] if specimen.grid else [IdentityAttention(written)]
    made += [SkippedLayer(written[:1])] if specimen.blocks else []
    expected = [forward(specimen, model, one) for one in made]
    torch.manual_seed(0)
    model = specimen.build()  # it may remember the calls so far
    network = model.model.diffusion_model
    found = probed(specimen, model)
    names = {found.block(network, layer): layer for layer in found.found}
    chosen = {layer: names[row.block(network, layer)] for layer in written}
    hide(monkeypatch)
    for one, want in zip(made, expected, strict=True):
        text = ", ".join(str(chosen[layer]) for layer in one.layers)
        unread = choose_layers(model, text, skip=isinstance(one, BlockPerturbation))
        assert torch.equal(forward(specimen, model, dataclasses.replace(one, layers=unread)), want)


def test_the_check_passes_for_every_row_and_changes_nothing(specimen, monkeypatch):
    """The result of the first call of a network, with the check, is that of its twin, without."""
    held, check = [], Layout.check

    def counted(self, image, tokens, keys):
        held.append((tokens, keys) in self.seen)
        check(self, image, tokens, keys)

    monkeypatch.setattr(Layout, "check", counted)
    torch.manual_seed(0)
    model = specimen.build()  # of which no probe has shown anything yet
    chosen = IdentityAttention(choose_layers(model, "all"))
    first_call = forward(specimen, model, chosen)
    assert any(held) == (specimen.name not in UNCHECKED)
    held.clear()
    forward(specimen, model, chosen)
    torch.manual_seed(0)
    twin = specimen.build()
    probe.mark_checked(twin.model.diffusion_model)
    assert torch.equal(forward(specimen, twin, chosen), first_call) and not any(held)

"""Networks without a row in the table: what probes prove of them, and that guidance then acts as by a written row."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import math
import sys
import weakref
from pathlib import Path

import comfy.model_management
import comfy.sample
import pytest
import torch
from pack.nodes.helpers import GuidanceOptions
from pack.patches import (
    BlurredQuery,
    IdentityAttention,
    MaskedAttention,
    SkippedLayer,
    architectures,
)
from pack.patches.architectures import Architecture, Stack, patched
from pack.patches.base import BlockPerturbation
from pack.patches.discovery import Discovered, NotProven, discover
from pack.patches.host import choose_layers, layer_map, probe
from pack.patches.host.degraded import with_dropout
from pack.patches.host.forwards import Streams, takes_options
from pack.patches.host.others import whose
from pack.patches.layout import Layout, first, last
from pack.tests.host import invented
from pack.tests.host.harness import TERM_NODES, close, noise_like, prompts
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


# ---------------------------------------------------------------------------------------- networks that exist nowhere


def written(network: str, auto: str, *stacks: Stack) -> Architecture:
    """The row that somebody would have written."""
    at = {"auto": auto, "auto_skip": auto, "time": "time_embedder"}
    return Architecture(network, f"invented.{network}", stacks, **at, grid=lambda _, spatial: patched(2, spatial))


def stack(name: str, image, *streams: str) -> Stack:
    return Stack(name, name, "attn", image=image, streams=streams, prefix_sharing=False)


ROWS = {
    "text last": written("TextLast", "layers.2", stack("layers", first, "x")),
    "references": written("References", "joint_blocks.1", stack("joint_blocks", last, "text", "image")),
    "two stacks": written(
        "TwoStacks", "second_blocks.1", stack("first_blocks", first, "x"), stack("second_blocks", first, "x")
    ),
}


def with_row(name: str, monkeypatch) -> None:
    rows = (*architectures.ARCHITECTURES, ROWS[name])
    monkeypatch.setattr(architectures, "ARCHITECTURES", rows)


def values_of(node: str) -> dict:
    """The defaults of a node's inputs, acting everywhere."""
    defaults = {
        given.id: given.default for given in TERM_NODES[node].inputs if getattr(given, "default", None) is not None
    }
    return {**defaults, "start_percent": 0.0, "end_percent": 1.0}


PAG, TSG = values_of("BeyondCFGPAG"), values_of("BeyondCFGTSG")


def guided(name: str, node: str, **values) -> torch.Tensor:
    """A picture of KSampler's by an invented network, with the term of a node, and cfg 1."""
    known = values_of(node)
    values = {key: value for key, value in values.items() if key in known}
    model = TERM_NODES[node].execute(model=invented.model(name), **{**known, **values})[0]
    return sample_of(model, name)


def sample_of(model, name: str) -> torch.Tensor:
    latent = torch.zeros(invented.LATENT[name])
    noise = noise_like(latent)
    conds = prompts("unet")
    return comfy.sample.sample(model, noise, 3, 1.0, "euler", "normal", *conds, latent, disable_pbar=True, seed=4)


NODES = [
    "BeyondCFGPAG",
    "BeyondCFGSEG",
    "BeyondCFGMaskedAttention",
    "BeyondCFGSAG",
    "BeyondCFGTSG",
    "BeyondCFGSkipLayer",
    "BeyondCFGS2",
    "BeyondCFGERG",
]


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("name", invented.NETWORKS)
def test_a_network_that_exists_nowhere_is_guided(name, node):
    plain = sample_of(invented.model(name), name)
    for layers in ("auto", "all"):
        assert close(guided(name, node, layers=layers), plain) > 1e-3


@pytest.mark.parametrize("node", ["BeyondCFGTPG", "BeyondCFGSSG"])
def test_what_enters_a_block_is_not_shown_by_probes_so_that_is_refused(node):
    title = TERM_NODES[node].about.title
    with pytest.raises(RuntimeError, match=f"{title}: what enters .* is not known"):
        guided("text last", node)


@pytest.mark.parametrize("layers", ["auto", "all", "0.4-0.8"])
@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("name", ROWS)
def test_a_network_that_exists_nowhere_is_guided_as_by_a_row(name, node, layers, monkeypatch):
    discovered = guided(name, node, layers=layers)
    with_row(name, monkeypatch)
    assert torch.equal(guided(name, node, layers=layers), discovered)


def test_layers_are_named_by_the_networks_own_lists():
    written = guided("two stacks", "BeyondCFGPAG", layers="second_blocks.0-1, first_blocks.1")
    assert torch.equal(guided("two stacks", "BeyondCFGPAG", layers="0.2-0.7"), written)
    with pytest.raises(ValueError) as error:
        guided("two stacks", "BeyondCFGPAG", layers="second_blocks.3")
    assert str(error.value) == (
        'PAG: layers "second_blocks.3": there is no "second_blocks.3". '
        "This model has first_blocks.0-1, second_blocks.0-2."
    )


def test_layer_map_shows_what_was_found_after_the_first_run():
    model = invented.model("two stacks")
    with pytest.raises(ValueError, match="Its layers are found when it first runs with a guidance"):
        layer_map(model, "auto", 64, 64)
    sample_of(TERM_NODES["BeyondCFGPAG"].execute(model=model, **PAG)[0], "two stacks")
    assert layer_map(model, "first_blocks", 64, 64).text() == (
        "TwoStacks (discovered), 64 x 64\n"
        "chosen: first_blocks.0-1\n"
        "auto: second_blocks.1 (half way of the longest stack; layers and tokens as probes have found them with a latent "
        "of 3 x 8 x 12)\n\n"
        "first_blocks.0-1: 3 x 4 x 6 = 72 tokens < chosen\n"
        "second_blocks.0-2: 3 x 4 x 6 = 72 tokens"
    )


def test_the_log_says_once_what_was_found(caplog):
    caplog.set_level("INFO", "beyond_cfg")
    model = TERM_NODES["BeyondCFGPAG"].execute(model=invented.model("two stacks"), **PAG)[0]
    for _ in range(2):
        sample_of(model, "two stacks")
    said = [record.getMessage() for record in caplog.records if "Probes" in record.getMessage()]
    assert said == [
        "Beyond CFG: TwoStacks has no row in the table of networks. Probes have found the layers first_blocks.0-1, "
        "second_blocks.0-2, over 3 x 4 x 6 tokens of the picture"
    ]


def test_a_later_run_makes_no_probe(monkeypatch):
    made = count_probes(monkeypatch)
    model = TERM_NODES["BeyondCFGPAG"].execute(model=invented.model("text last"), **PAG)[0]
    first_run = sample_of(model, "text last")
    assert len(made) == 7  # as it is, alone, all cells, twice some cells, the time, the text
    assert torch.equal(sample_of(model, "text last"), first_run)
    assert len(made) == 7


def count_probes(monkeypatch) -> list:
    made, call = [], probe.Prober.__call__

    def counted(self, change):
        made.append(change)
        return call(self, change)

    monkeypatch.setattr(probe.Prober, "__call__", counted)
    return made


def test_a_degraded_model_needs_a_row():
    with pytest.raises(
        ValueError, match=r"Model \(TextLast\) is not supported: nothing here knows where its self-attention"
    ):
        with_dropout(invented.model("text last"), 0.1, "auto", 0)


# ---------------------------------------------------------------------------------------------- what cannot be proven


class MixedRows(invented.TextLast):
    """Every row gets a part of the mean of all."""

    def run(self, image, text, *rest):
        return super().run(image + 0.1 * image.mean(0, keepdim=True), text, *rest)


class RowByRow(invented.TextLast):
    def forward(self, x, timesteps, context, **kwargs):
        rows = zip(x.split(1), timesteps.split(1), context.split(1), strict=True)
        return torch.cat([super(RowByRow, self).forward(*row, **kwargs) for row in rows])


class Columns(invented.TextLast):
    """Its tokens go down the picture, and not along its lines."""

    def patches(self, x):
        return super().patches(x.mT)

    def picture(self, tokens, like):
        return super().picture(tokens, like.mT).mT


class Convolved(invented.TextLast):
    """What a convolution makes of a cell reaches the tokens around it."""

    def patches(self, x):
        return super().patches(x + 0.5 * x.roll(1, -1) + 0.5 * x.roll(-1, -1))


class Infinite(invented.TextLast):
    def run(self, image, *rest):
        return super().run(image / 0.0, *rest)


class NoAttention(invented.TextLast):
    def run(self, image, *_):
        return image


class NoList(invented.TextLast):
    def build(self, operations):
        self.one, self.others = invented.Block(operations), torch.nn.ModuleList([torch.nn.Identity()])
        self.layers = (self.one,)


class Scattered(invented.TextLast):
    """A token of the text lies among those of the picture."""

    def run(self, image, text, *rest):
        mixed = super().run(torch.cat([image[:, :7], text[:, :1], image[:, 7:]], 1), text[:, 1:], *rest)
        return torch.cat([mixed[:, :7], mixed[:, 8:]], 1)


class Windows(invented.TextLast):
    """Attention within halves of the picture, which stand one after the other in the batch."""

    def run(self, image, text, time, options, _):
        x = image.unflatten(1, (2, -1)).flatten(0, 1)
        for block in self.layers:
            x = block(x, time.repeat_interleave(2, 0), transformer_options=options)
        return x.unflatten(0, (-1, 2)).flatten(1, 2)


UNPROVEN = {
    MixedRows: ("rows", "in layers.0.attn a row changes with another, or from one time to the next"),
    RowByRow: ("calls", "two rows make 8 attentions, and one makes 4"),
    Columns: ("grid", "no grid foretells which tokens change when cells of the latent do"),
    Convolved: ("grid", "no grid foretells which tokens change when cells of the latent do"),
    Infinite: ("calls", "its tokens are not finite where attention gives zeros"),
    NoAttention: ("calls", "it calls none of the host's attention functions"),
    NoList: ("layers", "the attention in one.attn lies in no list of modules"),
    Scattered: ("place", "the tokens of the picture lie neither together nor line by line"),
    Windows: ("rows", "the picture is in 4 rows where there are 2, in layers.0.attn"),
}


@pytest.mark.parametrize("network", UNPROVEN, ids=lambda network: network.__name__)
def test_a_network_that_cannot_be_proven_is_refused_by_the_step_that_failed(network):
    step, why = UNPROVEN[network]
    plain = invented.model("text last", network)
    sample_of(plain, "text last")  # the host loads it
    model = TERM_NODES["BeyondCFGPAG"].execute(model=plain, **PAG)[0]
    before = fingerprint(model.model.diffusion_model)
    for _ in range(2):  # the second time from memory
        with pytest.raises(RuntimeError) as error:
            sample_of(model, "text last")
        assert fingerprint(model.model.diffusion_model) == before
        assert str(error.value) == (
            f"PAG: {whose(network)} is a network that this pack has no row for, and probes of it do not prove where its "
            f"picture is. What failed: {step}, since {why}. Another pack may have replaced a part of the network. Take the "
            "guidance out, or use one that needs no layers, such as Autoguidance or CFG."
        )


class Caching(invented.TextLast):
    """It remembers the text that it has embedded, and counts its calls; neither matters to what it gives."""

    def build(self, operations):
        super().build(operations)
        self.seen, self.count = {"texts": []}, 0
        self.register_buffer("last", torch.zeros(3))

    def run(self, image, text, *rest):
        self.count += 1
        self.seen["texts"].append(text)
        self.last += image.flatten()[:3]
        self.more = text
        return super().run(image, text, *rest)


@pytest.mark.parametrize("network", [None, MixedRows, NoAttention])
def test_what_probes_have_shown_does_not_keep_a_network_alive(network):
    model = invented.model("text last", network)
    with contextlib.suppress(NotProven):
        probed_network(model, "text last")
    alive = weakref.ref(model.model.diffusion_model)
    del model
    gc.collect()
    assert alive() is None


def test_what_a_network_remembers_is_put_back():
    model = invented.model("text last", Caching)
    network = model.model.diffusion_model
    network.count, network.last = 3, torch.arange(3.0)
    network.seen["texts"].append("kept")
    probed_network(model, "text last")
    assert (network.count, network.seen, network.last.tolist()) == (3, {"texts": ["kept"]}, [0, 1, 2])
    assert not hasattr(network, "more")


def probed_network(model, name: str) -> Discovered:
    x = torch.randn(invented.LATENT[name], generator=torch.Generator().manual_seed(1))
    inputs = {"x": x, "t": torch.ones(1), "c_crossattn": prompts("unet")[0][0][0]}
    options = {"cond_or_uncond": [0], "uuids": ["a"], "patches": {"attn1_patch": [None]}, "sigmas": torch.ones(1)}
    given = [(inputs, {**inputs}), (options, {**options}), (options["patches"], {**options["patches"]})]
    try:
        return probe.discovered(model.model, model.model.diffusion_model, inputs, options)
    finally:
        assert all(now.keys() == was.keys() and all(now[key] is was[key] for key in was) for now, was in given)


def fingerprint(network) -> list:
    """All that a probe touches: attributes, hooks, the host's attention functions, random numbers."""
    found: list = []
    for name, module in network.named_modules():
        found.append((name, sorted(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks)))
    for home, module in list(sys.modules.items()):
        if home.startswith(("comfy", invented.__name__)):
            found += [(home, name, vars(module).get(name)) for name in probe.FUNCTIONS]
    return found


@pytest.mark.parametrize("failing", range(7))
def test_a_probe_that_fails_leaves_nothing_behind(failing, monkeypatch):
    """The first, second … of the probes is interrupted in its third attention."""
    model = invented.model("text last")
    before, made, attention = fingerprint(model.model.diffusion_model), count_probes(monkeypatch), probe.Watch.attention

    def interrupted(self, *args, **kwargs):
        if len(made) == failing + 1 and len(self.probe.attentions) == 2:
            raise comfy.model_management.InterruptProcessingException
        return attention(self, *args, **kwargs)

    monkeypatch.setattr(probe.Watch, "attention", interrupted)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        probed_network(model, "text last")
    assert len(made) == failing + 1 and fingerprint(model.model.diffusion_model) == before
    monkeypatch.setattr(probe.Watch, "attention", attention)
    assert probed_network(model, "text last").found  # and is made again


# -------------------------------------------------------------------------------------------- the table, held against it


def test_a_row_that_is_wrong_about_the_picture_is_an_error_that_names_both(monkeypatch):
    wrong = dataclasses.replace(
        ROWS["text last"], stacks=(dataclasses.replace(ROWS["text last"].stacks[0], image=last),)
    )
    monkeypatch.setattr(architectures, "ARCHITECTURES", (*architectures.ARCHITECTURES, wrong))
    model = TERM_NODES["BeyondCFGPAG"].execute(model=invented.model("text last"), **PAG)[0]
    for _ in range(2):
        with pytest.raises(RuntimeError) as error:
            sample_of(model, "text last")
        assert str(error.value).startswith(
            "TextLast layers.2: its picture should be 60 tokens from 20 on, but a probe of the network has seen 60 tokens "
            "from 0 to 59 follow the latent."
        )
    believed = GuidanceOptions.execute(model=model, sharing="auto", check="off")[0]
    assert torch.isfinite(sample_of(believed, "text last")).all()


def test_the_table_is_checked_once_for_each_network_by_one_probe(monkeypatch):
    made = count_probes(monkeypatch)
    with_row("text last", monkeypatch)
    model = TERM_NODES["BeyondCFGPAG"].execute(model=invented.model("text last"), **PAG)[0]
    sample_of(model, "text last")
    sample_of(model, "text last")
    assert len(made) == 1
    plain = invented.model("text last")
    sample_of(plain, "text last")  # nothing acts in it
    sample_of(TERM_NODES["BeyondCFGTSG"].execute(model=plain, **TSG)[0], "text last")  # nor in its attention
    assert len(made) == 1


def test_a_check_for_which_there_is_no_memory_is_left_out(monkeypatch):
    with_row("text last", monkeypatch)
    plain = sample_of(TERM_NODES["BeyondCFGPAG"].execute(model=invented.model("text last"), **PAG)[0], "text last")
    made = count_probes(monkeypatch)

    def full(*_args, **_kwargs):
        raise comfy.model_management.OOM_EXCEPTION

    monkeypatch.setattr(probe.Watch, "attention", full)
    model = TERM_NODES["BeyondCFGPAG"].execute(model=invented.model("text last"), **PAG)[0]
    assert torch.equal(sample_of(model, "text last"), plain) and len(made) == 1


def test_the_check_passes_for_every_row_and_changes_nothing(specimen, model, monkeypatch):
    """The result of the first call of a network, with the check, is that of its twin, without."""
    held, check = [], Layout.check

    def counted(self, image, tokens, keys):
        held.append((tokens, keys) in self.seen)
        check(self, image, tokens, keys)

    monkeypatch.setattr(Layout, "check", counted)
    chosen = IdentityAttention(choose_layers(model, "all"))
    first_call = forward(specimen, model, chosen)
    assert any(held) == (specimen.name not in UNCHECKED)
    held.clear()
    forward(specimen, model, chosen)
    torch.manual_seed(0)
    twin = specimen.build()
    probe.mark_checked(twin.model.diffusion_model)
    assert torch.equal(forward(specimen, twin, chosen), first_call) and not any(held)


def test_a_probe_draws_no_random_numbers_and_changes_no_input():
    model = invented.model("text last")
    x = torch.randn(invented.LATENT["text last"])
    inputs = {"x": x, "t": torch.ones(1), "c_crossattn": prompts("unet")[0][0][0]}
    before, state = {key: value.clone() for key, value in inputs.items()}, torch.random.get_rng_state()
    probe.discovered(model.model, model.model.diffusion_model, inputs, {})
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(inputs[key], value) for key, value in before.items())

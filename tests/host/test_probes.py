"""What a probe of a network may do: it proves or names the step that fails, leaves nothing behind, and checks the table."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import sys
import weakref

import comfy.model_management
import comfy.sample
import pytest
import torch
from pack.nodes.helpers import GuidanceOptions
from pack.patches import (
    architectures,
)
from pack.patches.discovery import Discovered, NotProven
from pack.patches.host import probe
from pack.patches.host.others import whose
from pack.patches.layout import last
from pack.tests.host import invented
from pack.tests.host.discovering import PAG, ROWS, TSG, count_probes, sample_of, with_row
from pack.tests.host.harness import TERM_NODES, prompts

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


def test_a_probe_draws_no_random_numbers_and_changes_no_input():
    model = invented.model("text last")
    x = torch.randn(invented.LATENT["text last"])
    inputs = {"x": x, "t": torch.ones(1), "c_crossattn": prompts("unet")[0][0][0]}
    before, state = {key: value.clone() for key, value in inputs.items()}, torch.random.get_rng_state()
    probe.discovered(model.model, model.model.diffusion_model, inputs, {})
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(inputs[key], value) for key, value in before.items())

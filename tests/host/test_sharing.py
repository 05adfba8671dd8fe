"""Rows that are equal so far are computed once, which changes what is computed and not what comes out.

Shared, batched (the same rows with sharing off) and separate (each row in a call of its own) are held against one
another, to a few times what the size of a batch does to rounding by itself, measured in the same test.
"""

import logging
import random
from dataclasses import replace

import comfy.controlnet
import comfy.ldm.modules.attention
import comfy.samplers
import node_helpers
import pytest
import torch
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from pack.guiders import host
from pack.guiders.perturbation import PerturbationGuidance
from pack.guiders.schedule import Schedule
from pack.guiders.self_attention import SelfAttentionGuidance
from pack.patches import (
    AttentionTemperature,
    BlurredQuery,
    IdentityAttention,
    MaskedAttention,
    NoisyTimeEmbedding,
    RandomSkippedLayer,
    SkippedLayer,
)
from pack.patches.attention_sums import AttentionSums
from pack.patches.base import Moment
from pack.patches.host import Plan, PrefixSharing, Proofs, architecture_of, planned, select_layers
from pack.tests.host import networks
from pack.tests.host.harness import Counter, close, network, pag, prompts, sample
from pack.tests.host.test_with_others import REGIONAL, Control, patch, regional
from pack.tests.host.zoo.specimen import has
from torch.utils.flop_counter import FlopCounterMode

WHOLE = {  # the networks whose rows are computed whole, and why
    "PixArt alpha": "the text of all rows is one sequence",
    "PixArt sigma": "the text of all rows is one sequence",
    "Stable Cascade C": "its blocks are attentions alone",
    "Stable Cascade B": "its blocks are attentions alone",
    "HiDream O1": "its blocks hand keys on to later steps",
    "HiDream O1, reference": "its blocks hand keys on to later steps",
    "Krea 2, reference of time 0": "the rows of its times are twice as many",
    "Z-Image Omni": "the rows of its times are twice as many",
    "Z-Image, reference": "the rows of its times are twice as many",
    "LTX-Video with weaker keyframes": "its mask is an object",
    "LTX-2": "its times are objects",
    "LTX-2 without sound": "its times are objects",
    "LTX-2.3 with weaker keyframes": "its times are objects",
    "Cosmos 1": "its rows are not the first axis",
    "Cosmos 1 I2V": "its rows are not the first axis",
}
if has("ldm.ernie.model.apply_rotary_emb"):  # a host of before they were one matrix
    WHOLE["Ernie-Image"] = "its cosines and sines come before its rows"
FLOOR = 1e-6  # of float32, where a test's own is 0 by chance


def predict(specimen, model, copies, shares, batch, sharing):
    """(the network's prediction, what is observed) for shares of `batch` rows; shares of one number are copies."""
    x, conds = specimen.inputs([copy * 100 + row for copy in copies for row in range(batch)])
    options, seen = {"cond_or_uncond": [0] * len(copies), "uuids": [*range(len(copies))]}, []
    perturbations = {share for share in shares if share}
    plan = Plan(shares, Proofs(perturbations), Moment(5, 2, 0.7), lambda *found: seen.append(found), copies, sharing)
    options = planned(options, plan) if perturbations else options
    sigma = float(model.model.model_sampling.percent_to_sigma(0.4))
    with torch.no_grad():
        out = model.model.apply_model(x, torch.full((len(x),), sigma), transformer_options=options, **conds)
    return out, seen


@pytest.mark.parametrize("batch", [1, 2])
def test_shared_is_batched_wherever_rows_part(specimen, model, batch):
    most = 0
    for layer in select_layers(model, "all"):
        for copies in ((1, 1), (2, 1, 1)):
            shares = (None,) * (len(copies) - 1) + (IdentityAttention((layer,)),)
            sharing = PrefixSharing()
            shared, _ = predict(specimen, model, copies, shares, batch, sharing)
            batched, _ = predict(specimen, model, copies, shares, batch, PrefixSharing(on=False))
            assert close(shared, batched) < 2e-5 and not sharing.refused
            most = max(most, *sharing.saved, 0)
    assert (most == 0) == (specimen.name in WHOLE)


def drawn(rng: random.Random, model) -> tuple[tuple, tuple]:
    """Shares of a batch and what they are copies of: branches of one or two conditionings, in any order."""
    layers = select_layers(model, "all")
    stacks = architecture_of(model).stacks
    can_skip = stacks and all(stack.streams for stack in stacks)
    kinds = [IdentityAttention, lambda chosen: BlurredQuery(chosen, -1.0), MaskedAttention, AttentionTemperature]
    kinds += [lambda chosen: IdentityAttention(tuple(replace(layer, heads=(rng.randrange(2),)) for layer in chosen))]
    kinds += [SkippedLayer, lambda chosen: RandomSkippedLayer(chosen, 0.5)] if can_skip else []
    kinds += [lambda chosen: NoisyTimeEmbedding()] if architecture_of(model).time else []

    def some() -> tuple:
        return tuple(layer for layer in layers if rng.random() < 0.4) or (rng.choice(layers),)

    rows = [(None, 1), (None, 2)] + [
        (rng.choice(kinds)(some()), rng.choice((1, 1, 2))) for _ in range(rng.randint(1, 3))
    ]
    if rng.random() < 0.5:
        rows[0] = (AttentionSums((rng.choice(layers),)), 1)
    rng.shuffle(rows)
    return tuple(share for share, _ in rows), tuple(copy for _, copy in rows)


def test_any_branches_together_are_what_they_are_one_by_one(specimen, model):
    """Drawn with a fixed seed: perturbations of any kind and layers, in any order, and what SAG observes."""
    rng = random.Random(specimen.name)
    for batch in (1, 3):
        shares, copies = drawn(rng, model)
        shared, seen = predict(specimen, model, copies, shares, batch, PrefixSharing())
        batched, expected = predict(specimen, model, copies, shares, batch, PrefixSharing(on=False))
        alone = [
            predict(specimen, model, (copy,), (share,), batch, PrefixSharing())[0]
            for copy, share in zip(copies, shares, strict=True)
        ]
        floor = max(close(batched, torch.cat(alone)), FLOOR)
        assert close(shared, batched) < 4 * floor and floor < 1e-4
        assert len(seen) == len(expected)
        for (share, _, sums, grid), (whose, _, wanted, same) in zip(seen, expected, strict=True):
            assert (share, grid) == (whose, same) and close(sums, wanted) < 1e-4


# ----------------------------------------------------------------------------------------------------------- sampling


def composed(model, kind, scale=2.0):
    """CFG with PAG, SEG, Skip Layer where it can be, and SAG, each at a layer of its own."""
    layers = select_layers(model, "all")
    perturbations = [IdentityAttention(layers[-2:]), BlurredQuery(layers[-1:], -1.0)]
    perturbations += [SkippedLayer(select_layers(model, "all", skip=True)[1:2])] if kind in ("sd3", "flux") else []
    for perturbation in perturbations:
        model = host.add_term(
            model, host.Term(PerturbationGuidance(scale, perturbation), Schedule(), perturbation.about.name)
        )
    return model


def shared_and_whole(model, kind="unet", **kwargs):
    """(sampled with sharing, and without)"""
    return sample(model, kind, **kwargs), sample(host.with_options(model, "off"), kind, **kwargs)


def message(caplog) -> str:
    """What the log has been told of sharing since this was last asked."""
    (said,) = {r.getMessage() for r in caplog.records if "once" in r.getMessage() or "whole" in r.getMessage()}
    caplog.clear()
    return said


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("kind", ["unet", "sdxl", "sd3", "flux"])
def test_shared_is_batched_is_separate(kind, cfg, batch, caplog):
    caplog.set_level(logging.INFO)
    model = composed(network(kind), kind)
    apart = model.clone()  # with another pack's function wrapper every perturbed branch runs in a call of its own
    apart.set_model_unet_function_wrapper(lambda f, args: f(args["input"], args["timestep"], **args["c"]))
    settings = {"kind": kind, "cfg": cfg, "latent": networks.latent(kind, batch), "steps": 3}
    separate = sample(apart, **settings)
    caplog.clear()
    shared, whole = shared_and_whole(model, **settings)
    assert "PAG" in (said := message(caplog)) and "SEG" in said
    assert close(shared, whole) < 4 * max(close(whole, separate), FLOOR) < 1e-4


def test_the_order_of_perturbed_rows_and_a_term_that_comes_and_goes_change_nothing():
    model = composed(network("unet"), "unet")
    model = pag(model, 1.0, "input.4", 0.3, 0.6)
    shared, whole = shared_and_whole(model, steps=6)
    assert close(shared, whole) < 1e-5


@pytest.mark.parametrize("case", REGIONAL)
def test_conditionings_with_areas_masks_and_times(case):
    shared, whole = shared_and_whole(composed(network("unet"), "unet"), conds=regional(case))
    assert close(shared, whole) < 2e-6


def test_a_control_between_shared_modules(caplog):
    caplog.set_level(logging.INFO)
    values = {"control": Control(), "control_apply_to_uncond": False}
    conds = [node_helpers.conditioning_set_values(networks.conditioning("unet", seed), values) for seed in (1, 2)]
    shared, whole = shared_and_whole(composed(network("unet"), "unet"), conds=conds)
    assert "once" in message(caplog) and close(shared, whole) < 2e-6


def test_sag_sees_the_same(caplog):
    caplog.set_level(logging.INFO)
    model = network("unet")
    rule = SelfAttentionGuidance(1.0, 2.0, "attention", AttentionSums(select_layers(model, "middle")))
    model = composed(host.add_term(model, host.Term(rule, Schedule(), "SAG")), "unet")
    for cfg in (1.0, 4.0):
        shared, whole = shared_and_whole(model, cfg=cfg)
        assert "once" in message(caplog) and close(shared, whole) < 2e-6


def ip_adapter(model):
    def attend(q, k, v, extra):
        roles = extra["cond_or_uncond"]
        size = q.shape[0] // len(roles)
        shift = torch.cat([torch.full((size, 1, 1), (0.3, -0.2)[role], dtype=q.dtype) for role in roles])
        return comfy.ldm.modules.attention.optimized_attention(q, k, v, extra["n_heads"]) + shift

    model = model.clone()
    model.set_model_attn2_replace(attend, "input", 4)
    return model


def random_patch(model):
    """Each row another, as no sharing could give it back."""
    model = model.clone()
    generator = torch.Generator()

    def patch(h, options):
        return h + 0.1 * torch.randn(h.shape, generator=generator.manual_seed(options["block"][1]), dtype=h.dtype)

    model.set_model_input_block_patch(patch)
    return model


def sage(model):
    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = lambda f, *a, **k: f(*a, **k)
    return model


def hooked(model):
    model.model.diffusion_model.input_blocks[1][0].register_forward_hook(lambda module, args, out: out * 1.01)
    return model


def replaced(model):
    model = model.clone()

    class Block(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) * 1.01

    block = model.get_model_object("diffusion_model.input_blocks.3.0")
    model.add_object_patch("diffusion_model.input_blocks.3.0", Block(block))
    return model


IN_THE_WAY = {
    "IPAdapter": (ip_adapter, "has put patches_replace into"),
    "FreeU": (
        lambda m: patch(FreeU_V2, m, 1.3, 1.4, 0.9, 0.2),
        "FreeU_V2 of comfy_extras.nodes_freelunch has put patches",
    ),
    "a random patch": (random_patch, "patches"),
    "an attention": (sage, "attention"),
    "a hook": (hooked, "ResBlock"),
    "a module": (replaced, "is not the host's own"),
}


@pytest.mark.parametrize("what", IN_THE_WAY)
def test_where_something_of_others_is_in_the_way_rows_are_computed_whole(what, caplog):
    add, why = IN_THE_WAY[what]
    caplog.set_level(logging.INFO)
    shared, whole = shared_and_whole(composed(add(network("unet")), "unet"))
    assert why in (said := message(caplog)) and "whole" in said
    assert torch.equal(shared, whole)


def test_a_wrapper_that_makes_rows_differ_is_seen(caplog):
    caplog.set_level(logging.INFO)

    def noisy(executor, x, *args, **kwargs):
        return executor(x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), *args, **kwargs)

    model = composed(network("unet"), "unet")
    model.add_wrapper_with_key("apply_model", "noisy", noisy)
    shared, whole = shared_and_whole(model)
    assert "rows of the network's x differ" in message(caplog) and torch.equal(shared, whole)


def test_a_cache_and_sharing_act_together():
    model = EasyCacheNode.execute(composed(network("unet"), "unet", 0.1), 0.6, 0.1, 0.95, False)[0]
    shared, whole = shared_and_whole(model, steps=20)
    assert close(shared, whole) < 1e-5


@pytest.mark.parametrize("room", [1, 2])
def test_where_memory_splits_the_batch_rows_share_with_those_that_are_there(room, monkeypatch):
    model = network("unet")
    counter = Counter(composed(model, "unet"))
    monkeypatch.setattr(type(model), "get_free_memory", lambda self, device: room * 150.0)
    monkeypatch.setattr(type(model.model), "memory_required", lambda self, shape, **_: shape[0] * 99.0)
    shared, whole = shared_and_whole(counter.model)
    assert max(counter.rows) == room and close(shared, whole) < 2e-6


# --------------------------------------------------------------------------------------------------------------- cost


def flops(model, kind="unet", **kwargs) -> int:
    with FlopCounterMode(display=False) as counter:
        sample(model, kind, steps=1, **kwargs)
    return counter.get_total_flops()


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_the_hosts_pag_costs_what_ours_does_without_sharing(cfg):
    model = network("unet")
    theirs = flops(patch(PerturbedAttentionGuidance, model, 3.0), cfg=cfg)
    ours = pag(model)
    assert flops(host.with_options(ours, "off"), cfg=cfg) == theirs > flops(ours, cfg=cfg)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_three_guidances_and_cfg_add_no_forward_and_share_what_they_can(kind):
    """Each of the 3 or 5 blocks before a row's own first one is left out for it."""
    model = network(kind)
    counter = Counter(composed(model, kind))
    shared = flops(host.with_options(counter.model, check="off"), kind)
    assert counter.rows == [5]
    assert shared < flops(host.with_options(counter.model, sharing="off", check="off"), kind)


def test_the_log_says_once_what_was_shared(caplog):
    caplog.set_level(logging.INFO)
    sample(pag(network("unet"), layers="middle"))
    said = [record.getMessage() for record in caplog.records if "Beyond CFG" in record.getMessage()]
    assert said == ["Beyond CFG: of 26 modules, computed once with the row that is perturbed: PAG 11"]


class Residuals(torch.nn.Module):
    """A ControlNet's network: residuals for the middle, of x, text, hint and time."""

    dtype = torch.float64

    def __init__(self):
        super().__init__()
        self.rows = []

    def forward(self, x, hint, timesteps, context, **more):
        self.rows.append(len(x))
        own = (x.mean((1, 2, 3)) + context.mean((1, 2)) + hint.mean((1, 2, 3)) + timesteps / 1000)[:, None, None, None]
        return {"middle": [own.repeat(1, 64, 8, 8)], "output": []}


@pytest.mark.parametrize(("cfg", "rows"), [(4.0, 2), (1.0, 1)])
@pytest.mark.parametrize("samples", [1, 3])
def test_a_controlnets_residuals_are_computed_once_for_copies(cfg, rows, samples):
    plain, latent, found = network("unet"), networks.latent("unet", samples), []
    for sharing in ("auto", "off"):
        residuals = Residuals()
        control = comfy.controlnet.ControlNet(residuals, load_device=torch.device("cpu"))
        control = control.set_cond_hint(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
        conds = [node_helpers.conditioning_set_values(prompt, {"control": control}) for prompt in prompts("unet")]
        out = sample(host.with_options(pag(plain), sharing), cfg=cfg, conds=conds, latent=latent)
        found.append((residuals.rows, out))
    (few, shared), (whole, batched) = found
    assert set(few) == {rows * samples} and set(whole) == {(rows + 1) * samples}
    assert close(shared, batched) < 2e-6
    assert close(sample(pag(plain), cfg=cfg, latent=latent), batched) > 1e-4  # it acts

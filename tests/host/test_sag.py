"""SAG against the host's where the host is right, and against its own equation where it is not."""

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_sag import SelfAttentionGuidance as HostsOwn
from pack.guiders import host
from pack.guiders.schedule import Schedule
from pack.guiders.self_attention import MASKS, SelfAttentionGuidance, blur
from pack.patches.attention_sums import AttentionSums
from pack.patches.host import select_layers
from pack.patches.host.log import log_once
from pack.tests.host import networks
from pack.tests.host.harness import Counter, close, network, noise_like, prompts, sample, sigmas_of
from pack.tests.host.test_with_others import REGIONAL, regional, windowed


def sag(model, scale=0.75, blur_sigma=2.0, mask="attention", layers="auto"):
    rule = SelfAttentionGuidance(scale, blur_sigma, mask, AttentionSums(select_layers(model, layers)))
    return host.add_term(model, host.Term(rule, Schedule(), "SAG"))


def host_sag(model, scale, blur_sigma):
    node = HostsOwn
    return (node.execute if hasattr(node, "execute") else node().patch)(model, scale, blur_sigma)[0]


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 24)])
def test_sag_is_the_hosts_on_an_epsilon_or_v_network(prediction, height, width):
    model, latent = network("unet", prediction=prediction), networks.latent("unet", 1, height, width)
    theirs, ours = Counter(host_sag(model, 0.75, 2.0)), Counter(sag(model))
    expected = sample(theirs.model, latent=latent)
    assert close(sample(ours.model, latent=latent), expected) < 1e-4
    assert close(sample(model, latent=latent), expected) > 1e-3
    assert ours.rows == theirs.rows == [2, 1] * 4


def test_without_cfg_it_is_two_rows_where_the_hosts_is_three():
    model = network("unet")
    theirs, ours = Counter(host_sag(model, 0.75, 2.0)), Counter(sag(model))
    sample(theirs.model, cfg=1.0)
    assert sample(ours.model, cfg=1.0).isfinite().all()
    assert (sum(theirs.rows), sum(ours.rows)) == (12, 8)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_on_a_flow_model_it_follows_its_equation(kind):
    """D' = D + s (x̃ − D(x + (1 − σ)(x̃ − D₋))), with the mask of everything so that x̃ = blur(D₋)."""
    model, latent, scale = network(kind), networks.latent(kind), 0.75
    sigmas = sigmas_of(model, 4)[1:3]
    sigma, x = sigmas[0], noise_like(latent) * sigmas[0]
    seen = {}

    def remember(args):
        (negative,) = comfy.samplers.calc_cond_batch(
            args["model"], [args["uncond"]], args["input"], args["sigma"], args["model_options"]
        )
        soft = blur(negative, 2.0)
        there = args["input"] + (1 - sigma) * (soft - negative)
        (away,) = comfy.samplers.calc_cond_batch(
            args["model"], [args["uncond"]], there, args["sigma"], args["model_options"]
        )
        return seen.setdefault("denoised", args["denoised"] + scale * (soft - away))

    reference = model.clone()
    reference.set_model_sampler_post_cfg_function(remember)
    expected = sample(reference, kind, latent=latent, sigmas=sigmas)
    assert close(sample(sag(model, scale, mask="global"), kind, latent=latent, sigmas=sigmas), expected) < 1e-5
    assert close(sample(model, kind, latent=latent, sigmas=sigmas), expected) > 1e-3
    assert x.isfinite().all()


@pytest.mark.parametrize("kind", ["unet", "sd3", "flux"])
@pytest.mark.parametrize("mask", MASKS)
def test_every_mask_acts_on_every_network_and_size(kind, mask):
    model, latent = network(kind), networks.latent(kind, 2, 10, 14)
    got = sample(sag(model, mask=mask), kind, latent=latent, steps=2)
    assert got.isfinite().all() and close(got, sample(model, kind, latent=latent, steps=2)) > 1e-4


@pytest.mark.parametrize("case", REGIONAL)
def test_regional_conditionings_have_their_maps_pasted_together(case):
    model, conds = network("unet"), regional(case)
    alone = sample(model, conds=conds)
    for ordered in (conds, conds[::-1]):
        assert sample(sag(model), conds=ordered).isfinite().all()
    assert close(sample(sag(model), conds=regional(case)), alone) > 1e-4


def test_a_picture_does_not_depend_on_its_neighbours():
    model, latent = sag(network("unet")), networks.latent("unet", 3)
    together = sample(model, latent=latent, steps=2)
    assert close(sample(model, latent=latent[:1], steps=2), together[:1]) < 1e-6


@pytest.mark.parametrize("setting", [{"scale": 0.0}, {"blur_sigma": 0.0}])
def test_neutral_settings_cost_nothing(setting):
    model = network("unet")
    counter = Counter(sag(model, **setting))
    assert torch.equal(sample(counter.model), sample(model)) and counter.rows == [2] * 4


def test_the_map_of_attention_is_its_column_sums():
    """Mean 1 over the tokens, and nothing of the network's own result is changed."""
    model, seen = network("unet"), {}

    class Watched(AttentionSums):
        def observe(self, call):
            sums = super().observe(call)
            logits = call.q @ call.k.mT * call.scale
            seen["difference"] = (sums - logits.softmax(-1).mean(1).sum(1)).abs().max().item()
            return sums

    rule = SelfAttentionGuidance(1e-12, 2.0, "attention", Watched(select_layers(model, "middle")))
    watched = host.add_term(model, host.Term(rule, Schedule(), "SAG"))
    assert close(sample(watched), sample(model)) < 1e-6
    assert seen["difference"] < 1e-12


def test_two_terms_that_look_at_different_layers_are_refused():
    model = network("unet")
    with pytest.raises(ValueError, match="SAG and SAG: they look at different layers"):
        sample(sag(sag(model), layers="input.4"))


def wrapped(model):
    model.set_model_unet_function_wrapper(lambda f, args: f(args["input"], args["timestep"], **args["c"]))
    return model


@pytest.mark.parametrize("hide", [wrapped, windowed])
def test_where_the_attention_cannot_be_seen_it_says_so(hide, caplog):
    log_once.cache_clear()
    model = hide(sag(network("unet")))
    assert sample(model, conds=prompts("unet"), steps=2).isfinite().all()
    assert "SAG cannot see the attention here" in caplog.text

"""What the pack gives is what the host gives where both do the same thing, and costs no forward more."""

import comfy.model_patcher
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from pack.guiders import host
from pack.guiders.classifier_free import SamplerCFG
from pack.guiders.schedule import Schedule
from pack.tests.host import networks
from pack.tests.host.harness import Counter, close, guider_of, network, noise_like, pag, prompts, run, sample, sigmas_of

SHAPES = [(1, 16, 16), (3, 16, 16), (1, 16, 24), (3, 12, 18)]  # batch, height, width


def host_pag(model, scale):
    out = PerturbedAttentionGuidance
    return (out.execute(model, scale) if hasattr(out, "execute") else out().patch(model, scale))[0]


def cfg_interval(model, start, end):
    return host.add_term(model, host.Term(SamplerCFG(), Schedule(start, end), "CFG Interval"))


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_without_terms_our_guider_is_the_hosts(cfg):
    model, conds, latent = network("unet"), prompts("unet"), networks.latent("unet")
    ours = run(host.make_guider(model, *conds, cfg), latent, steps=20)
    assert torch.equal(ours, run(guider_of(model, *conds, cfg), latent, steps=20))


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("kind", ["unet", "sd3", "flux"])
def test_a_neutral_term_changes_no_bit_and_costs_no_row(kind, cfg):
    model = network(kind)
    alone, neutral = Counter(model), Counter(pag(model, scale=0.0))
    assert torch.equal(sample(neutral.model, kind, cfg), sample(alone.model, kind, cfg))
    assert neutral.forwards == alone.forwards


@pytest.mark.parametrize(("batch", "height", "width"), SHAPES)
@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("kind", ["unet", "sdxl"])
def test_pag_is_the_hosts_pag_on_a_unet(kind, cfg, batch, height, width):
    model = network(kind)
    latent = networks.latent(kind, batch, height, width)
    theirs = sample(host_pag(model, 3.0), kind, cfg, latent=latent)
    assert close(sample(pag(model, 3.0), kind, cfg, latent=latent), theirs) < 1e-5
    assert close(sample(model, kind, cfg, latent=latent), theirs) > 1e-2  # it acts


@pytest.mark.parametrize("kind", ["unet", "sd3", "flux"])
@pytest.mark.parametrize(("batch", "height", "width"), SHAPES)
def test_branches_in_one_batch_give_what_they_give_in_calls_of_their_own(kind, batch, height, width):
    model = pag(network(kind))
    latent = networks.latent(kind, batch, height, width)
    apart = model.clone()  # with another pack's function wrapper every perturbed branch runs in a call of its own
    apart.set_model_unet_function_wrapper(lambda f, args: f(args["input"], args["timestep"], **args["c"]))
    together, separate = Counter(model), Counter(apart)
    one = sample(together.model, kind, latent=latent)
    assert close(one, sample(separate.model, kind, latent=latent)) < 1e-5
    assert (together.rows, sorted(separate.rows)) == ([3] * 4, [1] * 4 + [2] * 4)


def test_the_guider_is_the_patch_under_ksampler_bit_for_bit():
    model, conds, latent = pag(network("unet")), prompts("unet"), networks.latent("unet")
    args = (noise_like(latent), 6, 4.0, "dpmpp_2m", "karras", *conds, latent)
    ksampler = comfy.sample.sample(model, *args, disable_pbar=True, seed=7)
    guider = host.make_guider(model, *conds, 4.0)
    sigmas = sigmas_of(model, 6, "karras")
    assert torch.equal(run(guider, latent, sampler="dpmpp_2m", sigmas=sigmas), ksampler)


@pytest.mark.parametrize("kind", ["unet", "sd3", "flux"])
def test_our_guidance_adds_rows_and_no_forward(kind):
    model = network(kind)
    rows = {}
    for name, patched, cfg in [
        ("cfg", model, 4.0),
        ("cfg + pag", pag(model), 4.0),
        ("pag", pag(model), 1.0),
        ("two pag on the same layers", pag(pag(model), scale=1.5), 4.0),
    ]:
        counter = Counter(patched)
        sample(counter.model, kind, cfg)
        rows[name] = counter.rows
    assert rows == {
        "cfg": [2] * 4,
        "cfg + pag": [3] * 4,
        "pag": [2] * 4,
        "two pag on the same layers": [3] * 4,  # equal branches are evaluated once
    }


def test_outside_its_interval_a_term_is_as_if_it_were_not_there():
    model = network("unet")
    sigmas = sigmas_of(model, 10)
    later = pag(model, start=0.5)
    counter = Counter(later)
    sample(counter.model, sigmas=sigmas)
    inside = [s for s in sigmas[:-1].tolist() if s <= model.get_model_object("model_sampling").percent_to_sigma(0.5)]
    assert counter.rows == [2] * (10 - len(inside)) + [3] * len(inside) and 3 <= len(inside) <= 7
    assert torch.equal(sample(later, sigmas=sigmas[:4]), sample(model, sigmas=sigmas[:4]))


def test_outside_the_cfg_interval_the_negative_is_not_evaluated():
    model = network("unet")
    counter = Counter(cfg_interval(model, 0.3, 0.6))
    sample(counter.model, steps=10)
    assert set(counter.rows) == {1, 2} and counter.rows[0] == counter.rows[-1] == 1
    assert torch.equal(sample(cfg_interval(model, 0.0, 1.0)), sample(model))
    nowhere = sample(cfg_interval(model, 0.0, 0.001), steps=4)  # the first step only
    assert not torch.equal(nowhere, sample(model)) and not torch.equal(nowhere, sample(model, cfg=1.0))


def test_two_cfg_intervals_act_where_both_do():
    model = network("unet")
    both = Counter(cfg_interval(cfg_interval(model, 0.0, 0.6), 0.3, 1.0))
    sample(both.model, steps=10)
    once = Counter(cfg_interval(model, 0.3, 0.6))
    sample(once.model, steps=10)
    assert both.rows == once.rows


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_pag_acts_on_transformers_where_the_hosts_node_silently_does_not(kind):
    model = network(kind)
    plain = sample(model, kind)
    assert close(sample(host_pag(model, 3.0), kind), plain) < 1e-5
    assert close(sample(pag(model, 3.0), kind), plain) > 1e-2


@pytest.mark.parametrize("kind", ["unet", "sd3", "flux"])
def test_the_guiders_own_predictions_are_untouched(kind):
    model = network(kind)
    seen = {}

    def predictions_of(model, name):
        model = model.clone()

        def remember(args):
            seen.setdefault(name, (args["cond_denoised"], args["uncond_denoised"]))
            return args["denoised"]

        model.set_model_sampler_post_cfg_function(remember)
        sample(model, kind, steps=1)

    predictions_of(model, "alone")
    predictions_of(pag(model, 3.0, "all"), "with pag")
    for alone, with_pag in zip(seen["alone"], seen["with pag"], strict=True):
        assert close(with_pag, alone) < 2e-6


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_pag_composes_with_cfg_as_the_papers_sum(prediction):
    """D = D₋ + cfg (D₊ − D₋) + s (D₊ − D_p): affine in s, for ε and v networks alike."""
    model = network("unet", prediction=prediction)
    at = {scale: sample(pag(model, scale), steps=1) for scale in (0.0, 1.0, 4.0)}
    assert close(at[0.0] + 4 * (at[1.0] - at[0.0]), at[4.0]) < 1e-5

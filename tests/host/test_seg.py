"""SEG and the masked attentions on the host's networks: neutral where they should be, for pictures of any shape."""

import pytest
import torch
from pack.guiders import host
from pack.guiders.perturbation import PerturbationGuidance
from pack.guiders.schedule import Schedule
from pack.patches import BlurredQuery, MaskedAttention
from pack.patches.host import select_layers
from pack.tests.host import networks
from pack.tests.host.harness import Counter, close, network, pag, sample

KINDS = ("unet", "sd3", "flux")
SHAPES = [(16, 24), (12, 18), (13, 19), (32, 16)]
on_kinds = pytest.mark.parametrize("kind", KINDS)
in_shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


def perturbed(model, method, *settings, scale=3.0, layers="auto"):
    rule = PerturbationGuidance(scale, method(select_layers(model, layers), *settings))
    return host.add_term(model, host.Term(rule, Schedule(), "test"))


def seg(model, *settings, **kwargs):
    return perturbed(model, BlurredQuery, *settings, **kwargs)


@on_kinds
@in_shapes
@pytest.mark.parametrize("layers", ["auto", "all"])
def test_without_blur_the_weak_prediction_is_the_positive_one(kind, shape, layers):
    model, latent = network(kind), networks.latent(kind, 1, *shape)
    out = sample(seg(model, 0.0, layers=layers), kind, latent=latent)
    assert close(out, sample(model, kind, latent=latent)) < 1e-6


@on_kinds
@in_shapes
@pytest.mark.parametrize("blur", [(-1.0,), (10.0,), (1.0,), (10.0, "reflect")], ids=str)
def test_it_acts_on_a_picture_of_any_shape_without_a_forward_of_its_own(kind, shape, blur):
    model, latent = network(kind), networks.latent(kind, 2, *shape)
    counter = Counter(seg(model, *blur))
    out = sample(counter.model, kind, latent=latent)
    assert out.isfinite().all()
    assert close(out, sample(model, kind, latent=latent)) > 1e-3
    assert len(counter.rows) == 4  # one for each step


@on_kinds
@in_shapes
def test_a_wide_blur_is_the_infinite_one(kind, shape):
    model, latent = network(kind), networks.latent(kind, 1, *shape)
    wide, infinite = (sample(seg(model, sigma), kind, latent=latent) for sigma in (9999.0, -1.0))
    assert close(wide, infinite) < 1e-5


@on_kinds
def test_of_a_batch_each_picture_is_as_it_is_alone(kind):
    model, latent = network(kind), networks.latent(kind, 2, 12, 18)
    for settings in [(BlurredQuery, -1.0), (BlurredQuery, 2.0), (MaskedAttention, 0.5)]:
        two = sample(perturbed(model, *settings), kind, latent=latent)
        one = sample(perturbed(model, *settings), kind, latent=latent[:1])  # the first noise of two is that of one
        assert close(two[:1], one) < 1e-5


@on_kinds
@pytest.mark.parametrize("layers", ["auto", "all"])
def test_the_masked_attention_has_pag_and_no_guidance_as_its_ends(kind, layers):
    model = network(kind)
    whole, none = (sample(perturbed(model, MaskedAttention, ratio, layers=layers), kind) for ratio in (1.0, 0.0))
    assert torch.equal(whole, sample(pag(model, layers=layers), kind))
    assert close(none, sample(model, kind)) < 1e-6


@on_kinds
@pytest.mark.parametrize("settings", [(0.25,), (0.25, False), (1.0, False)], ids=str)
def test_the_paper_s_other_masks_act_and_repeat(kind, settings):
    model = network(kind)
    masked = perturbed(model, MaskedAttention, *settings)
    state = torch.random.get_rng_state()
    out = sample(masked, kind)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert out.isfinite().all() and close(out, sample(model, kind)) > 1e-3
    assert torch.equal(sample(masked, kind), out)
    if settings == (0.25,):
        assert not torch.equal(sample(perturbed(model, MaskedAttention, *settings, True, 1), kind), out)

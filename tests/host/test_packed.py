"""Latents of several kinds in one, and of frames: no sample and no kind of latent has a say in another's guidance."""

import comfy.nested_tensor
import comfy.samplers
import pytest
import torch
from pack.guiders import RULES as REGISTERED
from pack.guiders import (
    AdaptiveProjectedGuidance,
    AngleCap,
    DynamicThresholding,
    GuidanceRescale,
    SlidingWindowGuidance,
)
from pack.guiders.host import Term, add_term
from pack.guiders.independent_condition import IndependentConditionGuidance
from pack.guiders.schedule import Schedule
from pack.nodes import terms
from pack.tests.host import networks
from pack.tests.host.exact import condition, exact
from pack.tests.host.harness import TERM_NODES, close, guider_of, noise_like, prompts, sigmas_of

PICTURE, SOUND = (4, 2, 6, 5), (3, 7, 4)  # with frames
POSITIVE, NEGATIVE = condition((0.8, 0.5)), condition((-0.4, 1.2), (0.1, 0.6))
RULES = {
    "Rescale": [GuidanceRescale(0.7)],
    "Adaptive Projected": [AdaptiveProjectedGuidance(0.3, 1.5, -0.5)],
    "both": [AdaptiveProjectedGuidance(0.0, 2.0, 0.5), GuidanceRescale(1.0)],
    "ICG and both": [IndependentConditionGuidance(2.0), AdaptiveProjectedGuidance(0.0, 2.0, 0.5), GuidanceRescale(1.0)],
}
ACTS = {AngleCap: {"max_angle": 5.0}, DynamicThresholding: {"mimic_scale": 1.0}}  # their defaults leave so small a cfg
OF_PICTURES = [SlidingWindowGuidance]  # not of latents that are packed, nor of exact networks, which see no neighbours
FOLDS = [rule for rule in REGISTERED if terms.is_complete(rule) and rule not in OF_PICTURES]  # at their nodes' defaults
RULES |= {rule.about.name: [rule(**ACTS.get(rule, {}))] for rule in FOLDS}
EVERY = pytest.mark.parametrize("rules", RULES)
OF_VIDEOS = RULES | {rule.about.name: [rule()] for rule in OF_PICTURES}


def with_rules(model, rules):
    for rule in OF_VIDEOS[rules]:
        model = add_term(model, Term(rule, Schedule(), "test"))
    return model


def sampled(model, noise, conds=(POSITIVE, NEGATIVE), cfg=5.0):
    """With the host's own packing, where the noise is of several latents."""
    if isinstance(noise, tuple):
        noise = comfy.nested_tensor.NestedTensor(noise)
    latent = noise * 0.0
    sampler, sigmas = comfy.samplers.sampler_object("euler"), sigmas_of(model, 4, "simple")
    result = guider_of(model, *conds, cfg).sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=7)
    return result.unbind() if getattr(result, "is_nested", False) else result


def noises(*shapes, batch=2, seed=0):
    return tuple(noise_like(torch.empty(batch, *shape), seed + i) for i, shape in enumerate(shapes))


@EVERY
@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_of_a_picture_with_sound_another_sample_changes_no_bit_of_ones_own(kind, rules):
    model = with_rules(exact(kind), rules)
    one, other = noises(PICTURE, SOUND), noises(PICTURE, SOUND, seed=5)
    mixed = tuple(torch.cat([a[:1], 3 * b[1:]]) for a, b in zip(one, other, strict=True))
    for before, after in zip(sampled(model, one), sampled(model, mixed), strict=True):
        assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


@EVERY
@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_neither_the_picture_nor_the_sound_has_a_say_in_the_others_guidance(kind, rules):
    model = with_rules(exact(kind), rules)
    picture, sound = noises(PICTURE, SOUND)
    before = sampled(model, (picture, sound))
    louder, brighter = sampled(model, (picture, 3 * sound + 1)), sampled(model, (3 * picture + 1, sound))
    assert torch.equal(before[0], louder[0]) and not torch.equal(before[1], louder[1])
    assert torch.equal(before[1], brighter[1]) and not torch.equal(before[0], brighter[0])


@EVERY
@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_each_is_guided_as_it_is_alone(kind, rules):
    model = with_rules(exact(kind), rules)
    together = sampled(model, noises(PICTURE, SOUND))
    for result, noise in zip(together, noises(PICTURE, SOUND), strict=True):
        assert close(result, sampled(model, noise)) < 1e-5
        assert close(result, sampled(exact(kind), noise)) > 1e-3


def test_a_weak_model_of_pictures_with_sound_is_given_both_unpacked(monkeypatch):
    main, weak = exact("flow"), exact("flow", widen=2.0)
    model = TERM_NODES["BeyondCFGAutoguidance"].execute(
        model=main, weak_model=weak, weight=2.0, start_percent=0.0, end_percent=1.0
    )[0]
    network, seen = weak.model.diffusion_model, []
    forward = network.forward

    def watched(x, *args, **kwargs):
        seen.append([(1, *part.shape[1:]) for part in x] if isinstance(x, list) else None)
        return forward(x, *args, **kwargs)

    monkeypatch.setattr(network, "forward", watched)
    together = sampled(model, noises(PICTURE, SOUND))
    assert seen[0] == [(1, *PICTURE), (1, *SOUND)] and seen.count(seen[0]) == 4  # and each part, by the network itself
    for result, noise in zip(together, noises(PICTURE, SOUND), strict=True):
        assert close(result, sampled(model, noise)) < 1e-5 < close(result, sampled(main, noise))


def test_latents_of_several_kinds_have_no_windows_in_common_and_sound_has_none():
    model = with_rules(exact("flow"), "SWG")
    with pytest.raises(ValueError, match=r"^test: this latent packs several, such as video and sound"):
        sampled(model, noises(PICTURE, SOUND))
    with pytest.raises(ValueError, match=r"^test: this latent has no height and width, but \[28\]"):
        sampled(model, *noises((3, 28)))


@pytest.mark.parametrize("rules", OF_VIDEOS)
@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_of_two_videos_another_changes_no_bit_of_ones_own(rules, cfg):
    """A network that mixes frames and tokens of a sample, of the host's own."""
    model = with_rules(networks.wan(), rules)
    one, other = (noise_like(networks.latent("wan", 2), seed) for seed in (0, 5))
    mixed = torch.cat([one[:1], 3 * other[1:]])
    before, after = (sampled(model, noise, prompts("wan"), cfg) for noise in (one, mixed))
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])
    assert cfg == 1.0 or close(before, sampled(networks.wan(), one, prompts("wan"), cfg)) > 1e-3

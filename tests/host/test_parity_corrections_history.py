"""Guidances with memory are the papers' algorithms, written as functions of the host on its own samplers."""

import pytest
import torch
from pack.guiders import MomentumGuidance, PreviousStepGuidance, SlidingModeGuidance, host
from pack.guiders.schedule import Schedule
from pack.tests.host.harness import Counter, close, network, sample

KINDS = pytest.mark.parametrize("kind", ["unet", "sd3"])  # ε and flow


def of_velocities(model, combine):
    """`model` with the result of its CFG made of velocities: combine(CFG's, the positive's, the negative's, σ)."""

    def post_cfg(args):
        x, sigma = args["input"], args["sigma"].view(-1, 1, 1, 1)
        velocities = ((x - args[name]) / sigma for name in ("denoised", "cond_denoised", "uncond_denoised"))
        return x - sigma * combine(*velocities, sigma.flatten()[0].item())

    changed = model.clone()
    changed.set_model_sampler_post_cfg_function(post_cfg)
    return changed


def momentum(alpha, beta):
    average = None

    def combine(velocity, _positive, _negative, _sigma):
        nonlocal average
        average = velocity if average is None else average
        guided, average = velocity + alpha * (velocity - average), (1 - beta) * velocity + beta * average
        return guided

    return combine


def previous(scale, below):
    last = None

    def combine(velocity, positive, _negative, sigma):
        nonlocal last
        before, last = positive if last is None or sigma > below else last, positive
        return velocity + scale * (positive - before)

    return combine


def sliding(k, decay, cfg):
    last = None

    def combine(_velocity, positive, negative, _sigma):
        nonlocal last
        difference = positive - negative
        last = difference if last is None else last
        last = difference - k * torch.sign((difference - last) + decay * last)
        return negative + cfg * last

    return combine


def with_rule(model, rule, start=0.0):
    return host.add_term(model, host.Term(rule, Schedule(start), "rule"))


def half_way(model) -> float:
    return model.get_model_object("model_sampling").percent_to_sigma(0.5)


@KINDS
@pytest.mark.parametrize("name", ["MG", "SG-prev", "SMC"])
def test_it_is_the_papers_algorithm_on_the_hosts_sampler_at_no_row(kind, name):
    model, cfg = network(kind), 4.0
    rule, start, combine = {
        "MG": (MomentumGuidance(0.5, 0.6), 0.0, momentum(0.5, 0.6)),
        "SG-prev": (PreviousStepGuidance(3.0), 0.5, previous(3.0, half_way(model))),
        "SMC": (SlidingModeGuidance(0.02, 5.0), 0.0, sliding(0.02, 5.0, cfg)),
    }[name]
    ours, plain = Counter(with_rule(model, rule, start)), Counter(model)
    result, expected = (sample(each, kind, cfg, steps=6) for each in (ours.model, of_velocities(model, combine)))
    assert close(result, expected) < 1e-5
    assert close(sample(plain.model, kind, cfg, steps=6), expected) > 1e-3  # it acts
    assert ours.forwards == plain.forwards


@KINDS
def test_control_of_cfg_is_left_out_where_there_is_none(kind):
    model = network(kind)
    assert torch.equal(sample(with_rule(model, SlidingModeGuidance()), kind, 1.0), sample(model, kind, 1.0))


def test_a_rule_that_remembers_changes_no_bit_where_it_does_not_act():
    """Here in all steps but the first, which has none before it."""
    model = network("unet")
    early = host.add_term(model, host.Term(PreviousStepGuidance(3.0), Schedule(0.0, 0.001), "rule"))
    assert torch.equal(sample(early, steps=3), sample(model, steps=3))

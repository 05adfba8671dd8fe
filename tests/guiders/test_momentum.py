"""Momentum Guidance and Self-Guidance by the previous step: away from earlier velocities, in whatever way x is scaled."""

import itertools
import math

import pytest
import torch
from pack.guiders import ClassifierFreeGuidance, MomentumGuidance, PreviousStepGuidance
from pack.guiders.base import NEGATIVE, POSITIVE, Step
from pack.guiders.compose import GuidanceRun
from pack.guiders.schedule import Interval
from pack.tests.toy import Mixture, Toy, euler, heun, karras

ALWAYS, CFG = Interval(), 4.0
DENOISERS = {POSITIVE: Mixture((1.0, -0.2), 0.5), NEGATIVE: Mixture((-1.0, 0.5), 0.7)}
FLOW = [1.0, 0.9, 0.75, 0.5, 0.3, 0.0]  # σ of each step
BOTH = pytest.mark.parametrize("rule", [MomentumGuidance(), PreviousStepGuidance()], ids=["MG", "SG-prev"])


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def sampled(sampler, rules, x, sigmas) -> torch.Tensor:
    return sampler(GuidanceRun((rule, ALWAYS) for rule in rules), Toy(DENOISERS), x, sigmas)


def by_velocities(x, sigmas, guided) -> torch.Tensor:
    """Euler's method on velocities, which `guided` makes of (CFG's, the positive's, σ)."""
    for sigma, after in itertools.pairwise(sigmas):
        positive, negative = ((x - DENOISERS[branch](x, sigma)) / sigma for branch in (POSITIVE, NEGATIVE))
        x = x + (after - sigma) * guided(negative + CFG * (positive - negative), positive, sigma)
    return x


def test_momentum_guidance_is_the_papers_algorithm_of_velocities():
    alpha, beta, average = 0.5, 0.6, None

    def guided(velocity, _positive, _sigma):
        nonlocal average
        average = velocity if average is None else average  # m of the first step is v
        result = velocity + alpha * (velocity - average)
        average = (1 - beta) * velocity + beta * average
        return result

    x = noise(2, 4, 6, 5)
    found = sampled(euler, [ClassifierFreeGuidance(CFG), MomentumGuidance(alpha, beta)], x, FLOW)
    torch.testing.assert_close(found, by_velocities(x, FLOW, guided), rtol=0, atol=1e-12)
    assert not torch.allclose(found, sampled(euler, [ClassifierFreeGuidance(CFG)], x, FLOW))


def test_self_guidance_by_the_previous_step_is_the_authors_combination_of_velocities():
    scale, before = 3.0, None

    def guided(velocity, positive, _sigma):
        nonlocal before
        of_the_step_before, before = positive if before is None else before, positive
        return velocity + scale * (positive - of_the_step_before)

    x = noise(2, 4, 6, 5)
    found = sampled(euler, [ClassifierFreeGuidance(CFG), PreviousStepGuidance(scale)], x, FLOW)
    torch.testing.assert_close(found, by_velocities(x, FLOW, guided), rtol=0, atol=1e-12)


def test_below_a_time_alone_it_still_knows_the_step_before_as_in_the_authors_code():
    scale, below, before = 3.0, 0.6, None

    def guided(velocity, positive, sigma):
        nonlocal before
        of_the_step_before, before = before if sigma <= below else positive, positive
        return velocity + scale * (positive - of_the_step_before)

    x = noise(2, 4, 6, 5)
    run = GuidanceRun([(ClassifierFreeGuidance(CFG), ALWAYS), (PreviousStepGuidance(scale), Interval(0.0, below))])
    found = euler(run, Toy(DENOISERS), x, FLOW)
    torch.testing.assert_close(found, by_velocities(x, FLOW, guided), rtol=0, atol=1e-12)


def test_momentum_by_the_step_before_alone_and_one_half_is_the_method_of_adams_and_bashforth():
    x, sigmas = 10 * noise(2, 4, 6, 5), [10.0 - i for i in range(10)]
    expected, before = x, None
    for sigma, after in itertools.pairwise(sigmas):
        slope = (expected - DENOISERS[POSITIVE](expected, sigma)) / sigma
        expected = expected + (after - sigma) * (slope if before is None else 1.5 * slope - 0.5 * before)
        before = slope
    found = sampled(euler, [MomentumGuidance(0.5, 0.0)], x, sigmas)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@BOTH
def test_a_straight_path_has_nothing_to_add_though_its_predictions_move(rule):
    """x and D with one velocity. An average of D itself, or of predictions, would push on."""
    apply, x, velocity = rule.begin(), noise(2, 4, 6, 5), noise(3, 2, 4, 6, 5)[1]
    for index, (sigma, drift) in enumerate(((0.9, 0.0), (0.6, 1.0), (0.2, 2.0))):
        denoised = x + drift - sigma * velocity
        result = apply(denoised, {POSITIVE: denoised}, Step(x + drift, sigma, sigma, index))
        torch.testing.assert_close(result, denoised, rtol=0, atol=1e-14)


@BOTH
def test_the_first_step_is_left_as_it_is_exactly(rule):
    x, denoised = noise(2, 4, 6, 5), noise(2, 2, 4, 6, 5)[1]
    assert torch.equal(rule.begin()(denoised, {POSITIVE: denoised}, Step(x, 0.9, 0.9, 0)), denoised)


def test_what_other_guidances_add_is_part_of_the_momentum_and_not_of_self_guidance():
    x, added = noise(2, 4, 6, 5), 0.7
    for rule, is_part in ((MomentumGuidance(1.0, 0.0), True), (PreviousStepGuidance(1.0), False)):
        apply = rule.begin()
        for index, more in ((0, 0.0), (1, added)):  # it begins in the second step
            step = Step(x, 1.0, 1.0, index)
            positive = DENOISERS[POSITIVE](x, 1.0)
            result = apply(positive + more, {POSITIVE: positive}, step)
        torch.testing.assert_close(result, positive + (2 if is_part else 1) * added, rtol=0, atol=1e-14)


@BOTH
def test_a_second_order_sampler_has_one_history_and_a_run_knows_nothing_of_another(rule):
    x, rules = 80 * noise(2, 1, 4), [ClassifierFreeGuidance(CFG), rule]
    run = GuidanceRun((each, ALWAYS) for each in rules)
    runs = [heun(run, Toy(DENOISERS), x, karras(8)), heun(run, Toy(DENOISERS), x, karras(8))]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], sampled(heun, rules, x, karras(8)))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_numbers_of_one_sample_alone_and_at_the_end_stay_finite(rule, dtype):
    def last(x, denoised, sigma=0.3):
        apply = rule.begin()
        apply(denoised, {POSITIVE: denoised}, Step(-x, 0.9, 0.9, 0))
        return apply(denoised / 2, {POSITIVE: denoised / 2}, Step(x, sigma, sigma, 1))

    x, denoised = (value.to(dtype) for value in (noise(3, 4, 6, 5), noise(2, 3, 4, 6, 5)[1]))
    found = last(x, denoised)
    assert found.dtype == dtype and found.isfinite().all() and last(denoised, denoised, sigma=0.0).isfinite().all()
    x[1], denoised[1] = math.nan, math.inf
    assert torch.equal(last(x, denoised)[[0, 2]], found[[0, 2]])
    zero = torch.zeros_like(found)
    assert torch.equal(last(zero, zero), zero)

"""SMC-CFG: the authors' control of the difference of velocities, in whatever way x is scaled."""

import itertools
import math

import pytest
import torch
from pack.guiders import ClassifierFreeGuidance, SlidingModeGuidance
from pack.guiders.base import NEGATIVE, POSITIVE, Step
from pack.guiders.compose import GuidanceRun
from pack.guiders.schedule import Interval
from pack.tests.toy import Mixture, Toy

ALWAYS, CFG = Interval(), 4.0
DENOISERS = {POSITIVE: Mixture((1.0, -0.2), 0.5), NEGATIVE: Mixture((-1.0, 0.5), 0.7)}
FLOW = [1.0, 0.9, 0.75, 0.5, 0.3, 0.0]  # σ of each step


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def run_of(*rules) -> GuidanceRun:
    return GuidanceRun((rule, ALWAYS) for rule in (ClassifierFreeGuidance(CFG), *rules))


def sampled(run: GuidanceRun, x: torch.Tensor) -> torch.Tensor:
    """By Euler's method, of a sampler with its own CFG."""
    for index, (sigma, after) in enumerate(itertools.pairwise(FLOW)):
        denoised = run(Step(x, sigma, sigma, index, cfg=CFG), Toy(DENOISERS))
        x = x + (after - sigma) * (x - denoised) / sigma
    return x


@pytest.mark.parametrize(("k", "decay"), [(0.2, 5.0), (0.3, 0.05), (0.02, 6.0)])
def test_it_is_the_authors_algorithm_of_velocities(k, decay):
    start = noise(2, 4, 6, 5)
    x, before = start, None
    for sigma, after in itertools.pairwise(FLOW):
        positive, negative = ((x - DENOISERS[branch](x, sigma)) / sigma for branch in (POSITIVE, NEGATIVE))
        difference = positive - negative
        before = difference if before is None else before
        surface = (difference - before) + decay * before
        difference = difference + -k * torch.sign(surface)
        before = difference
        x = x + (after - sigma) * (negative + CFG * difference)
    torch.testing.assert_close(sampled(run_of(SlidingModeGuidance(k, decay)), start), x, rtol=0, atol=1e-12)
    assert not torch.allclose(x, sampled(run_of(), start))


def test_it_takes_the_same_from_every_number_and_leaves_out_none_but_zero():
    """In the first step: w σ k, towards no guidance."""
    step, plain = Step(noise(2, 4, 6, 5), 0.7, 0.7, cfg=CFG), run_of()
    difference = DENOISERS[POSITIVE](step.x, 0.7) - DENOISERS[NEGATIVE](step.x, 0.7)
    added = run_of(SlidingModeGuidance(0.2))(step, Toy(DENOISERS)) - plain(step, Toy(DENOISERS))
    torch.testing.assert_close(added, -CFG * 0.7 * 0.2 * difference.sign(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_numbers_stay_finite_and_those_of_one_sample_alone(dtype):
    def last(positive, negative, sigma=0.3):
        apply = SlidingModeGuidance().begin()
        for index, level in enumerate((0.9, sigma)):
            step = Step(torch.empty(0), level, level, index, cfg=CFG)
            result = apply(positive, {POSITIVE: positive, NEGATIVE: negative}, step)
        return result

    positive, negative = (value.to(dtype) for value in noise(2, 3, 4, 6, 5))
    found = last(positive, negative)
    assert found.dtype == dtype and found.isfinite().all()
    assert torch.equal(last(positive, positive), positive)
    assert torch.equal(last(positive, negative, sigma=0.0), positive)
    assert torch.equal(last(torch.zeros_like(positive), torch.zeros_like(positive)), torch.zeros_like(positive))
    assert last(positive * 2.0**13, -positive * 2.0**13).isfinite().all()
    positive[1], negative[1] = math.nan, math.inf
    assert torch.equal(last(positive, negative)[[0, 2]], found[[0, 2]])

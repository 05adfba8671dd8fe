"""β-CFG: CFG has the same length in every step, times a curve along sampling."""

import math

import pytest
import torch
from pack.guiders import BetaCFG, ClassifierFreeGuidance
from pack.guiders.base import NEGATIVE, POSITIVE, Step
from pack.guiders.compose import GuidanceRun
from pack.guiders.linalg import norm
from pack.guiders.schedule import Interval
from pack.tests.toy import Gaussian, Mixture, Toy

ALWAYS, CFG, SIGMA = Interval(), 6.0, 0.7
DENOISERS = {POSITIVE: Gaussian(1.0, 0.5), NEGATIVE: Mixture((-1.0, 0.5), 0.7)}
SHAPES = ((1, 8, 2, 3, 4), (1, 4, 9))  # of a packed latent: a picture and its sound
CUT = 8 * 24


def several(count: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def step_at(x: torch.Tensor, time: float = 0.7, shapes=()) -> Step:
    return Step(x, SIGMA, SIGMA, 5, time, signal=1 - SIGMA, cfg=CFG, shapes=shapes)


def folded(rules, x: torch.Tensor, time: float = 0.7) -> torch.Tensor:
    run = GuidanceRun((rule, ALWAYS) for rule in (ClassifierFreeGuidance(CFG), *rules))
    return run(step_at(x, time), Toy(DENOISERS))


def guided(positive, negative, time=0.7, shapes=(), **settings) -> torch.Tensor:
    """What becomes of CFG's x₀."""
    predictions = {POSITIVE: positive, NEGATIVE: negative}
    step = step_at(torch.empty(0), time, shapes)
    return BetaCFG(**settings).begin()(negative + CFG * (positive - negative), predictions, step)


SAID = {  # what a network predicts where its x₀ is d
    "the noise of x₀ + σ n": lambda x, d: (x - d) / SIGMA,
    "the velocity n − x₀ of (1 − σ) x₀ + σ n": lambda x, d: (x - (1 - SIGMA) * d) / SIGMA - d,
}


@pytest.mark.parametrize(("a", "b", "gamma"), [(2.0, 2.0, 1.0), (2.0, 3.0, 1.0), (1.5, 4.0, 0.4), (1.0, 1.0, 0.0)])
@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_it_is_the_papers_combination_of_what_the_network_predicts(said, a, b, gamma):
    (x,) = several(1, 3, 4, 6, 5)
    positive, negative = (said(x, DENOISERS[branch](x, SIGMA)) for branch in (POSITIVE, NEGATIVE))
    for passed in (0.1, 0.3, 0.9):
        results = folded([BetaCFG(a=a, b=b, gamma=gamma)], x, 1 - passed)
        concentrations = torch.tensor([a, b], dtype=torch.float64)
        curve = torch.distributions.Beta(*concentrations)
        rise = curve.log_prob(torch.tensor(passed, dtype=torch.float64)).exp()
        for row, result in enumerate(results):
            difference = (positive - negative)[row]
            part = difference / torch.linalg.vector_norm(difference) ** gamma * rise
            expected = x[row] - SIGMA * (negative[row] + CFG * part)
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-13)


def test_at_gamma_1_every_sample_has_a_guidance_of_the_same_length():
    positive, difference = several(2, 3, 4, 6, 5)
    difference = difference * torch.tensor([0.01, 1.0, 100.0]).reshape(3, 1, 1, 1)
    negative = positive - difference
    lengths = norm(guided(positive, negative, 0.5) - negative).flatten()
    rise = 6 * 0.5 * 0.5  # of Beta(2, 2)
    torch.testing.assert_close(lengths, torch.full_like(lengths, CFG * rise * SIGMA), rtol=1e-12, atol=0)


def test_a_flat_curve_without_the_norm_is_plain_cfg():
    positive, negative = several(2, 3, 4, 6, 5)
    plain = negative + CFG * (positive - negative)
    for time in (1.0, 0.4, 0.0):
        torch.testing.assert_close(guided(positive, negative, time, a=1.0, b=1.0, gamma=0.0), plain, rtol=0, atol=1e-14)


def test_at_both_ends_the_result_is_the_negatives():
    positive, negative = several(2, 3, 4, 6, 5)
    for time in (1.0, 0.0):
        torch.testing.assert_close(guided(positive, negative, time), negative, rtol=0, atol=1e-14)


def test_no_difference_changes_nothing():
    (positive,) = several(1, 3, 4, 6, 5)
    zero = torch.zeros_like(positive)
    assert torch.equal(guided(positive, positive), positive) and torch.equal(guided(zero, zero), zero)


def test_each_modality_of_a_packed_latent_has_a_length_of_its_own():
    positive, negative = several(2, 2, 1, CUT + 36)
    together = guided(positive, negative, shapes=SHAPES)
    for part in (slice(None, CUT), slice(CUT, None)):
        alone = guided(positive[..., part], negative[..., part])
        torch.testing.assert_close(together[..., part], alone, rtol=0, atol=1e-14)
    positive[..., CUT:] = math.nan
    assert torch.equal(guided(positive, negative, shapes=SHAPES)[..., :CUT], together[..., :CUT])


def test_a_difference_whose_square_is_too_large_for_float16_has_a_length_like_others():
    positive = several(1, 2, 4, 16, 16)[0].half().clamp(-3, 3)
    zero, step = torch.zeros_like(positive), Step(torch.empty(0), SIGMA, SIGMA, time=0.5, cfg=4.0)
    small, large = (
        BetaCFG().begin()(4 * size * positive, {POSITIVE: size * positive, NEGATIVE: zero}, step) for size in (1, 2**12)
    )
    assert not (2**12 * positive).square().isfinite().all()
    assert large.dtype == torch.float16 and small.abs().max() > 0.1
    torch.testing.assert_close(large, small, rtol=0, atol=4 * 3 * 2**12 * torch.finfo(torch.float32).eps)

"""MAMBO-G: a sample's CFG is weaker, the longer its difference of velocities is beside the negative's velocity."""

import math

import pytest
import torch
from diffusers.guiders import MagnitudeAwareGuidance
from pack.guiders import ClassifierFreeGuidance, MagnitudeAware
from pack.guiders.base import NEGATIVE, POSITIVE, Step
from pack.guiders.compose import GuidanceRun
from pack.guiders.schedule import Interval
from pack.tests.toy import Gaussian, Mixture, Toy

ALWAYS, CFG, SIGMA = Interval(), 6.0, 0.7
DENOISERS = {POSITIVE: Gaussian(1.0, 0.5), NEGATIVE: Mixture((-1.0, 0.5), 0.7)}
SHAPES = ((1, 8, 2, 3, 4), (1, 4, 9))  # of a packed latent: a picture and its sound


def several(count: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def step_at(x: torch.Tensor, shapes=()) -> Step:
    return Step(x, SIGMA, SIGMA, 5, signal=1 - SIGMA, cfg=CFG, shapes=shapes)


def folded(rules, x: torch.Tensor) -> torch.Tensor:
    run = GuidanceRun((rule, ALWAYS) for rule in (ClassifierFreeGuidance(CFG), *rules))
    return run(step_at(x), Toy(DENOISERS))


def guided(x, positive, negative, alpha=8.0, shapes=()) -> torch.Tensor:
    """What becomes of CFG's x₀."""
    step, predictions = step_at(x, shapes), {POSITIVE: positive, NEGATIVE: negative}
    return MagnitudeAware(alpha).begin()(negative + CFG * (positive - negative), predictions, step)


SAID = {  # what a network predicts where its x₀ is d
    "the noise of x₀ + σ n": lambda x, d: (x - d) / SIGMA,
    "the velocity n − x₀ of (1 − σ) x₀ + σ n": lambda x, d: (x - (1 - SIGMA) * d) / SIGMA - d,
}


@pytest.mark.parametrize("alpha", [0.5, 8.0])
@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_it_is_the_papers_weight_on_what_the_network_predicts(said, alpha):
    (x,) = several(1, 3, 4, 6, 5)
    positive, negative = (said(x, DENOISERS[branch](x, SIGMA)) for branch in (POSITIVE, NEGATIVE))
    for row, result in enumerate(folded([MagnitudeAware(alpha)], x)):
        ratio = torch.linalg.vector_norm((positive - negative)[row]) / torch.linalg.vector_norm(negative[row])
        weight = 1 + (CFG - 1) * math.exp(-alpha * ratio)
        assert 1 < weight < 0.9 * CFG
        prediction = negative[row] + weight * (positive - negative)[row]
        torch.testing.assert_close(result, x[row] - SIGMA * prediction, rtol=0, atol=1e-14)


def test_it_is_diffusers_guider_of_a_flow_networks_velocity():
    (x,) = several(1, 3, 4, 6, 5)
    positive, negative = ((x - DENOISERS[branch](x, SIGMA)) / SIGMA for branch in (POSITIVE, NEGATIVE))
    for alpha in (0.5, 8.0):
        guider = MagnitudeAwareGuidance(CFG, alpha)
        tokens = guider.forward(positive.flatten(2), negative.flatten(2)).pred  # it fails for four axes
        theirs = x - SIGMA * tokens.reshape(x.shape)
        torch.testing.assert_close(folded([MagnitudeAware(alpha)], x), theirs, rtol=0, atol=1e-14)


def test_each_sample_has_a_weight_of_its_own():
    x, positive, difference = several(3, 3, 4, 6, 5)
    difference = difference * torch.tensor([0.01, 1.0, 100.0]).reshape(3, 1, 1, 1)
    left = (guided(x, positive, positive - difference) - positive) / ((CFG - 1) * difference)
    assert left[0].min() > 0.9 and 1e-4 < left[1].mean() < 0.1 and left[2].abs().max() < 1e-3
    torch.testing.assert_close(left, left.amax((1, 2, 3), keepdim=True).expand_as(left), rtol=0, atol=1e-10)


def test_a_negative_without_velocity_leaves_the_positive_and_no_difference_changes_nothing():
    x, positive = several(2, 3, 4, 6, 5)
    torch.testing.assert_close(guided(x, positive, x), positive, rtol=0, atol=1e-14)
    assert torch.equal(guided(x, positive, positive), positive)
    assert torch.equal(guided(x, x, x), x)


def test_each_modality_of_a_packed_latent_has_a_weight_of_its_own():
    x, positive, negative = several(3, 2, 1, 8 * 24 + 36)
    cut = 8 * 24
    together = guided(x, positive, negative, 1.0, SHAPES)
    for part in (slice(None, cut), slice(cut, None)):
        alone = guided(*(value[..., part] for value in (x, positive, negative)), 1.0)
        torch.testing.assert_close(together[..., part], alone, rtol=0, atol=1e-14)
    positive[..., cut:] = math.nan
    assert torch.equal(guided(x, positive, negative, 1.0, SHAPES)[..., :cut], together[..., :cut])


def test_numbers_whose_squares_are_too_large_for_float16_are_numbers_like_others():
    x, positive, negative = (value.half().clamp(-3, 3) for value in several(3, 2, 4, 16, 16))
    negative = positive + negative / 32
    small, large = (guided(size * x, size * positive, size * negative, 2.0) for size in (1, 2**12))
    assert not (2**12 * positive).square().isfinite().all()
    torch.testing.assert_close(large / 2**12, small, rtol=0, atol=1e-6)  # those of `small` that float16 has no name for

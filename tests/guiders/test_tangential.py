"""TCFG: of the negative only what it has in common with the positive, in whatever way the network says its prediction."""

import math

import pytest
import torch
from diffusers.guiders import TangentialClassifierFreeGuidance
from pack.guiders import ClassifierFreeGuidance, TangentialCFG
from pack.guiders.base import NEGATIVE, POSITIVE, Step
from pack.guiders.compose import GuidanceRun
from pack.guiders.linalg import project
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


def negative_of(positive: torch.Tensor, negative: torch.Tensor, shapes=()) -> torch.Tensor:
    """What of the velocity `negative` is left."""
    x, zero = torch.zeros_like(positive), torch.zeros_like(positive)
    predictions = {POSITIVE: -positive, NEGATIVE: -negative}
    return negative - TangentialCFG().begin()(zero, predictions, step_at(x, shapes)) / (1 - CFG)


def by_decomposition(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """The paper's: each sample's projection on the first right singular vector."""
    _, _, directions = torch.linalg.svd(torch.stack([positive.flatten(1), negative.flatten(1)], 1), full_matrices=False)
    first = directions[:, 0]
    return ((negative.flatten(1) * first).sum(1, keepdim=True) * first).reshape(negative.shape)


SAID = {  # what a network predicts where its x₀ is d
    "the noise of x₀ + σ n": lambda x, d: (x - d) / SIGMA,
    "the velocity n − x₀ of (1 − σ) x₀ + σ n": lambda x, d: (x - (1 - SIGMA) * d) / SIGMA - d,
}


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_it_is_the_papers_combination_of_what_the_network_predicts(said):
    (x,) = several(1, 3, 4, 6, 5)
    positive, negative = (said(x, DENOISERS[branch](x, SIGMA)) for branch in (POSITIVE, NEGATIVE))
    common = by_decomposition(positive, negative)
    assert (common - negative).abs().max() > 0.1
    prediction = common + CFG * (positive - common)
    torch.testing.assert_close(folded([TangentialCFG()], x), x - SIGMA * prediction, rtol=0, atol=1e-13)


@pytest.mark.parametrize("alike", [-0.999, -0.3, 0.0, 0.5, 0.999999])
@pytest.mark.parametrize("longer", [0.01, 0.9, 1.1, 100.0])
def test_without_a_decomposition_it_is_the_projection_on_the_first_singular_vector(alike, longer):
    positive, other = several(2, 3, 4, 6, 5)
    negative = longer * (alike * positive + math.sqrt(1 - alike**2) * project(other, positive)[1])
    expected = by_decomposition(positive, negative)
    torch.testing.assert_close(negative_of(positive, negative), expected, rtol=0, atol=1e-13 * max(longer, 1))


def test_it_is_diffusers_guider_of_a_flow_networks_velocity():
    (x,) = several(1, 3, 4, 6, 5)
    positive, negative = ((x - DENOISERS[branch](x, SIGMA)) / SIGMA for branch in (POSITIVE, NEGATIVE))
    theirs = x - SIGMA * TangentialClassifierFreeGuidance(CFG).forward(positive, negative).pred
    # their decomposition is in float32, and a factor on (1 − w) v₋
    torch.testing.assert_close(folded([TangentialCFG()], x), theirs, rtol=0, atol=(CFG - 1) * 1e-6)


def test_where_the_predictions_are_nearly_alike_it_halves_the_guidance_across_them_and_keeps_that_along_them():
    negative, difference = several(2, 3, 4, 6, 5)
    along, across = project(1e-4 * difference, negative)
    left = negative + along + across - negative_of(negative + along + across, negative)
    torch.testing.assert_close(left, along + across / 2, rtol=0, atol=1e-7)  # to first order


def test_predictions_along_one_line_change_nothing():
    (positive,) = several(1, 3, 4, 6, 5)
    for factor in (-2.0, 0.0, 0.3, 1.0):
        kept = negative_of(positive, factor * positive)
        torch.testing.assert_close(kept, factor * positive, rtol=0, atol=1e-14)


def test_predictions_without_a_first_direction_stay():
    """At right angles and of one length; and where one or both are zero."""
    one, zero = torch.zeros(1, 1, 4, dtype=torch.float64), torch.zeros(1, 1, 4, dtype=torch.float64)
    one[..., 0], other = 1.0, one.roll(1, -1)
    for positive, negative in ((one, other), (zero, other), (one, zero), (zero, zero)):
        assert torch.equal(negative_of(positive, negative), negative)


def test_each_modality_of_a_packed_latent_has_a_direction_of_its_own():
    positive, negative = several(2, 2, 1, 8 * 24 + 36)
    cut = 8 * 24
    together = negative_of(positive, negative, SHAPES)
    for part in (slice(None, cut), slice(cut, None)):
        alone = negative_of(positive[..., part], negative[..., part])
        torch.testing.assert_close(together[..., part], alone, rtol=0, atol=1e-14)
    positive[..., cut:] = math.nan
    assert torch.equal(negative_of(positive, negative, SHAPES)[..., :cut], together[..., :cut])


def test_numbers_whose_squares_are_too_large_for_float16_are_numbers_like_others():
    positive, negative = (value.half().clamp(-3, 3) for value in several(2, 2, 4, 16, 16))
    zero, step = torch.zeros_like(positive), step_at(torch.zeros_like(positive))
    small, large = (
        TangentialCFG(0.1).begin()(zero, {POSITIVE: size * positive, NEGATIVE: size * negative}, step)
        for size in (1, 2**12)
    )
    assert not (2**12 * positive).square().isfinite().all()
    torch.testing.assert_close(large / 2**12, small, rtol=0, atol=1e-6)  # those of `small` that float16 has no name for

"""Dynamic thresholding: every channel keeps its mean and gets the range of a lower CFG."""

import math

import pytest
import torch
from pack.guiders import ClassifierFreeGuidance, DynamicThresholding, PerturbationGuidance
from pack.guiders.base import NEGATIVE, POSITIVE, REFERENCE, Branch, Step
from pack.guiders.compose import GuidanceRun
from pack.guiders.dynamic_thresholding import _quantile
from pack.guiders.schedule import Interval
from pack.tests.toy import Gaussian, Mixture, Toy, Worse

SHAPES = ((1, 8, 2, 3, 4), (1, 4, 9))  # of a packed latent: a picture and its sound
CUT = math.prod(SHAPES[0])
SPATIAL = pytest.mark.parametrize("spatial", [(7,), (6, 5), (3, 4, 5)], ids=lambda spatial: f"{len(spatial)}-D")


def several(count: int, *shape: int, dtype=torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def thresholded(denoised, positive, reference, shapes=(), **settings) -> torch.Tensor:
    predictions = {POSITIVE: positive, REFERENCE: reference}
    return DynamicThresholding(**settings).begin()(denoised, predictions, Step(denoised, 2.0, 2.0, shapes=shapes))


def deviations(x: torch.Tensor) -> torch.Tensor:
    """From the mean of each channel, [batch, channels, elements]."""
    return x.flatten(2) - x.flatten(2).mean(2, keepdim=True)


def authors(positive, negative, cfg: float, mimic: float, percentile: float) -> torch.Tensor:
    """Their formula at MEAN, AD and separate channels, with constant scales, of (x₀ of the prompt, x₀ of the negative)."""
    low, high = (negative + weight * (positive - negative) for weight in (mimic, cfg))
    low_range = deviations(low).abs().amax(2, keepdim=True)
    high_range = torch.quantile(deviations(high).abs(), percentile, dim=2, keepdim=True)
    top = torch.maximum(low_range, high_range)
    scaled = deviations(high).clamp(-top, top) / top * low_range
    return (scaled + high.flatten(2).mean(2, keepdim=True)).reshape(high.shape)


@SPATIAL
@pytest.mark.parametrize(("cfg", "mimic"), [(15.0, 4.0), (8.0, 7.0), (3.0, 7.0), (1.0, 7.0)])
@pytest.mark.parametrize("percentile", [1.0, 0.93, 0.5, 0.0])
def test_with_cfg_alone_it_is_the_authors_formula(percentile, cfg, mimic, spatial):
    positive, negative = several(2, 3, 4, *spatial)
    guided = negative + cfg * (positive - negative)
    found = thresholded(guided, positive, negative, mimic_scale=mimic, percentile=percentile)
    expected = authors(positive, negative, cfg, mimic, percentile)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("percentile", [1.0, 0.9])
def test_every_channel_keeps_its_mean_and_its_range_is_that_of_the_mimic_scale(percentile):
    positive, negative = several(2, 3, 4, 6, 5)
    guided, low = (negative + weight * (positive - negative) for weight in (15.0, 4.0))
    found = thresholded(guided, positive, negative, mimic_scale=4.0, percentile=percentile)
    wanted = deviations(low).abs().amax(2)
    if percentile == 1:  # what is cut off shifts the mean
        torch.testing.assert_close(found.mean((2, 3)), guided.mean((2, 3)), rtol=0, atol=1e-14)
        torch.testing.assert_close(deviations(found).abs().amax(2), wanted, rtol=1e-13, atol=0)
    shift = (found - guided.mean((2, 3), keepdim=True)).abs().amax((2, 3))
    torch.testing.assert_close(shift, wanted, rtol=1e-13, atol=0)


def test_what_lies_within_the_range_stays():
    positive, negative = several(2, 3, 4, 6, 5)
    guided = negative + 3 * (positive - negative)
    found = thresholded(guided, positive, negative, mimic_scale=12.0)
    torch.testing.assert_close(found, guided, rtol=0, atol=1e-14)


def test_it_acts_on_all_that_stands_before_it_and_asks_for_no_row_but_the_reference():
    weak = Branch(perturbation=Worse("a"))
    at = {POSITIVE: Gaussian(1.0, 0.5), NEGATIVE: Mixture((-1.0, 0.5), 0.7), weak: Mixture((0.2, 0.9), 0.4)}
    toy = Toy(at | {REFERENCE: at[NEGATIVE]})
    step = Step(several(1, 3, 4, 6, 5)[0], 0.7, 0.7, cfg=9.0)
    before = [(ClassifierFreeGuidance(9.0), Interval()), (PerturbationGuidance(3.0, Worse("a")), Interval())]
    guided = GuidanceRun(before)(step, toy)
    found = GuidanceRun([*before, (DynamicThresholding(mimic_scale=3.0), Interval())])(step, toy)
    assert toy.asked[1] == (*toy.asked[0], REFERENCE)
    low = at[POSITIVE](step.x, 0.7) + 2 * (at[POSITIVE](step.x, 0.7) - at[NEGATIVE](step.x, 0.7))
    narrow = deviations(low).abs().amax(2) / deviations(guided).abs().amax(2)
    assert (narrow < 0.9).any()
    expected = deviations(guided) * narrow.clamp(max=1)[..., None] + guided.flatten(2).mean(2, keepdim=True)
    torch.testing.assert_close(found, expected.reshape(found.shape), rtol=0, atol=1e-13)


def test_without_cfg_the_range_is_that_of_the_positive_alone():
    denoised, positive = several(2, 3, 4, 6, 5)
    found = thresholded(9 * denoised, positive, positive, mimic_scale=5.0)
    wanted = deviations(positive).abs().amax(2)
    torch.testing.assert_close(deviations(found).abs().amax(2), wanted, rtol=1e-13, atol=0)


@pytest.mark.parametrize("part", [0.0, 0.37, 0.5, 0.995, 1.0])
def test_the_quantile_is_torchs(part):
    x = several(1, 3, 4, 31)[0]
    torch.testing.assert_close(_quantile(x, part), torch.quantile(x, part, dim=-1, keepdim=True), rtol=0, atol=1e-15)


def test_the_amount_is_how_far_it_goes():
    denoised, positive, negative = several(3, 3, 4, 6, 5)
    whole = thresholded(9 * denoised, positive, negative, mimic_scale=3.0)
    found = thresholded(9 * denoised, positive, negative, mimic_scale=3.0, amount=0.3)
    torch.testing.assert_close(found, torch.lerp(9 * denoised, whole, 0.3), rtol=0, atol=1e-14)


# ------------------------------------------------------------------------------- samples, modalities, and precision


@SPATIAL
def test_another_sample_changes_no_bit_of_ones_own(spatial):
    denoised, positive, negative = several(3, 3, 4, *spatial)
    result = thresholded(9 * denoised, positive, negative, percentile=0.9)
    for row in range(3):
        one = slice(row, row + 1)
        alone = thresholded(9 * denoised[one], positive[one], negative[one], percentile=0.9)
        assert torch.equal(alone, result[one])
    denoised[1], positive[1] = 1e6 * denoised[1], math.nan
    assert torch.equal(thresholded(9 * denoised, positive, negative, percentile=0.9)[[0, 2]], result[[0, 2]])


def test_of_a_packed_latent_each_modality_has_channels_of_its_own():
    denoised, positive, negative = several(3, 2, 1, CUT + 36)
    result = thresholded(9 * denoised, positive, negative, SHAPES)
    for part, shape in zip((slice(None, CUT), slice(CUT, None)), SHAPES, strict=True):
        alone = (x[..., part].reshape(2, *shape[1:]) for x in (9 * denoised, positive, negative))
        assert torch.equal(result[..., part], thresholded(*alone).reshape(2, 1, -1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_channel_without_spread_stays_and_a_range_of_zero_leaves_the_mean(dtype):
    denoised, positive = several(2, 2, 4, 6, 5, dtype=dtype)
    zero = torch.zeros_like(denoised)
    assert torch.equal(thresholded(zero, zero, zero), zero)
    flat = thresholded(denoised, zero, zero)
    mean = denoised.mean((2, 3), keepdim=True).expand_as(flat)
    torch.testing.assert_close(flat, mean, rtol=0, atol=4 * torch.finfo(dtype).eps)
    torch.testing.assert_close(thresholded(zero + 2, positive, zero), zero + 2, rtol=0, atol=4 * torch.finfo(dtype).eps)
    point = denoised[..., 0, 0]  # no space at all: a channel is its mean
    assert torch.equal(thresholded(point, positive[..., 0, 0], zero[..., 0, 0]), point)


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, 2.0**14), (torch.bfloat16, 2.0**120)], ids=str)
def test_the_largest_numbers_of_half_precision_are_numbers_like_others(dtype, largest):
    denoised, positive, negative = (value.clamp(-3, 3) for value in several(3, 2, 4, 64, 64, dtype=dtype))
    small = (denoised, positive / 8, negative / 8)
    result = thresholded(*(x * largest for x in small), mimic_scale=3.0, percentile=0.99)
    assert result.dtype == dtype and result.isfinite().all()
    expected = thresholded(*small, mimic_scale=3.0, percentile=0.99)
    torch.testing.assert_close(result / largest, expected, rtol=0, atol=2 * torch.finfo(dtype).eps)

"""CFG rescale: the contrast of the positive prediction, in every sample and modality by itself."""

import math

import pytest
import torch
from pack.guiders import ClassifierFreeGuidance, GuidanceRescale, PerturbationGuidance
from pack.guiders.base import NEGATIVE, POSITIVE, Branch, Step
from pack.guiders.compose import GuidanceRun
from pack.guiders.linalg import std
from pack.guiders.schedule import Interval
from pack.tests.toy import Gaussian, Mixture, Toy, Worse

ALWAYS = Interval()
SHAPES = ((1, 8, 2, 3, 4), (1, 4, 9))  # of a packed latent: a picture and its sound
CUT = math.prod(SHAPES[0])


def two(*shape: int, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """(denoised so far, positive prediction), with means and stds of their own in each sample."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.arange(1.0, 1 + shape[0]).reshape(-1, *(1,) * (len(shape) - 1))
    one, other = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return (3 * sizes * one + 1).to(dtype), (other + sizes).to(dtype)


def rescaled(denoised, positive, amount=0.7, shapes=()) -> torch.Tensor:
    return GuidanceRescale(amount).begin()(denoised, {POSITIVE: positive}, Step(positive, 2.0, 2.0, shapes=shapes))


@pytest.mark.parametrize("spatial", [(), (7,), (6, 5), (3, 4, 5)], ids=lambda spatial: f"{len(spatial)}-D")
def test_all_of_it_gives_each_sample_the_std_of_the_positive(spatial):
    denoised, positive = two(3, 4, *spatial)
    result = rescaled(denoised, positive, 1.0)
    axes = tuple(range(1, result.ndim))
    torch.testing.assert_close(result.std(axes), positive.std(axes), rtol=1e-12, atol=0)
    torch.testing.assert_close(result / denoised, (std(positive) / std(denoised)).expand_as(result), rtol=1e-12, atol=0)


@pytest.mark.parametrize("amount", [0.3, 0.7])
def test_part_of_it_is_the_papers_mixture_of_all_and_nothing(amount):
    denoised, positive = two(3, 4, 6, 5)
    expected = amount * rescaled(denoised, positive, 1.0) + (1 - amount) * denoised
    torch.testing.assert_close(rescaled(denoised, positive, amount), expected, rtol=1e-14, atol=0)


def test_the_positive_itself_stays_as_it_is():
    _, positive = two(3, 4, 6, 5)
    torch.testing.assert_close(rescaled(positive, positive), positive, rtol=1e-15, atol=0)


@pytest.mark.parametrize("factor", [0.01, 40.0])
def test_all_of_it_does_not_know_how_strong_the_result_was(factor):
    denoised, positive = two(3, 4, 6, 5)
    expected = rescaled(denoised, positive, 1.0)
    torch.testing.assert_close(rescaled(factor * denoised, positive, 1.0), expected, rtol=1e-13, atol=0)


def test_it_finishes_whatever_sum_of_guidances_stands_before_it_and_asks_for_no_row():
    weak = Branch(perturbation=Worse("a"))
    toy = Toy({POSITIVE: Gaussian(1.0, 0.5), NEGATIVE: Mixture((-1.0, 0.5), 0.7), weak: Mixture((0.2, 0.9), 0.4)})
    sum_of_two = [(ClassifierFreeGuidance(8.0), ALWAYS), (PerturbationGuidance(3.0, Worse("a")), ALWAYS)]
    step = Step(two(3, 4, 6, 5)[0], 2.0, 2.0)
    guided = GuidanceRun(sum_of_two)(step, toy)
    finished = GuidanceRun([*sum_of_two, (GuidanceRescale(1.0), ALWAYS)])(step, toy)
    positive = toy.denoisers[POSITIVE](step.x, 2.0)
    assert toy.asked[0] == toy.asked[1] == (POSITIVE, NEGATIVE, weak)
    torch.testing.assert_close(finished, guided * std(positive) / std(guided), rtol=1e-14, atol=0)


@pytest.mark.parametrize("changed", [0, 1], ids=["picture", "sound"])
def test_of_a_packed_latent_each_modality_has_its_own_contrast(changed):
    denoised, positive = two(2, 1, CUT + 36)
    parts = slice(None, CUT), slice(CUT, None)
    result = rescaled(denoised, positive, 1.0, SHAPES)
    for part in parts:
        spread = result[..., part].std(-1)
        torch.testing.assert_close(spread, positive[..., part].std(-1), rtol=1e-12, atol=0)
    denoised, positive = denoised.clone(), positive.clone()
    denoised[..., parts[changed]] *= 1e6
    positive[..., parts[changed]] = math.nan
    other = parts[1 - changed]
    assert torch.equal(rescaled(denoised, positive, 1.0, SHAPES)[..., other], result[..., other])


def test_another_sample_changes_no_bit_of_ones_own():
    denoised, positive = two(3, 4, 2, 6, 5)
    result = rescaled(denoised, positive)
    denoised, positive = denoised.clone(), positive.clone()
    denoised[1] *= 1e6
    positive[1] = math.nan
    assert torch.equal(rescaled(denoised, positive)[[0, 2]], result[[0, 2]])


def test_a_result_without_spread_stays_and_a_positive_without_spread_flattens_it():
    denoised, positive = two(2, 4, 6, 5)
    for flat in (torch.zeros_like(denoised), torch.full_like(denoised, 0.1)):
        torch.testing.assert_close(rescaled(flat, positive), flat, rtol=1e-15, atol=0)
        torch.testing.assert_close(rescaled(denoised, flat), 0.3 * denoised, rtol=1e-14, atol=0)
        torch.testing.assert_close(rescaled(flat, flat), flat, rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_largest_numbers_of_half_precision_give_numbers(dtype):
    denoised, positive = two(2, 4, 64, 64, dtype=dtype)
    large = torch.finfo(dtype).max / 64
    result = rescaled(denoised * large, positive, 1.0)
    assert result.dtype == dtype and result.isfinite().all()
    torch.testing.assert_close(result, rescaled(denoised, positive, 1.0), rtol=4 * torch.finfo(dtype).eps, atol=1e-6)

"""Mahiro: a mean of CFG and w D₊, by how alike the negative and what lies between them are."""

import math

import pytest
import torch
from pack.guiders import ClassifierFreeGuidance, Mahiro
from pack.guiders.base import NEGATIVE, POSITIVE, Step
from pack.guiders.compose import GuidanceRun
from pack.guiders.schedule import Interval
from pack.tests.toy import Gaussian, Mixture, Toy

ALWAYS, CFG, SIGMA = Interval(), 6.0, 0.7
DENOISERS = {POSITIVE: Gaussian(1.0, 0.5), NEGATIVE: Mixture((-1.0, 0.5), 0.7)}
SHAPES = ((1, 8, 2, 3, 4), (1, 4, 9))  # of a packed latent: a picture and its sound
CUT = 8 * 24


def several(count: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def folded(rules, x: torch.Tensor) -> torch.Tensor:
    run = GuidanceRun((rule, ALWAYS) for rule in (ClassifierFreeGuidance(CFG), *rules))
    return run(Step(x, SIGMA, SIGMA, 5, cfg=CFG), Toy(DENOISERS))


def guided(positive, negative, cfg=CFG, shapes=()) -> torch.Tensor:
    """What becomes of CFG's x₀."""
    step = Step(torch.empty(0), SIGMA, SIGMA, cfg=cfg, shapes=shapes)
    return Mahiro().begin()(negative + cfg * (positive - negative), {POSITIVE: positive, NEGATIVE: negative}, step)


def likeness(positive: torch.Tensor, negative: torch.Tensor, cfg: float) -> float:
    """Of one sample, [channels, *spatial], position by position."""
    between = (cfg * positive + negative + cfg * (positive - negative)) / 2
    found = []
    for one, other in zip((cfg * negative).flatten(1).T, between.flatten(1).T, strict=True):
        dot = sum(
            math.copysign(math.sqrt(abs(a * b)), a * b) for a, b in zip(one.tolist(), other.tolist(), strict=True)
        )
        found.append(dot / math.sqrt(one.abs().sum() * other.abs().sum()))
    return sum(found) / len(found)


@pytest.mark.parametrize("spatial", [(7,), (6, 5), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("cfg", [0.5, 2.0, 8.0])
def test_it_is_the_mean_of_cfg_and_of_the_positive_alone_by_their_likeness(cfg, spatial):
    positive, negative = several(2, 3, 4, *spatial)
    for row, result in enumerate(guided(positive, negative, cfg)):
        plain = negative[row] + cfg * (positive[row] - negative[row])
        share = 2 * (1 + likeness(positive[row], negative[row], cfg))  # of 4
        expected = (share * plain + (4 - share) * cfg * positive[row]) / 4
        assert 0.1 < share < 3.9
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-13)


def test_a_negative_along_the_positive_changes_nothing_and_an_opposite_one_is_given_back():
    (positive,) = several(1, 2, 4, 6, 5)
    torch.testing.assert_close(guided(positive, positive / 2), (CFG + 1) / 2 * positive, rtol=0, atol=1e-13)
    torch.testing.assert_close(guided(positive, -positive), CFG * positive, rtol=0, atol=1e-13)


def test_zeros_are_not_alike_and_give_no_nan():
    (one,) = several(1, 2, 4, 6, 5)
    zero = torch.zeros_like(one)
    assert torch.equal(guided(one, zero), CFG * one) and torch.equal(guided(zero, zero), zero)
    assert guided(zero, one).isfinite().all()


def test_each_sample_and_each_modality_has_a_likeness_of_its_own():
    positive, negative = several(2, 2, 1, CUT + 36)
    together = guided(positive, negative, shapes=SHAPES)
    for part, shape in ((slice(None, CUT), SHAPES[0]), (slice(CUT, None), SHAPES[1])):
        alone = guided(*(value[..., part].reshape(2, *shape[1:]) for value in (positive, negative)))
        torch.testing.assert_close(together[..., part], alone.reshape(2, 1, -1), rtol=0, atol=1e-14)
    positive[..., CUT:] = math.nan
    positive[0] = math.inf
    assert torch.equal(guided(positive, negative, shapes=SHAPES)[1, :, :CUT], together[1, :, :CUT])


def test_numbers_whose_squares_are_too_large_for_float16_are_numbers_like_others():
    positive, negative = (value.half().clamp(-3, 3) for value in several(2, 2, 4, 16, 16))
    small, large = (guided(size * positive, size * negative, 2.0) for size in (1, 2**12))
    assert large.dtype == torch.float16 and not (2**12 * positive).square().isfinite().all()
    torch.testing.assert_close(large / 2**12, small, rtol=0, atol=8 * torch.finfo(torch.float16).eps)

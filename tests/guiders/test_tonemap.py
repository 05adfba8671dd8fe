"""Tonemap: strong guidance becomes weaker, position by position, and its direction stays."""

import math

import pytest
import torch
from pack.guiders import Tonemap
from pack.guiders.base import POSITIVE, Step

SHAPES = ((1, 8, 2, 3, 4), (1, 4, 9))  # of a packed latent: a picture and its sound
CUT = math.prod(SHAPES[0])
SPATIAL = pytest.mark.parametrize("spatial", [(7,), (6, 5), (3, 4, 5)], ids=lambda spatial: f"{len(spatial)}-D")


def several(count: int, *shape: int, dtype=torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def mapped(denoised, positive, shapes=(), **settings) -> torch.Tensor:
    step = Step(denoised, 2.0, 2.0, shapes=shapes)
    return Tonemap(**settings).begin()(denoised, {POSITIVE: positive}, step)


def lengths(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(x, dim=1, keepdim=True)


@SPATIAL
@pytest.mark.parametrize("multiplier", [0.2, 1.0, 5.0])
def test_lengths_are_reinhards_and_directions_stay(multiplier, spatial):
    delta, positive = several(2, 3, 4, *spatial)
    found = mapped(positive + 3 * delta, positive, multiplier=multiplier) - positive
    before = lengths(3 * delta)
    axes = tuple(range(1, before.ndim))
    top = multiplier * (before.mean(axes, keepdim=True) + 5 * before.std(axes, keepdim=True))
    torch.testing.assert_close(lengths(found), top * (before / top) / (1 + before / top), rtol=1e-13, atol=0)
    torch.testing.assert_close(found / lengths(found), delta / lengths(delta), rtol=0, atol=1e-13)
    assert (lengths(found) < top).all()


@pytest.mark.parametrize("factor", [1e-3, 40.0])
def test_of_a_multiple_it_is_the_multiple(factor):
    delta, positive = several(2, 3, 4, 6, 5)
    one = mapped(positive + delta, positive) - positive
    torch.testing.assert_close(
        mapped(positive + factor * delta, positive) - positive, factor * one, rtol=0, atol=1e-14 * max(factor, 1)
    )


def test_the_amount_is_how_far_it_goes_and_it_asks_for_no_row():
    denoised, positive = several(2, 3, 4, 6, 5)
    expected = torch.lerp(denoised, mapped(denoised, positive), 0.3)
    torch.testing.assert_close(mapped(denoised, positive, amount=0.3), expected, rtol=0, atol=1e-15)
    assert Tonemap().branches() == (POSITIVE,)


@SPATIAL
def test_another_sample_changes_no_bit_of_ones_own(spatial):
    denoised, positive = several(2, 3, 4, *spatial)
    result = mapped(denoised, positive)
    for row in range(3):
        assert torch.equal(mapped(denoised[row : row + 1], positive[row : row + 1]), result[row : row + 1])
    denoised[1], positive[1] = 1e6 * denoised[1], math.nan
    assert torch.equal(mapped(denoised, positive)[[0, 2]], result[[0, 2]])


def test_of_a_packed_latent_each_modality_has_channels_of_its_own():
    denoised, positive = several(2, 2, 1, CUT + 36)
    result = mapped(denoised, positive, SHAPES)
    for part, shape in zip((slice(None, CUT), slice(CUT, None)), SHAPES, strict=True):
        alone = mapped(*(x[..., part].reshape(2, *shape[1:]) for x in (denoised, positive)))
        assert torch.equal(result[..., part], alone.reshape(2, 1, -1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_no_direction_stays_none_and_a_single_place_is_a_number(dtype):
    denoised, positive = several(2, 2, 4, 6, 5, dtype=dtype)
    assert torch.equal(mapped(positive, positive), positive)
    for point in (mapped(*(x[..., 0, 0] for x in (denoised, positive))), mapped(denoised[:, :, :1, :1], positive)):
        assert point.dtype == dtype and point.isfinite().all()


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, 2.0**14), (torch.bfloat16, 2.0**124)], ids=str)
def test_numbers_too_large_for_a_square_in_float32_are_numbers_like_others(dtype, largest):
    denoised, positive = (value.clamp(-3, 3) for value in several(2, 2, 4, 64, 64, dtype=dtype))
    positive = positive / 8
    result = mapped(denoised * largest, positive * largest)
    assert result.dtype == dtype and result.isfinite().all()
    torch.testing.assert_close(result / largest, mapped(denoised, positive), rtol=0, atol=2 * torch.finfo(dtype).eps)

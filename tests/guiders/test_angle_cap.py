"""Angle cap: the result turns back in the plane of it and the positive, and its length stays."""

import math

import pytest
import torch
from pack.guiders import AngleCap, NormCap
from pack.guiders.base import POSITIVE, Step
from pack.guiders.linalg import dot, norm, project
from pack.tests.toy import Gaussian, Mixture

SHAPES = ((1, 8, 2, 3, 4), (1, 4, 9))  # of a packed latent: a picture and its sound
CUT = math.prod(SHAPES[0])


def several(count: int, *shape: int, dtype=torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def capped(denoised, positive, max_angle=60.0, shapes=()) -> torch.Tensor:
    step = Step(denoised, 2.0, 2.0, shapes=shapes)
    return AngleCap(max_angle).begin()(denoised, {POSITIVE: positive}, step)


def angle(one, other) -> torch.Tensor:
    """In degrees, of each sample."""
    return torch.rad2deg(torch.acos((dot(one, other) / (norm(one) * norm(other))).clamp(-1, 1))).flatten()


def at_angles(positive, *degrees: float) -> torch.Tensor:
    """Predictions at these angles to the samples of `positive`, 1.5 times as long."""
    across = project(several(2, *positive.shape)[1], positive)[1]
    across = across * norm(positive) / norm(across)
    turns = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64)).reshape(-1, *(1,) * (positive.ndim - 1))
    return 1.5 * (turns.cos() * positive + turns.sin() * across)


@pytest.mark.parametrize("spatial", [(), (7,), (6, 5), (3, 4, 5)], ids=lambda spatial: f"{len(spatial)}-D")
@pytest.mark.parametrize("most", [20.0, 60.0, 120.0])
def test_a_greater_angle_becomes_the_greatest_and_a_smaller_one_changes_no_bit(most, spatial):
    positive = several(1, 4, 4, *spatial)[0]
    denoised = at_angles(positive, 5.0, 50.0, 100.0, 170.0)
    result = capped(denoised, positive, most)
    expected = torch.tensor([5.0, 50.0, 100.0, 170.0], dtype=torch.float64).clamp(max=most)
    torch.testing.assert_close(angle(result, positive), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(norm(result), norm(denoised), rtol=1e-14, atol=0)
    torch.testing.assert_close(result, at_angles(positive, *expected.tolist()), rtol=0, atol=1e-13)
    for row in (0, *([1] if most > 50 else [])):
        assert torch.equal(result[row], denoised[row])


def test_at_zero_only_the_length_of_the_result_is_left():
    denoised, positive = several(2, 3, 4, 6, 5)
    expected = positive * norm(denoised) / norm(positive)
    torch.testing.assert_close(capped(denoised, positive, 0.0), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("most", [3.0, 60.0])
@pytest.mark.parametrize("weight", [2.0, 8.0, 30.0])
def test_the_authors_code_turns_by_less_than_its_angle_and_for_small_ones_as_cfg_and_the_cap_do(weight, most):
    x, sigma = several(1, 3, 4, 6, 5)[0], 0.6
    positive = Gaussian(1.0, 0.5)(x, sigma)
    negative = positive + 0.003 * (Mixture((-1.0, 0.5), 0.7)(x, sigma) - positive)
    theta = torch.deg2rad(angle(positive, negative)).reshape(3, 1, 1, 1)
    turn = ((weight - 1) * theta).clamp(max=math.radians(most))
    theirs = turn.cos() * positive + turn.sin() / theta.sin() * project(positive, negative)[1]
    of_theirs = torch.atan2(turn.sin() * theta.cos(), turn.cos() + turn.sin() * theta.sin())
    torch.testing.assert_close(angle(theirs, positive), torch.rad2deg(of_theirs).flatten(), rtol=1e-6, atol=0)
    assert (of_theirs < turn).all()
    guidance = (weight - 1) * (positive - negative)
    found = torch.deg2rad(angle(capped(positive + guidance, positive, most), positive))
    small = (weight * norm(positive - negative) / norm(positive)).flatten()  # may be the difference, as a fraction
    assert (small < 0.15).all() and ((found / of_theirs.flatten() - 1).abs() < small).all()


def test_with_a_norm_cap_after_it_the_result_is_the_positive_turned():
    positive = several(1, 2, 4, 6, 5)[0]
    turned = capped(at_angles(positive, 40.0, 100.0), positive)
    both = NormCap().begin()(turned, {POSITIVE: positive}, Step(positive, 2.0, 2.0))
    torch.testing.assert_close(both, at_angles(positive, 40.0, 60.0) / 1.5, rtol=0, atol=1e-14)


def test_it_asks_for_no_row():
    assert AngleCap(20.0).branches() == (POSITIVE,)


# ------------------------------------------------------------------------------- samples, modalities, and precision


def test_another_sample_changes_no_bit_of_ones_own():
    denoised, positive = several(2, 3, 4, 2, 6, 5)
    result = capped(denoised, positive)
    for row in range(3):
        assert torch.equal(capped(denoised[row : row + 1], positive[row : row + 1]), result[row : row + 1])
    denoised[1], positive[1] = 1e6 * denoised[1], math.nan
    assert torch.equal(capped(denoised, positive)[[0, 2]], result[[0, 2]])


@pytest.mark.parametrize("changed", [0, 1], ids=["picture", "sound"])
def test_of_a_packed_latent_each_modality_has_its_own_angle(changed):
    denoised, positive = several(2, 2, 1, CUT + 36)
    parts = slice(None, CUT), slice(CUT, None)
    result = capped(denoised, positive, shapes=SHAPES)
    for part in parts:
        alone = capped(denoised[..., part].clone(), positive[..., part].clone())
        torch.testing.assert_close(result[..., part], alone, rtol=0, atol=1e-14)
    denoised[..., parts[changed]] *= 1e6
    positive[..., parts[changed]] = math.nan
    other = parts[1 - changed]
    assert torch.equal(capped(denoised, positive, shapes=SHAPES)[..., other], result[..., other])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_without_a_direction_to_turn_to_or_anything_to_turn_the_result_stays(dtype):
    denoised, positive = several(2, 2, 4, 6, 5, dtype=dtype)
    zero = torch.zeros_like(denoised)
    assert torch.equal(capped(denoised, zero), denoised)
    assert torch.equal(capped(zero, positive), zero)
    assert torch.equal(capped(positive, positive), positive)
    assert capped(-positive, positive).isfinite().all()


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, 2.0**14), (torch.bfloat16, 2.0**124)], ids=str)
def test_numbers_too_large_for_a_square_in_float32_are_numbers_like_others(dtype, largest):
    denoised, positive = (value.clamp(-2, 2) for value in several(2, 2, 4, 64, 64, dtype=dtype))
    result = capped(denoised * largest, positive * largest)
    assert result.dtype == dtype and result.isfinite().all()
    small = capped(denoised, positive)
    assert not torch.equal(small, denoised)
    torch.testing.assert_close(result / largest, small, rtol=0, atol=4 * torch.finfo(dtype).eps)

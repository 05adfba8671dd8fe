"""Norm cap: of every sample, modality or position by itself, in the picture or in the velocity."""

import math

import pytest
import torch
from pack.guiders import NormCap
from pack.guiders.base import NEGATIVE, POSITIVE, Step
from pack.guiders.linalg import dot, norm
from pack.tests.toy import Gaussian, Mixture

NORMS = ("whole", "position", "step")
SHAPES = ((1, 8, 2, 3, 4), (1, 4, 9))  # of a packed latent: a picture and its sound
CUT = math.prod(SHAPES[0])
SIGMA = 0.6


def several(count: int, *shape: int, dtype=torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def capped(denoised, positive, x=None, shapes=(), **settings) -> torch.Tensor:
    step = Step(denoised if x is None else x, SIGMA, SIGMA, shapes=shapes)
    return NormCap(**settings).begin()(denoised, {POSITIVE: positive}, step)


def over_channels(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(x, dim=1, keepdim=True)


@pytest.mark.parametrize("spatial", [(), (7,), (6, 5), (3, 4, 5)], ids=lambda spatial: f"{len(spatial)}-D")
@pytest.mark.parametrize(("kind", "length"), [("whole", norm), ("position", over_channels)])
def test_what_is_too_long_is_as_long_as_the_ratio_allows_and_all_else_stays(kind, length, spatial):
    denoised, positive = several(2, 3, 4, *spatial)
    denoised = denoised * torch.tensor([0.3, 1.2, 5.0]).reshape(3, *(1,) * (denoised.ndim - 1))
    result = capped(denoised, positive, norm=kind, ratio=1.5)
    factor = (1.5 * length(positive) / length(denoised)).clamp(max=1)
    assert (factor < 1).any() and (factor == 1).any()
    torch.testing.assert_close(result, denoised * factor, rtol=1e-14, atol=0)
    assert torch.equal(result[0], denoised[0]) or kind == "position"


@pytest.mark.parametrize("weight", [2.0, 4.0, 15.0])
@pytest.mark.parametrize("ratio", [1.0, 1.05, 1.3])
def test_step_is_pmc_cfg(ratio, weight):
    """Of the paper's β ∈ [0, w − 1], the greatest at which |D₊ + β (D₊ − D₋)| is at most Γ |D₊|."""
    x = several(1, 3, 4, 6, 5)[0] * torch.tensor([1.0, 3.0, 10.0]).reshape(3, 1, 1, 1)
    positive, negative = Gaussian(0.4, 0.5)(x, SIGMA), Mixture((-1.0, 0.5), 0.7)(x, SIGMA)
    gap = positive - negative
    a, b, q = dot(gap, gap), dot(positive, gap), dot(positive, positive)
    root = (-b + (b.square() + (ratio**2 - 1) * a * q).sqrt()) / a
    beta = root.clamp(max=weight - 1)
    result = capped(positive + (weight - 1) * gap, positive, norm="step", ratio=ratio)
    torch.testing.assert_close(result, positive + beta * gap, rtol=0, atol=1e-13)
    assert (norm(result) <= ratio * norm(positive) * (1 + 1e-14)).all()


def test_step_leaves_alone_what_is_short_enough():
    denoised, positive = several(2, 3, 4, 6, 5)
    for shorter in (0.5 * positive + 0.1 * denoised, positive):
        torch.testing.assert_close(capped(shorter, positive, norm="step"), shorter, rtol=0, atol=1e-15)


def test_velocity_is_the_cap_of_lumina_2_and_z_image_on_what_the_network_gives():
    x, denoised, positive = several(3, 3, 4, 6, 5)
    guided, wanted = ((x - d) / SIGMA for d in (3 * denoised, positive))
    assert (norm(guided) > norm(wanted)).all()
    velocity = guided * (norm(wanted) / norm(guided))
    result = capped(3 * denoised, positive, x, of="velocity")
    torch.testing.assert_close(result, x - SIGMA * velocity, rtol=0, atol=1e-14)
    assert not torch.allclose(result, capped(3 * denoised, positive, x), rtol=0.1, atol=0.1)


def test_velocity_per_position_is_qwen_images_where_that_shortens():
    x, denoised, positive = several(3, 2, 4, 6, 5)
    guided, wanted = ((x - d) / SIGMA for d in (denoised, positive))
    theirs = x - SIGMA * guided * over_channels(wanted) / over_channels(guided)
    longer = over_channels(guided) > over_channels(wanted)
    assert longer.any() and not longer.all()
    result = capped(denoised, positive, x, norm="position", of="velocity")
    torch.testing.assert_close(result, torch.where(longer, theirs, denoised), rtol=0, atol=1e-14)


@pytest.mark.parametrize("norm", NORMS)
def test_the_amount_is_how_far_it_goes(norm):
    denoised, positive = several(2, 3, 4, 6, 5)
    whole = capped(3 * denoised, positive, norm=norm)
    expected = torch.lerp(3 * denoised, whole, 0.3)
    torch.testing.assert_close(capped(3 * denoised, positive, norm=norm, amount=0.3), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("norm", NORMS)
def test_it_asks_for_no_row(norm):
    assert NormCap(norm=norm).branches() == (POSITIVE,) and NEGATIVE not in NormCap(norm=norm).branches()


@pytest.mark.parametrize("kind", ["whole", "position"])
def test_once_more_changes_nothing(kind):
    denoised, positive = several(2, 3, 4, 6, 5)
    once = capped(3 * denoised, positive, norm=kind)
    torch.testing.assert_close(capped(once, positive, norm=kind), once, rtol=1e-15, atol=0)


# ------------------------------------------------------------------------------- samples, modalities, and precision


@pytest.mark.parametrize("of", ["prediction", "velocity"])
@pytest.mark.parametrize("norm", NORMS)
def test_another_sample_changes_no_bit_of_ones_own(norm, of):
    x, denoised, positive = several(3, 3, 4, 2, 6, 5)
    denoised = 3 * denoised
    result = capped(denoised, positive, x, norm=norm, of=of)
    for row in range(3):
        one = slice(row, row + 1)
        assert torch.equal(capped(denoised[one], positive[one], x[one], norm=norm, of=of), result[one])
    denoised[1], positive[1] = 1e6 * denoised[1], math.nan
    assert torch.equal(capped(denoised, positive, x, norm=norm, of=of)[[0, 2]], result[[0, 2]])


@pytest.mark.parametrize("changed", [0, 1], ids=["picture", "sound"])
@pytest.mark.parametrize("norm", NORMS)
def test_of_a_packed_latent_each_modality_has_its_own_length(norm, changed):
    denoised, positive = several(2, 2, 1, CUT + 36)
    denoised = 3 * denoised
    parts = slice(None, CUT), slice(CUT, None)
    result = capped(denoised, positive, shapes=SHAPES, norm=norm)
    for part, shape in zip(parts, SHAPES, strict=True):
        alone = capped(*(d[..., part].reshape(2, *shape[1:]) for d in (denoised, positive)), norm=norm)
        torch.testing.assert_close(result[..., part], alone.reshape(2, 1, -1), rtol=1e-13, atol=1e-14)
    denoised, positive = denoised.clone(), positive.clone()
    denoised[..., parts[changed]] *= 1e6
    positive[..., parts[changed]] = math.nan
    other = parts[1 - changed]
    assert torch.equal(capped(denoised, positive, shapes=SHAPES, norm=norm)[..., other], result[..., other])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_a_positive_of_zero_leaves_nothing_and_a_result_of_zero_stays(norm, dtype):
    denoised, positive = several(2, 2, 4, 6, 5, dtype=dtype)
    zero = torch.zeros_like(denoised)
    assert torch.equal(capped(zero, zero, norm=norm), zero)
    assert torch.equal(capped(denoised, zero, norm=norm), zero)
    assert torch.equal(capped(zero, positive, norm=norm), zero)
    assert torch.equal(capped(positive, positive, norm=norm), positive)


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, 2.0**14), (torch.bfloat16, 2.0**124)], ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_numbers_too_large_for_a_square_in_float32_are_numbers_like_others(norm, dtype, largest):
    denoised, positive = (value.clamp(-3.4, 3.4) for value in several(2, 2, 4, 64, 64, dtype=dtype))
    positive = positive / 8
    result = capped(denoised * largest, positive * largest, norm=norm, ratio=1.05)
    assert result.dtype == dtype and result.isfinite().all()
    small = capped(denoised, positive, norm=norm, ratio=1.05)
    torch.testing.assert_close(result / largest, small, rtol=0, atol=2 * torch.finfo(dtype).eps)

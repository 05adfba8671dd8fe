"""FDG and FreSca: the direction so far has a factor on its coarse part and one on its fine part."""

import math

import pytest
import torch
from diffusers.guiders import FrequencyDecoupledGuidance
from pack.guiders import ClassifierFreeGuidance, FrequencyDecoupled, PerturbationGuidance
from pack.guiders.base import NEGATIVE, POSITIVE, Branch, Step
from pack.guiders.compose import GuidanceRun
from pack.guiders.schedule import Interval
from pack.tests.toy import Gaussian, Mixture, Toy, Worse

ALWAYS, SIGMA = Interval(), 0.7
WEAK = Branch(perturbation=Worse("a"))
DENOISERS = {POSITIVE: Gaussian(1.0, 0.5), NEGATIVE: Mixture((-1.0, 0.5), 0.7), WEAK: Mixture((0.2, 0.9), 0.4)}
SHAPES = ((1, 8, 2, 6, 4), (1, 4, 9))  # of a packed latent: a video and its sound
CUT = math.prod(SHAPES[0])
BANDS = pytest.mark.parametrize("bands", ["pyramid", "fourier"])
SIZES = [(1,), (2,), (7,), (8,), (1, 1), (2, 3), (6, 5), (16, 24), (3, 1, 8), (3, 6, 5)]


def several(count: int, *shape: int, dtype=torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def applied(denoised, positive, shapes=(), **settings) -> torch.Tensor:
    step = Step(torch.empty(0), SIGMA, SIGMA, shapes=shapes)
    return FrequencyDecoupled(**settings).begin()(denoised, {POSITIVE: positive}, step)


def bands_of(direction: torch.Tensor, shapes=(), **settings) -> tuple[torch.Tensor, torch.Tensor]:
    """(coarse, fine)"""
    zero = torch.zeros_like(direction)
    low, high = ({"low": factor, "high": 1 - factor} for factor in (1.0, 0.0))
    return applied(direction, zero, shapes, **settings, **low), applied(direction, zero, shapes, **settings, **high)


def wave(count: float, size: int) -> torch.Tensor:
    """So many waves along a row, [1, 1, size]."""
    return torch.cos(2 * math.pi * count * torch.arange(size, dtype=torch.float64) / size + 0.3)[None, None]


@BANDS
@pytest.mark.parametrize("spatial", SIZES, ids=str)
def test_the_bands_add_up_to_the_direction_whatever_its_size(bands, spatial):
    denoised, positive = several(2, 2, 4, *spatial)
    for factor in (0.0, 1.0, 3.0):
        result = applied(denoised, positive, high=factor, low=factor, bands=bands, cutoff=2)
        torch.testing.assert_close(result, positive + factor * (denoised - positive), rtol=0, atol=1e-14)
    coarse, fine = bands_of(denoised, bands=bands, cutoff=2)
    torch.testing.assert_close(coarse + fine, denoised, rtol=0, atol=1e-14)


def test_it_asks_for_no_row_and_is_not_there_at_two_ones():
    assert FrequencyDecoupled().branches() == FrequencyDecoupled(1.0, 0.5).branches() == (POSITIVE,)
    assert FrequencyDecoupled(1.0, 1.0, "fourier").branches() == ()


# ---------------------------------------------------------------------------------------------------------- pyramid


@pytest.mark.parametrize("spatial", [(16, 24), (2, 16, 6), (128, 128)], ids=str)
@pytest.mark.parametrize("weight", [5.0, 3.0])
def test_with_cfg_alone_it_is_diffusers_guider_by_the_papers_weights(spatial, weight):
    """D₋ + 5 Δ_low + 10 Δ_high: l = (5 − 1)/(w − 1) and h = (10 − 1)/(w − 1), on whatever the network gives."""
    (x,) = several(1, 2, 4, *spatial)
    rule = FrequencyDecoupled(high=(10 - 1) / (weight - 1), low=(5 - 1) / (weight - 1))
    run = GuidanceRun([(ClassifierFreeGuidance(weight), ALWAYS), (rule, ALWAYS)])
    result = run(Step(x, SIGMA, SIGMA, cfg=weight), Toy(DENOISERS))
    pictures = (-1, x.shape[1], *spatial[-2:])
    velocities = (((x - DENOISERS[branch](x, SIGMA)) / SIGMA).reshape(pictures) for branch in (POSITIVE, NEGATIVE))
    theirs = FrequencyDecoupledGuidance([10.0, 5.0]).forward(*velocities).pred.reshape(x.shape)
    torch.testing.assert_close(result, x - SIGMA * theirs, rtol=0, atol=1e-13)


def test_what_is_equal_everywhere_is_coarse_and_what_alternates_is_fine():
    flat = torch.full((1, 2, 8, 6), 3.0, dtype=torch.float64)
    for values in (flat, flat[..., :5], flat[..., :5, 0]):
        assert torch.equal(bands_of(values)[0], values)
    rows = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(4)
    board = (rows[:, None] * rows[:6]).expand(1, 2, 8, 6)
    assert torch.equal(bands_of(board)[1], board)


def test_a_slower_wave_is_coarser():
    shares = [bands_of(wave(count, 64))[0].norm() / wave(count, 64).norm() for count in (1, 4, 8, 16, 32)]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0.98 and shares[-1] < 1e-10


# ---------------------------------------------------------------------------------------------------------- Fourier


@pytest.mark.parametrize(("count", "share"), [(0, 1.0), (3, 1.0), (4, 1.0), (5, 0.5), (6, 0.0), (16, 0.0)])
def test_less_waves_than_the_cutoff_are_coarse_and_the_cutoff_itself_is_so_by_half(count, share):
    row = wave(count, 33)
    torch.testing.assert_close(bands_of(row, bands="fourier", cutoff=5)[0], share * row, rtol=0, atol=1e-13)


def test_the_coarse_frequencies_are_a_square():
    across, down = wave(4, 32)[0, 0], wave(4, 24)[0, 0]
    product = (down[:, None] * across)[None, None]  # 4 waves on each axis
    torch.testing.assert_close(bands_of(product, bands="fourier", cutoff=5)[0], product, rtol=0, atol=1e-13)
    fast = (wave(6, 24)[0, 0][:, None] * across)[None, None]
    torch.testing.assert_close(bands_of(fast, bands="fourier", cutoff=5)[1], fast, rtol=0, atol=1e-13)


def test_a_cutoff_above_half_the_size_leaves_nothing_fine():
    (direction,) = several(1, 2, 4, 6, 8)
    torch.testing.assert_close(bands_of(direction, bands="fourier", cutoff=4)[0], direction, rtol=0, atol=1e-14)


# ------------------------------------------------------------------------------- terms, samples, modalities, precision


@BANDS
def test_it_acts_on_all_that_stands_before_it_and_on_nothing_after(bands):
    (x,) = several(1, 2, 4, 6, 5)
    cfg, pag, rule = ClassifierFreeGuidance(4.0), PerturbationGuidance(2.0, Worse("a")), FrequencyDecoupled(0, 0, bands)

    def result(*rules) -> torch.Tensor:
        return GuidanceRun((each, ALWAYS) for each in rules)(Step(x, SIGMA, SIGMA, cfg=4.0), Toy(DENOISERS))

    torch.testing.assert_close(result(cfg, pag, rule), result(), rtol=0, atol=1e-14)
    torch.testing.assert_close(result(cfg, rule, pag), result(pag), rtol=0, atol=1e-14)


@BANDS
@pytest.mark.parametrize("spatial", [(7,), (6, 5), (3, 6, 5)], ids=str)
def test_another_sample_or_frame_changes_nothing_of_ones_own(bands, spatial):
    denoised, positive = several(2, 3, 4, *spatial)
    result = applied(denoised, positive, bands=bands, cutoff=2)
    for row in range(3):
        alone = applied(denoised[row : row + 1], positive[row : row + 1], bands=bands, cutoff=2)
        torch.testing.assert_close(alone, result[row : row + 1], rtol=0, atol=1e-14)
    denoised[1] = math.nan
    assert torch.equal(applied(denoised, positive, bands=bands, cutoff=2)[[0, 2]], result[[0, 2]])
    if len(spatial) == 3:
        frames = [applied(denoised[:1, :, t], positive[:1, :, t], bands=bands, cutoff=2) for t in range(3)]
        torch.testing.assert_close(torch.stack(frames, 2), result[:1], rtol=0, atol=1e-14)


@BANDS
def test_modalities_of_a_packed_latent_have_bands_by_their_own_shapes(bands):
    denoised, positive = several(2, 2, 1, CUT + 36)
    result = applied(denoised, positive, SHAPES, bands=bands, cutoff=2)
    for part, shape in ((slice(None, CUT), SHAPES[0]), (slice(CUT, None), SHAPES[1])):
        alone = (value[..., part].reshape(2, *shape[1:]) for value in (denoised, positive))
        expected = applied(*alone, bands=bands, cutoff=2).reshape(2, 1, -1)
        torch.testing.assert_close(result[..., part], expected, rtol=0, atol=1e-14)


@BANDS
def test_no_direction_gives_the_positive(bands):
    (positive,) = several(1, 2, 4, 6, 5)
    assert torch.equal(applied(positive, positive, bands=bands), positive)


@BANDS
@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, 2.0**13), (torch.bfloat16, 2.0**100)], ids=str)
def test_large_numbers_of_half_precision_are_numbers_like_others(bands, dtype, largest):
    denoised, positive = (value.clamp(-3, 3) / 2 for value in several(2, 2, 4, 16, 16, dtype=dtype))
    result = applied(denoised * largest, positive * largest, bands=bands, cutoff=4)
    small = applied(denoised, positive, bands=bands, cutoff=4)
    assert result.dtype == dtype and result.isfinite().all()
    torch.testing.assert_close(result / largest, small, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_bands_without_a_name_are_refused():
    with pytest.raises(ValueError, match='bands is "wavelet"; it must be one of pyramid, fourier'):
        FrequencyDecoupled(bands="wavelet")

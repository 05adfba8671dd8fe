"""How a picture is cut into windows and put together again, and the rule that guides by it."""

import itertools

import pytest
import torch
from pack.guiders import SlidingWindowGuidance
from pack.guiders.base import POSITIVE, Branch, Step, WeakModelRef
from pack.guiders.windows import Window, Windows

SETTINGS = [Windows(*pair) for pair in itertools.product((0.2, 0.5, 0.625, 0.75, 0.95), (0.0, 0.33, 0.75))]
SIDES = [1, 2, 3, 5, 8, 9, 12, 16, 18, 30, 44, 64, 90, 96, 104, 128, 152, 160, 1024]
EVERY = pytest.mark.parametrize("windows", SETTINGS, ids=lambda w: f"{w.size}-{w.overlap}")


def latent(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def stitched_of(network, windows: Windows, x: torch.Tensor) -> torch.Tensor:
    return windows.stitched([network(crop) for crop in windows.crops(x)], *x.shape[-2:])


@EVERY
@pytest.mark.parametrize("side", SIDES)
def test_windows_are_of_one_size_begin_and_end_with_the_picture_and_leave_nothing_out(windows, side):
    places = [(window.left, window.width) for window in windows.of(1, side)]
    (width,) = {width for _, width in places}
    begins = [begin for begin, _ in places]
    assert begins[0] == 0 and begins[-1] + width == side
    assert all(0 < after - before <= width for before, after in itertools.pairwise(begins))
    assert (width == side) == (len(places) == 1)


@EVERY
@pytest.mark.parametrize("side", SIDES)
def test_neighbours_overlap_as_much_as_is_asked_for_and_one_window_less_would_not(windows, side):
    places = windows.of(1, side)
    width, least = places[0].width, places[0].width * windows.overlap
    grain = next(grain for grain in (16, 8, 4, 2, 1) if side % grain == 0 and grain <= max(2, side // 8))
    for before, after in itertools.pairwise(places):
        assert before.left + width - after.left > least - 2 * grain  # the overlap and a window's place are rounded
    if len(places) > 2:
        assert (side - width) / (len(places) - 2) > width - least - grain


@pytest.mark.parametrize("patch", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("count", [8, 11, 13, 30, 64])
@EVERY
def test_of_a_picture_of_whole_patches_windows_are_of_whole_patches(windows, count, patch):
    for window in windows.of(count * patch, count * patch):
        assert not any(number % patch for number in window)


def test_the_papers_windows_are_four_of_five_eighths():
    expected = [Window(top, left, 40, 40) for top in (0, 24) for left in (0, 24)]
    assert list(Windows(0.625, 0.4).of(64, 64)) == list(Windows(0.625, 0.33).of(64, 64)) == expected


def test_at_the_defaults_a_picture_of_1024_pixels_has_four_windows_of_768():
    setting = SlidingWindowGuidance()
    windows = Windows(setting.window, setting.overlap).of(128, 128)
    assert list(windows) == [Window(top, left, 96, 96) for top in (0, 32) for left in (0, 32)]


@EVERY
@pytest.mark.parametrize("shape", [(2, 3, 12, 18), (1, 4, 16, 16), (2, 3, 2, 8, 10), (1, 1, 5, 1)], ids=str)
def test_stitching_is_a_partition_of_unity(windows, shape):
    x = latent(*shape)
    ones = windows.stitched([torch.ones_like(crop) for crop in windows.crops(x)], *shape[-2:])
    assert torch.equal(ones, torch.ones_like(x))
    for pointwise in (lambda crop: crop, lambda crop: crop.tanh() * 3 - 1):
        torch.testing.assert_close(stitched_of(pointwise, windows, x), pointwise(x), rtol=0, atol=1e-14)


@EVERY
def test_a_network_that_sees_its_neighbours_alone_differs_only_at_the_inner_edges_of_windows(windows):
    x, kernel = latent(1, 2, 32, 48), latent(2, 2, 3, 3)

    def network(crop):
        return torch.nn.functional.conv2d(crop, kernel, padding=1)

    at_an_edge = torch.zeros(32, 48, dtype=torch.bool)
    for top, left, height, width in windows.of(32, 48):
        for row in {top, top + height - 1} - {0, 31}:
            at_an_edge[row, left : left + width] = True
        for column in {left, left + width - 1} - {0, 47}:
            at_an_edge[top : top + height, column] = True
    different = ((stitched_of(network, windows, x) - network(x)).abs() > 1e-12).any(1)[0]
    assert torch.equal(different, at_an_edge)


def test_a_cell_in_several_windows_is_their_mean():
    windows = Windows(0.5, 0.0)
    crops = [torch.full((1, 1, 2, 4), float(value)) for value in (1, 2, 3, 4)]
    assert windows.stitched(crops, 4, 8)[0, 0].tolist() == [[1.0] * 4 + [2.0] * 4] * 2 + [[3.0] * 4 + [4.0] * 4] * 2
    overlapping = Windows(0.75, 0.0)
    assert overlapping.counts(8, 8)[0].tolist() == [1, 1, 2, 2, 2, 2, 1, 1]
    assert overlapping.counts(8, 8)[3].tolist() == [2, 2, 4, 4, 4, 4, 2, 2]


def test_a_linear_network_and_its_windows_are_the_same_in_every_parametrisation():
    """D = A x + B ε cell by cell, so the mean of D over windows is A x + B of the mean of ε."""
    windows, x, (a, b) = Windows(0.75, 0.33), latent(1, 2, 16, 16), (0.7, -0.4)

    def noise(crop):
        return (crop - crop.mean((-1, -2), keepdim=True)).tanh()

    of_noise = a * x + b * stitched_of(noise, windows, x)
    torch.testing.assert_close(
        stitched_of(lambda crop: a * crop + b * noise(crop), windows, x), of_noise, rtol=0, atol=1e-14
    )


def test_the_rule_follows_its_equation_and_masked_only_where_windows_overlap():
    x, weak = latent(1, 2, 16, 16), Windows(0.75, 0.33)
    positive, denoised, seen = latent(1, 2, 16, 16) + 1, latent(1, 2, 16, 16) * 2, latent(1, 2, 16, 16).cos()
    predictions = {POSITIVE: positive, Branch(windows=weak): seen}
    step = Step(x, 1.0, 1.0)
    whole = SlidingWindowGuidance(2.0).begin()(denoised, predictions, step)
    assert torch.equal(whole, denoised + 2.0 * (positive - seen))
    masked = SlidingWindowGuidance(2.0, masked=True).begin()(denoised, predictions, step)
    overlaps = weak.counts(16, 16) > 1
    assert torch.equal(masked, torch.where(overlaps, whole, denoised)) and 0 < overlaps.sum() < 256


def test_a_weak_model_is_not_shown_windows():
    with pytest.raises(ValueError, match="a weak model is not shown windows"):
        Branch(model=WeakModelRef(0), windows=Windows(0.5, 0.0))

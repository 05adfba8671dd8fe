"""The baseline of the benchmarks: the score times a factor."""

import pytest
import torch
from pack.benchmarks.truncation import Truncation
from pack.guiders.base import POSITIVE, Step
from pack.guiders.compose import GuidanceRun
from pack.guiders.schedule import Interval
from pack.tests.toy import Gaussian, Toy, gain, heun, karras

POINTS = torch.linspace(-3, 3, 12, dtype=torch.float64).reshape(1, 3, 2, 2)


def run_of(factor: float) -> GuidanceRun:
    return GuidanceRun([(Truncation(factor), Interval())])


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.4])
def test_it_is_the_score_times_the_factor(factor):
    sigma, toy = 1.5, Toy({POSITIVE: Gaussian(1.0, 0.5)})
    result = run_of(factor)(Step(POINTS, sigma, sigma), toy)
    score = (1.0 - POINTS) / (0.5**2 + sigma**2)  # of N(1, 0.5²) under noise
    torch.testing.assert_close((result - POINTS) / sigma**2, factor * score, rtol=0, atol=1e-14)
    assert toy.asked == [(POSITIVE,)]


def test_neutral_is_no_rule():
    assert Truncation(1.0).branches() == () and Truncation().factor == 1.4


@pytest.mark.parametrize("factor", [1.0, 1.2, 1.4])
def test_between_gaussians_the_width_goes_by_the_factors_power(factor):
    """dx/dσ = f σ x / (s² + σ²): far narrower than s/√f, the width of p^f."""
    x = torch.full((1, 1, 1), 80.0, dtype=torch.float64)
    end = heun(run_of(factor), Toy({POSITIVE: Gaussian(0.0, 0.5)}), x, karras(256)).item()
    expected = 80 * gain(80.0, 0.0, 0.5, 1.0, 1.0) ** factor
    assert end == pytest.approx(expected, rel=2e-3)
    if factor > 1:
        assert end < 0.5 * 0.5 / factor**0.5

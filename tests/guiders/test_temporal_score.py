"""TSR: the exact denoiser of data that is narrower by k, for a Gaussian, on every path from noise to data."""

import math

import pytest
import torch
from pack.guiders import TemporalScoreRescaling
from pack.guiders.base import POSITIVE, Step

PATHS = {  # (signal, noise) of x at σ, as the host samples
    "VE": lambda sigma: (1.0, sigma),
    "VP": lambda sigma: (1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)),
    "flow": lambda sigma: (1 - sigma, sigma),
}
ON = pytest.mark.parametrize("path", PATHS)
SIGMAS = pytest.mark.parametrize("sigma", [1e-3, 0.1, 0.5, 0.9, 1 - 1e-9])


def several(count: int, *shape: int, dtype=torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def rescaled(denoised, x, path: str, sigma: float, k: float = 0.9, spread: float = 1.0) -> torch.Tensor:
    a, b = PATHS[path](sigma)
    step = Step(x, sigma, sigma, signal=a, noise_scale=b / sigma if sigma else 1.0)
    return TemporalScoreRescaling(k, spread).begin()(denoised, {POSITIVE: denoised}, step)


def gaussian(x, a: float, b: float, mean: float, variance: float) -> torch.Tensor:
    """The expected x₀, given x = a x₀ + b n, of data N(mean, variance)."""
    return mean + a * variance * (x - a * mean) / (a**2 * variance + b**2)


@ON
@SIGMAS
@pytest.mark.parametrize("k", [0.5, 0.93, 4.0])
def test_of_gaussian_data_it_is_the_denoiser_of_a_variance_that_is_k_times_smaller(k, sigma, path):
    a, b = PATHS[path](sigma)
    x = several(1, 3, 4, 6, 5)[0]
    found = rescaled(gaussian(x, a, b, 0.7, 1.3**2), x, path, sigma, k, spread=1.3)
    torch.testing.assert_close(found, gaussian(x, a, b, 0.7, 1.3**2 / k), rtol=0, atol=1e-12)


@ON
@pytest.mark.parametrize("sigma", [1e-3, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("k", [0.5, 0.93, 4.0])
def test_it_is_the_papers_scaling_of_the_noise(k, sigma, path):
    a, b = PATHS[path](sigma)
    denoised, x = several(2, 3, 4, 6, 5)
    snr = (a / b) ** 2
    r = (snr * 3.0**2 + 1) / (snr * 3.0**2 / k + 1)
    noise = r * (x - a * denoised) / b
    expected = (x - b * noise) / a
    torch.testing.assert_close(rescaled(denoised, x, path, sigma, k, 3.0), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 0.9])
def test_for_flow_it_is_the_papers_scaling_of_the_velocity(sigma):
    """The paper's t is 1 − σ, with a = t, b = 1 − t: v' = (r (t v − x) + x)/t, where v leads from noise to data."""
    velocity, x = several(2, 3, 4, 6, 5)
    t = 1 - sigma
    r = (t**2 / sigma**2 * 3.0**2 + 1) / (t**2 / sigma**2 * 3.0**2 / 0.93 + 1)
    expected = x + sigma * (r * (t * velocity - x) + x) / t
    found = rescaled(x + sigma * velocity, x, "flow", sigma, 0.93, 3.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_where_all_is_noise_and_where_none_is_nothing_changes():
    denoised, x = several(2, 3, 4, 6, 5)
    assert torch.equal(rescaled(denoised, x, "flow", 1.0), denoised)
    torch.testing.assert_close(rescaled(x, x, "flow", 0.0), x, rtol=0, atol=1e-15)


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_a_greater_spread_acts_earlier(spread):
    """Half of what it can do is done where the signal's spread a s is √k times the noise b."""
    k, sigma = 0.5, spread / math.sqrt(0.5)
    x = several(1, 3, 4, 6, 5)[0]
    found = rescaled(torch.zeros_like(x), x, "VE", sigma, k, spread)
    torch.testing.assert_close(found, (1 - k) / 2 * x, rtol=1e-14, atol=0)


def test_it_asks_for_no_row_and_another_sample_changes_no_bit_of_ones_own():
    assert TemporalScoreRescaling().branches() == (POSITIVE,)
    denoised, x = several(2, 3, 4, 6, 5)
    result = rescaled(denoised, x, "flow", 0.5)
    denoised[1] = math.nan
    assert torch.equal(rescaled(denoised, x, "flow", 0.5)[[0, 2]], result[[0, 2]])


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, 2.0**12), (torch.bfloat16, 2.0**120)], ids=str)
def test_the_largest_numbers_of_half_precision_are_numbers_like_others(dtype, largest):
    denoised, x = (value.clamp(-3, 3) for value in several(2, 2, 4, 16, 16, dtype=dtype))
    result = rescaled(denoised * largest, x * largest, "flow", 0.3)
    assert result.dtype == dtype and result.isfinite().all()
    torch.testing.assert_close(result / largest, rescaled(denoised, x, "flow", 0.3), rtol=0, atol=0)

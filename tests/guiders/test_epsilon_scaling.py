"""Epsilon Scaling: the noise of a diffusion network, and the velocity of a flow network, are divided by λ."""

import math

import pytest
import torch
from pack.guiders import ClassifierFreeGuidance, EpsilonScaling
from pack.guiders.base import NEGATIVE, POSITIVE, Step
from pack.guiders.compose import GuidanceRun
from pack.guiders.schedule import Interval
from pack.tests.toy import Gaussian, Mixture, Toy

ALWAYS, CFG, FACTOR = Interval(), 5.0, 1.02
AT = {POSITIVE: Gaussian(1.0, 0.5), NEGATIVE: Mixture((-1.0, 0.5), 0.7)}


def x_of(*shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)


def scaled(denoised, x, sigma: float, factor: float = FACTOR, signal: float = 1.0) -> torch.Tensor:
    step = Step(x, sigma, sigma, signal=signal)
    return EpsilonScaling(factor).begin()(denoised, {POSITIVE: denoised}, step)


@pytest.mark.parametrize("alpha_bar", [0.99, 0.5, 0.01])
@pytest.mark.parametrize("factor", [0.97, 1.005, 1.1])
def test_it_is_the_papers_ddim_step_of_a_variance_preserving_network(factor, alpha_bar):
    """Paper: x' = √ᾱ' x̂₀ + √(1 − ᾱ') ε/λ, where x̂₀ comes from ε/λ too. The host has x/√ᾱ as its x."""
    after = 0.995
    z, epsilon = x_of(3, 4, 6, 5), x_of(6, 4, 6, 5)[3:] / factor
    predicted = (z - math.sqrt(1 - alpha_bar) * epsilon) / math.sqrt(alpha_bar)
    expected = math.sqrt(after) * predicted + math.sqrt(1 - after) * epsilon

    x, sigma, low = z / math.sqrt(alpha_bar), *(math.sqrt((1 - a) / a) for a in (alpha_bar, after))
    denoised = scaled(x - sigma * factor * epsilon, x, sigma, factor)
    found = x + (low - sigma) * (x - denoised) / sigma
    torch.testing.assert_close(found * math.sqrt(after), expected, rtol=0, atol=2e-15 * x.abs().max().item())


@pytest.mark.parametrize("sigma", [0.05, 0.5, 0.97, 1.0])
def test_of_a_flow_network_it_divides_the_velocity_and_not_the_noise(sigma):
    x, velocity = x_of(3, 4, 6, 5), x_of(6, 4, 6, 5)[3:]
    denoised = x - sigma * velocity
    found = scaled(denoised, x, sigma, signal=1 - sigma)
    torch.testing.assert_close(found, x - sigma * velocity / FACTOR, rtol=0, atol=1e-15)
    if sigma < 1:  # else the noise says nothing of x₀
        noise = (x - (1 - sigma) * denoised) / sigma
        by_noise = (x - sigma * noise / FACTOR) / (1 - sigma)
        difference = (1 - 1 / FACTOR) * x * (1 / (1 - sigma) - 1)
        torch.testing.assert_close(by_noise - found, difference, rtol=0, atol=1e-13)


def test_it_acts_on_what_cfg_has_made_and_asks_for_no_row():
    step, toy = Step(x_of(3, 4, 6, 5), 0.7, 0.7, cfg=CFG), Toy(AT)
    plain = GuidanceRun([(ClassifierFreeGuidance(CFG), ALWAYS)])(step, toy)
    found = GuidanceRun([(ClassifierFreeGuidance(CFG), ALWAYS), (EpsilonScaling(FACTOR), ALWAYS)])(step, toy)
    torch.testing.assert_close(found, step.x - (step.x - plain) / FACTOR, rtol=0, atol=1e-14)
    assert toy.asked[0] == toy.asked[1]


def test_without_noise_nothing_changes_and_another_sample_changes_no_bit_of_ones_own():
    x, denoised = x_of(3, 4, 6, 5), x_of(6, 4, 6, 5)[3:]
    assert torch.equal(scaled(x, x, 0.5), x)
    result = scaled(denoised, x, 0.5)
    denoised[1] = math.nan
    assert torch.equal(scaled(denoised, x, 0.5)[[0, 2]], result[[0, 2]])


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, 2.0**14), (torch.bfloat16, 2.0**124)], ids=str)
def test_numbers_too_large_for_a_difference_in_float16_are_numbers_like_others(dtype, largest):
    x = x_of(2, 4, 16, 16, dtype=dtype).clamp(-3, 3) * largest
    result = scaled(-x, x, 0.5)
    assert result.dtype == dtype and result.isfinite().all()
    torch.testing.assert_close(result / largest, scaled(-x / largest, x / largest, 0.5), rtol=0, atol=0)

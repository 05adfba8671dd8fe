"""CFG-Zero*: what is scaled is the velocity, in whatever way the network says it, and the first steps stand still."""

import pytest
import torch
from diffusers.guiders import ClassifierFreeZeroStarGuidance
from pack.guiders import ClassifierFreeGuidance, ZeroStar
from pack.guiders.base import NEGATIVE, POSITIVE, Step
from pack.guiders.compose import GuidanceRun
from pack.guiders.linalg import dot
from pack.guiders.schedule import Interval
from pack.tests.toy import Gaussian, Mixture, Toy

ALWAYS, CFG, SIGMA = Interval(), 6.0, 0.7
DENOISERS = {POSITIVE: Gaussian(1.0, 0.5), NEGATIVE: Mixture((-1.0, 0.5), 0.7)}


def x_of(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def step_at(index: int = 5, time: float = 1.0, x: torch.Tensor | None = None) -> Step:
    return Step(x_of(3, 4, 6, 5) if x is None else x, SIGMA, SIGMA, index, time, signal=1 - SIGMA, cfg=CFG)


def folded(rules, *steps: Step) -> torch.Tensor:
    run = GuidanceRun((rule, ALWAYS) for rule in (ClassifierFreeGuidance(CFG), *rules))
    return [run(step, Toy(DENOISERS)) for step in steps][-1]


def test_it_is_the_papers_combination_of_velocities():
    step = step_at()
    positive, negative = ((step.x - DENOISERS[b](step.x, SIGMA)) / SIGMA for b in (POSITIVE, NEGATIVE))
    alpha = dot(positive, negative) / dot(negative, negative)
    velocity = alpha * negative + CFG * (positive - alpha * negative)
    assert (alpha - 1).abs().min() > 1e-2
    torch.testing.assert_close(folded([ZeroStar()], step), step.x - SIGMA * velocity, rtol=0, atol=1e-13)


@pytest.mark.parametrize("zero_init_steps", [0, 1, 3])
def test_it_is_diffusers_guider_of_a_flow_networks_velocity(zero_init_steps):
    theirs = ClassifierFreeZeroStarGuidance(CFG, zero_init_steps)
    run = GuidanceRun([(ClassifierFreeGuidance(CFG), ALWAYS), (ZeroStar(zero_init_steps=zero_init_steps), ALWAYS)])
    for index in range(5):
        step = step_at(index, 1 - index / 5)
        positive, negative = ((step.x - DENOISERS[b](step.x, SIGMA)) / SIGMA for b in (POSITIVE, NEGATIVE))
        theirs.set_state(index, 5, torch.tensor(1000 - 200 * index))
        expected = step.x - SIGMA * theirs.forward(positive, negative).pred
        # their α is in float32, and is a factor on (1 − w) v₋
        torch.testing.assert_close(run(step, Toy(DENOISERS)), expected, rtol=0, atol=(CFG - 1) * 4e-7)


def test_the_scale_leaves_nothing_of_the_negative_along_the_difference():
    """The paper's reason: α makes ‖v₊ − α v₋‖ smallest."""
    step = step_at()
    positive, negative = (step.x - DENOISERS[b](step.x, SIGMA) for b in (POSITIVE, NEGATIVE))
    corrected = folded([ZeroStar()], step) - DENOISERS[POSITIVE](step.x, SIGMA)  # (1 − w)(v₊ − α v₋) σ, up to a sign
    assert (dot(corrected, negative) / dot(positive, negative)).abs().max() < 1e-13


@pytest.mark.parametrize("amount", [0.25, 1.0])
def test_the_amount_is_how_far_it_goes(amount):
    for index in (0, 5):
        step = step_at(index)
        plain, whole = folded([], step), folded([ZeroStar(zero_init_steps=2)], step)
        expected = torch.lerp(plain, whole, amount)
        found = folded([ZeroStar(amount, zero_init_steps=2)], step)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_so_many_first_steps_stand_still_and_no_others(steps):
    run = GuidanceRun([(ClassifierFreeGuidance(CFG), ALWAYS), (ZeroStar(zero_init_steps=steps), ALWAYS)])
    for index in range(5):
        step = step_at(index, 1 - index / 5)
        assert torch.equal(run(step, Toy(DENOISERS)), step.x) == (index < steps)


def test_a_run_that_begins_later_than_at_full_noise_has_no_steps_that_stand_still():
    run = GuidanceRun([(ClassifierFreeGuidance(CFG), ALWAYS), (ZeroStar(zero_init_steps=3), ALWAYS)])
    for index in range(3):
        step = step_at(index, 0.6 - index / 5)
        assert not torch.allclose(run(step, Toy(DENOISERS)), step.x)


def test_a_negative_without_velocity_has_no_scale_and_the_result_stays():
    step = step_at()
    still = {POSITIVE: DENOISERS[POSITIVE], NEGATIVE: lambda x, sigma: x}
    run = GuidanceRun([(ClassifierFreeGuidance(CFG), ALWAYS), (ZeroStar(), ALWAYS)])
    plain = GuidanceRun([(ClassifierFreeGuidance(CFG), ALWAYS)])
    assert torch.equal(run(step, Toy(still)), plain(step, Toy(still)))

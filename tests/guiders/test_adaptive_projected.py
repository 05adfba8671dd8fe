"""APG: of the direction so far, the part along the positive prediction, its length, and its momentum."""

import math

import pytest
import torch
from diffusers import guiders as diffusers
from pack.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance, PerturbationGuidance
from pack.guiders.base import NEGATIVE, POSITIVE, Branch, Step
from pack.guiders.compose import GuidanceRun
from pack.guiders.linalg import dot, norm, project
from pack.guiders.schedule import Interval
from pack.tests.toy import Gaussian, Mixture, Toy, Worse, euler, heun, karras

ALWAYS = Interval()
WEAK = Branch(perturbation=Worse("a"))
DENOISERS = {POSITIVE: Gaussian(1.0, 0.5), NEGATIVE: Mixture((-1.0, 0.5), 0.7), WEAK: Mixture((0.2, 0.9), 0.4)}
SHAPES = ((1, 8, 2, 3, 4), (1, 4, 9))  # of a packed latent: a picture and its sound
CUT = math.prod(SHAPES[0])


def several(count: int, *shape: int, dtype=torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def at(index: int, shapes=()) -> Step:
    return Step(torch.empty(0), 2.0, 2.0, index, shapes=shapes)


def applied(denoised, positive, shapes=(), **settings) -> torch.Tensor:
    return AdaptiveProjectedGuidance(**settings).begin()(denoised, {POSITIVE: positive}, at(0, shapes))


def fed(rule: AdaptiveProjectedGuidance, evaluations: list[tuple[int, torch.Tensor]]) -> list[torch.Tensor]:
    """The directions that one run gives for (index of the step, direction so far)."""
    apply, zero = rule.begin(), torch.zeros_like(evaluations[0][1])
    return [apply(direction, {POSITIVE: zero}, at(index)) for index, direction in evaluations]


# ------------------------------------------------------------------------------------------------------- projection


def test_with_all_of_the_parallel_part_no_clip_and_no_momentum_it_is_not_there():
    x = several(1, 3, 4, 6, 5)[0]
    plain = [(ClassifierFreeGuidance(8.0), ALWAYS), (PerturbationGuidance(3.0, Worse("a")), ALWAYS)]
    with_it = [*plain, (AdaptiveProjectedGuidance(eta=1.0), ALWAYS)]
    step, toy = Step(x, 2.0, 2.0), Toy(DENOISERS)
    assert AdaptiveProjectedGuidance(eta=1.0).branches() == ()
    assert torch.equal(GuidanceRun(with_it)(step, toy), GuidanceRun(plain)(step, toy))
    denoised, positive = several(2, 3, 4, 6, 5)
    for settings in ({"eta": 1.0}, {"eta": 1.0, "norm_threshold": 1000.0}):  # the arithmetic, too
        torch.testing.assert_close(applied(denoised, positive, **settings), denoised, rtol=0, atol=2e-15)


def test_it_asks_for_no_row_whatever_it_does():
    for settings in ({}, {"eta": 1.0, "norm_threshold": 5.0}, {"eta": 1.0, "momentum": -0.5}):
        assert AdaptiveProjectedGuidance(**settings).branches() == (POSITIVE,)


@pytest.mark.parametrize("spatial", [(), (7,), (6, 5), (3, 4, 5)], ids=lambda spatial: f"{len(spatial)}-D")
def test_without_the_parallel_part_the_direction_is_at_right_angles_to_the_positive(spatial):
    denoised, positive = several(2, 3, 4, *spatial)
    direction = applied(denoised, positive) - positive
    assert dot(direction, positive).abs().max() < 1e-14 * norm(positive).max() ** 2
    torch.testing.assert_close(direction, project(denoised - positive, positive)[1], rtol=0, atol=1e-15)


@pytest.mark.parametrize("eta", [-2.0, 0.5, 3.0])
def test_eta_is_a_factor_on_the_parallel_part_alone(eta):
    denoised, positive = several(2, 3, 4, 6, 5)
    parallel, orthogonal = project(denoised - positive, positive)
    expected = positive + orthogonal + eta * parallel
    torch.testing.assert_close(applied(denoised, positive, eta=eta), expected, rtol=0, atol=1e-14)


# ------------------------------------------------------------------------------------------------------------- clip


def test_the_direction_is_no_longer_than_the_threshold_and_one_that_is_shorter_stays():
    denoised, positive = several(2, 3, 4, 6, 5)
    denoised = positive + torch.tensor([0.1, 1.0, 10.0]).reshape(3, 1, 1, 1) * denoised / norm(denoised)
    result = applied(denoised, positive, eta=1.0, norm_threshold=1.5)
    lengths = torch.tensor([0.1, 1.0, 1.5], dtype=torch.float64)
    torch.testing.assert_close(norm(result - positive).flatten(), lengths, rtol=1e-7, atol=0)
    torch.testing.assert_close(result[:2], denoised[:2], rtol=0, atol=1e-15)
    assert (norm(applied(denoised, positive, norm_threshold=1.5) - positive) <= 1.5).all()


@pytest.mark.parametrize("weight", [1.5, 4.0, 15.0])
def test_with_cfg_alone_a_threshold_is_the_papers_times_the_weight_less_one(weight):
    """Paper: D₊ + (w − 1) f(D₊ − D₋) with threshold r. Here: D₊ + f((w − 1)(D₊ − D₋)) with threshold (w − 1) r."""
    eta, threshold, momentum, average = 0.3, 2.5, -0.5, 0.0
    apply = AdaptiveProjectedGuidance(eta, (weight - 1) * threshold, momentum).begin()
    for index in range(4):
        positive, negative = several(2 * index + 2, 3, 4, 6, 5)[-2:]
        average = positive - negative + momentum * average
        clipped = average * (threshold / norm(average)).clamp(max=1)
        parallel, orthogonal = project(clipped, positive)
        expected = positive + (weight - 1) * (orthogonal + eta * parallel)
        guided = positive + (weight - 1) * (positive - negative)
        result = apply(guided, {POSITIVE: positive}, at(index))
        assert (norm(average) > threshold).all()  # so the threshold matters
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-13)


# --------------------------------------------------------------------------------------------------------- momentum


def test_momentum_adds_the_direction_of_the_step_before_with_what_it_had_added():
    a, b, c = several(3, 2, 4, 6, 5)
    given = fed(AdaptiveProjectedGuidance(eta=1.0, momentum=-0.5), [(0, a), (1, b), (2, c)])
    for result, expected in zip(given, (a, b - 0.5 * a, c - 0.5 * (b - 0.5 * a)), strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-15)


def test_evaluations_of_one_step_add_the_same_and_the_first_is_what_the_next_step_adds():
    a, trial, b, other_trial = several(4, 2, 4, 6, 5)
    rule = AdaptiveProjectedGuidance(eta=1.0, momentum=0.5)
    given = fed(rule, [(0, a), (0, trial), (1, b), (1, other_trial)])
    for result, expected in zip(given, (a, trial, b + 0.5 * a, other_trial + 0.5 * a), strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-15)
    assert torch.equal(fed(rule, [(0, a), (1, b)])[1], given[2])  # as if there had been no trial


def test_a_step_that_lies_before_the_last_one_begins_anew():
    a, b, c = several(3, 2, 4, 6, 5)
    given = fed(AdaptiveProjectedGuidance(eta=1.0, momentum=0.5), [(5, a), (3, b), (4, c)])
    for result, expected in zip(given, (a, b, c + 0.5 * b), strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-15)


def test_what_is_carried_on_is_not_clipped():
    a, b = several(2, 2, 4, 6, 5)
    clipping = fed(AdaptiveProjectedGuidance(eta=1.0, norm_threshold=0.5, momentum=0.5), [(0, a), (1, b)])
    free = fed(AdaptiveProjectedGuidance(eta=1.0, momentum=0.5), [(0, a), (1, b)])
    torch.testing.assert_close(clipping[1], 0.5 * free[1] / norm(free[1]), rtol=0, atol=1e-15)


@pytest.mark.parametrize("sampler", [euler, heun])
def test_a_run_knows_nothing_of_another(sampler):
    rule, x = AdaptiveProjectedGuidance(momentum=0.5), 80 * several(1, 2, 1, 4)[0]
    runs = [GuidanceRun([(ClassifierFreeGuidance(3.0), ALWAYS), (rule, ALWAYS)]) for _ in range(2)]
    first, second = (sampler(run, Toy(DENOISERS), x, karras(8)) for run in runs)
    again = sampler(runs[0], Toy(DENOISERS), x, karras(8))  # the same run once more, from a step that lies before
    assert torch.equal(first, second) and torch.equal(first, again)
    without = [(ClassifierFreeGuidance(3.0), ALWAYS), (AdaptiveProjectedGuidance(), ALWAYS)]
    assert not torch.allclose(first, sampler(GuidanceRun(without), Toy(DENOISERS), x, karras(8)))


# ----------------------------------------------------------------------------------------------- warm-up, and diffusers


def test_the_momentum_of_steps_before_it_acts_counts_with_warm_up_alone():
    a, b, c = several(3, 2, 4, 6, 5)
    for warm_up, before in ((True, b + 0.5 * a), (False, 0.0)):
        rule = AdaptiveProjectedGuidance(eta=1.0, momentum=0.5, warm_up=warm_up)
        run = GuidanceRun([(rule, lambda sigma: float(sigma < 1.5))])
        zero = {POSITIVE: torch.zeros_like(a)}
        results = [
            run.at(sigma, 1.0).fold(x, zero, at(i)) for i, (sigma, x) in enumerate(((3.0, a), (2.0, b), (1.0, c)))
        ]
        assert torch.equal(results[0], a) and torch.equal(results[1], b)
        torch.testing.assert_close(results[2], c + 0.5 * before, rtol=0, atol=1e-15)


def test_without_momentum_there_is_nothing_to_warm_up():
    assert AdaptiveProjectedGuidance(momentum=-0.5, warm_up=True).remembers
    assert (
        not AdaptiveProjectedGuidance(warm_up=True).remembers and not AdaptiveProjectedGuidance(momentum=1.0).remembers
    )


def pairs(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    values = several(2 * count, 3, 4, 6, 5)
    return list(zip(values[::2], values[1::2], strict=True))


def of_diffusers(guider, predictions: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
    """What a guider of diffusers makes of (positive, negative) of each step."""
    found = []
    for step, (positive, negative) in enumerate(predictions):
        guider.set_state(step, len(predictions), torch.tensor(500))
        guider.prepare_inputs({"text": (positive, negative)})
        found.append(guider.forward(positive, negative).pred)
    return found


def ours(predictions, weight, rule, first=0) -> list[torch.Tensor]:
    """What CFG, and the rule from step `first` on, make of them."""
    run = GuidanceRun([(ClassifierFreeGuidance(weight), ALWAYS), (rule, lambda sigma: float(sigma <= 10 - first))])
    found = []
    for index, (positive, negative) in enumerate(predictions):
        step, given = Step(positive, 1.0, 10.0 - index, index), {POSITIVE: positive, NEGATIVE: negative}
        found.append(run.at(step.start, 1.0).fold(positive, given, step))
    return found


@pytest.mark.parametrize(("eta", "r", "momentum"), [(1.0, 0.0, None), (0.0, 2.5, None), (0.3, 2.5, -0.5)])
def test_it_is_diffusers_guider_with_its_threshold_times_its_scale(eta, r, momentum):
    scale, predictions = 6.0, pairs(4)
    guider = diffusers.AdaptiveProjectedGuidance(
        guidance_scale=scale,
        adaptive_projected_guidance_momentum=momentum,
        adaptive_projected_guidance_rescale=r,
        eta=eta,
        use_original_formulation=True,
    )
    rule = AdaptiveProjectedGuidance(eta, scale * r, momentum or 0.0)
    found = ours(predictions, 1 + scale, rule)
    for result, expected in zip(found, of_diffusers(guider, predictions), strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def mixed(**changes) -> diffusers.AdaptiveProjectedMixGuidance:
    """diffusers' guider for Hunyuan Image 2.1, with the paper's way to count a scale, and no other one at first."""
    settings = {"guidance_scale": 10.0, "use_original_formulation": True, "adaptive_projected_guidance_start_step": 2}
    return diffusers.AdaptiveProjectedMixGuidance(**(settings | changes))


def test_with_warm_up_it_is_diffusers_guider_that_has_cfg_alone_at_first():
    predictions = pairs(6)
    expected = of_diffusers(mixed(), predictions)
    for warm_up in (True, False):
        rule = AdaptiveProjectedGuidance(0.0, 100.0, -0.5, warm_up)
        same = [
            torch.allclose(result, other, rtol=0, atol=1e-12)
            for result, other in zip(ours(predictions, 11.0, rule, first=3), expected, strict=True)
        ]
        assert same[:3] == [True] * 3 and same[3:] == [warm_up] * 3


def test_what_a_step_leaves_has_the_weight_of_its_own_cfg_in_it_which_diffusers_leaves_out():
    (a, b), (c, d) = predictions = pairs(2)
    guider = mixed(
        guidance_scale=2.5, adaptive_projected_guidance_start_step=0, adaptive_projected_guidance_rescale=0.0, eta=1.0
    )
    theirs = of_diffusers(guider, predictions)[1]
    torch.testing.assert_close(theirs, c + 10 * (c - d - 0.5 * (a - b)), rtol=0, atol=1e-12)
    apply = AdaptiveProjectedGuidance(1.0, 0.0, -0.5).begin()
    apply(a + 2.5 * (a - b), {POSITIVE: a}, at(0))
    result = apply(c + 10 * (c - d), {POSITIVE: c}, at(1))
    torch.testing.assert_close(result, c + 10 * (c - d) - 0.5 * 2.5 * (a - b), rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------- samples, modalities, and precision

ALL = {"eta": 0.3, "norm_threshold": 3.0, "momentum": -0.5}


def two_steps(denoised, positive, shapes=()) -> torch.Tensor:
    apply = AdaptiveProjectedGuidance(**ALL).begin()
    apply(denoised / 2, {POSITIVE: positive}, at(0, shapes))
    return apply(denoised, {POSITIVE: positive}, at(1, shapes))


@pytest.mark.parametrize("spatial", [(7,), (6, 5), (3, 4, 5)], ids=lambda spatial: f"{len(spatial)}-D")
def test_another_sample_changes_no_bit_of_ones_own(spatial):
    denoised, positive = several(2, 3, 4, *spatial)
    result = two_steps(denoised, positive)
    for row in range(3):
        assert torch.equal(two_steps(denoised[row : row + 1], positive[row : row + 1]), result[row : row + 1])
    denoised[1], positive[1] = 1e6 * denoised[1], math.nan
    assert torch.equal(two_steps(denoised, positive)[[0, 2]], result[[0, 2]])


@pytest.mark.parametrize("changed", [0, 1], ids=["picture", "sound"])
def test_another_modality_changes_no_bit_of_ones_own(changed):
    denoised, positive = several(2, 2, 1, CUT + 36)
    parts = slice(None, CUT), slice(CUT, None)
    result = two_steps(denoised, positive, SHAPES)
    for part in parts:
        alone = two_steps(denoised[..., part].clone(), positive[..., part].clone())
        torch.testing.assert_close(result[..., part], alone, rtol=0, atol=1e-14)
    denoised[..., parts[changed]] *= 1e6
    positive[..., parts[changed]] = math.nan
    other = parts[1 - changed]
    assert torch.equal(two_steps(denoised, positive, SHAPES)[..., other], result[..., other])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_positive_of_zero_has_no_part_along_it_and_no_direction_gives_the_positive(dtype):
    denoised, positive = several(2, 2, 4, 6, 5, dtype=dtype)
    zero = torch.zeros_like(denoised)
    torch.testing.assert_close(applied(denoised, zero), denoised, rtol=0, atol=0)
    for settings in ({}, {"norm_threshold": 3.0}, ALL):
        assert torch.equal(applied(positive, positive, **settings), positive)
        assert torch.equal(applied(zero, zero, **settings), zero)


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, 2.0**14), (torch.bfloat16, 2.0**124)], ids=str)
def test_numbers_too_large_for_a_difference_in_float16_or_a_square_in_float32_are_numbers_like_others(dtype, largest):
    denoised, positive = (value.clamp(-3.4, 3.4) for value in several(2, 2, 4, 64, 64, dtype=dtype))
    positive = positive / 8 - denoised
    denoised, positive = denoised * largest, positive * largest
    assert not (denoised - positive).square().isfinite().all()
    result = applied(denoised, positive, eta=0.3)
    assert result.dtype == dtype and result.isfinite().all()
    small = applied(denoised / largest, positive / largest, eta=0.3)
    torch.testing.assert_close(result / largest, small, rtol=0, atol=8 * torch.finfo(dtype).eps)
    clipped = applied(denoised, positive, **ALL)
    torch.testing.assert_close(clipped, positive, rtol=torch.finfo(dtype).eps, atol=3.0)

"""How several rules act as one, and what the papers' closed forms say about the result."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from pack.guiders import ClassifierFreeGuidance, PerturbationGuidance, WorseNegative
from pack.guiders.base import NEGATIVE, POSITIVE, Branch, GuidanceRule, Step
from pack.guiders.compose import GuidanceRun
from pack.guiders.schedule import Interval
from pack.tests.toy import Gaussian, Mixture, Toy, Worse, euler, gain, heun, karras

A, B = Branch(perturbation=Worse("a")), Branch(perturbation=Worse("b"))
DENOISERS = {POSITIVE: Gaussian(1.0, 0.5), NEGATIVE: Gaussian(-0.5, 1.0), A: Gaussian(0.2, 0.8), B: Gaussian(0.0, 0.3)}
ALWAYS = Interval()


def x_of(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def step_at(sigma: float, start: float | None = None) -> Step:
    return Step(x_of(2, 4, 6, 6), sigma, sigma if start is None else start)


@dataclass(frozen=True)
class Toyish(GuidanceRule):
    """Any fold, on any branches."""

    function: Callable
    wants: tuple[Branch, ...] = (NEGATIVE,)

    def branches(self):
        return self.wants

    def begin(self):
        return self.function


# ------------------------------------------------------------------------------------------------------- composing


def test_without_rules_the_result_is_the_positive_prediction_and_nothing_else_is_asked():
    toy, step = Toy(DENOISERS), step_at(2.0)
    assert torch.equal(GuidanceRun(())(step, toy), DENOISERS[POSITIVE](step.x, 2.0))
    assert toy.asked == [(POSITIVE,)]


def test_equal_branches_of_several_rules_are_evaluated_once_all_together_in_the_order_they_were_asked():
    toy = Toy(DENOISERS)
    rules = [
        PerturbationGuidance(1.0, Worse("b")),
        ClassifierFreeGuidance(3.0),
        PerturbationGuidance(2.0, Worse("b")),
        PerturbationGuidance(2.0, Worse("a")),
        ClassifierFreeGuidance(2.0),
    ]
    GuidanceRun((rule, ALWAYS) for rule in rules)(step_at(2.0), toy)
    assert toy.asked == [(POSITIVE, B, NEGATIVE, A)]


def test_a_rule_that_asks_for_the_positive_gets_the_one_that_is_evaluated_anyway():
    toy = Toy(DENOISERS)
    rule = Toyish(lambda denoised, predictions, step: denoised + predictions[POSITIVE], wants=(POSITIVE, A))
    step = step_at(2.0)
    assert torch.equal(GuidanceRun([(rule, ALWAYS)])(step, toy), 2 * DENOISERS[POSITIVE](step.x, 2.0))
    assert toy.asked == [(POSITIVE, A)]


@dataclass(frozen=True)
class OfCFG(Toyish):
    """A correction of the sampler's CFG."""

    corrects_cfg = True


def test_a_correction_of_cfg_is_left_out_and_free_where_there_is_no_cfg():
    toy, step = Toy(DENOISERS), step_at(2.0)
    run = GuidanceRun([(OfCFG(lambda denoised, predictions, step: denoised + step.cfg), ALWAYS)])
    assert torch.equal(run(step, toy), DENOISERS[POSITIVE](step.x, 2.0))
    assert torch.equal(run(replace(step, cfg=3.0), toy), DENOISERS[POSITIVE](step.x, 2.0) + 3)
    assert toy.asked == [(POSITIVE,), (POSITIVE, NEGATIVE)]


def test_additive_rules_commute():
    rules = [ClassifierFreeGuidance(4.0), PerturbationGuidance(3.0, Worse("a")), PerturbationGuidance(1.5, Worse("b"))]
    step = step_at(2.0)
    first, *others = (
        GuidanceRun((rule, ALWAYS) for rule in order)(step, Toy(DENOISERS)) for order in itertools.permutations(rules)
    )
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-14)


def test_rules_that_do_not_commute_fold_in_the_users_order():
    double = Toyish(lambda denoised, predictions, step: 2 * denoised)
    add = Toyish(lambda denoised, predictions, step: denoised + 1)
    step = step_at(2.0)
    positive = DENOISERS[POSITIVE](step.x, 2.0)
    assert torch.equal(GuidanceRun([(double, ALWAYS), (add, ALWAYS)])(step, Toy(DENOISERS)), 2 * positive + 1)
    assert torch.equal(GuidanceRun([(add, ALWAYS), (double, ALWAYS)])(step, Toy(DENOISERS)), 2 * (positive + 1))


def test_the_fold_starts_from_what_the_sampler_made_and_rules_still_see_the_raw_predictions():
    active = GuidanceRun([(PerturbationGuidance(3.0, Worse("a")), ALWAYS)]).at(2.0, cfg=1.0)
    step = step_at(2.0)
    predictions = Toy(DENOISERS)((POSITIVE, A), step)
    made = torch.full_like(step.x, 7.0)
    assert torch.equal(active.fold(made, predictions, step), made + 3.0 * (predictions[POSITIVE] - predictions[A]))


def test_a_step_is_handed_to_every_rule_as_it_came():
    seen = []
    rule = Toyish(lambda denoised, predictions, step: seen.append(step) or denoised)
    step = step_at(2.0, start=3.0)
    GuidanceRun([(rule, ALWAYS), (rule, ALWAYS)])(step, Toy(DENOISERS))
    assert seen[0] is step and seen[1] is step


def test_a_run_begins_each_rule_once_and_what_it_remembers_ends_with_it():
    began = []

    class Counting(GuidanceRule):
        def branches(self):
            return (NEGATIVE,)

        def begin(self):
            began.append(self)
            count = itertools.count(1)
            return lambda denoised, predictions, step: torch.full_like(denoised, next(count))

    rule, step = Counting(), step_at(2.0)
    assert isinstance(rule, GuidanceRule)
    for runs in (1, 2):
        run = GuidanceRun([(rule, ALWAYS)])
        assert [run(step, Toy(DENOISERS)).flatten()[0].item() for _ in range(3)] == [1, 2, 3]
        assert len(began) == runs
    both = GuidanceRun([(rule, ALWAYS), (rule, ALWAYS)])  # the same setting twice: two states
    assert both(step, Toy(DENOISERS)).flatten()[0].item() == 1 and len(began) == 4


def test_a_neutral_rule_is_never_begun():
    class Neutral(GuidanceRule):
        def branches(self):
            return ()

        def begin(self):
            raise AssertionError("begun")

    step = step_at(2.0)
    assert torch.equal(GuidanceRun([(Neutral(), ALWAYS)])(step, Toy(DENOISERS)), DENOISERS[POSITIVE](step.x, 2.0))


# -------------------------------------------------------------------------------------- branches with another input


def shifted(predictions, step):
    return step.x + predictions[NEGATIVE]


def halved(predictions, step):
    return step.x / 2


def test_branches_with_a_source_are_evaluated_at_that_x_in_one_more_call_for_each_source():
    at_shifted = [Branch(perturbation=Worse("a"), source=shifted), Branch("negative", source=shifted)]
    at_halved = Branch(source=halved)
    toy = Toy(DENOISERS | {branch: Gaussian(0.1, 0.9) for branch in (*at_shifted, at_halved)})
    got = {}
    rule = Toyish(
        lambda denoised, predictions, step: got.update(predictions) or denoised,
        wants=(at_shifted[0], NEGATIVE, at_halved, at_shifted[1]),
    )
    step = step_at(2.0, start=3.0)
    GuidanceRun([(rule, ALWAYS)])(step, toy)
    assert toy.asked == [(POSITIVE, NEGATIVE), tuple(at_shifted), (at_halved,)]
    elsewhere = step.x + DENOISERS[NEGATIVE](step.x, 2.0), step.x / 2
    for (_, there), x in zip(toy.calls[1:], elsewhere, strict=True):
        assert torch.equal(there.x, x) and (there.sigma, there.start) == (2.0, 3.0)
    assert torch.equal(got[at_shifted[1]], Gaussian(0.1, 0.9)(elsewhere[0], 2.0))
    assert torch.equal(got[NEGATIVE], DENOISERS[NEGATIVE](step.x, 2.0))  # the same conditioning at the sampler's own x


# -------------------------------------------------------------------------------------------------------- intervals


def test_outside_its_interval_a_rule_is_as_if_it_were_not_there():
    terms = [
        (ClassifierFreeGuidance(4.0), Interval(1.0, 5.0)),
        (PerturbationGuidance(3.0, Worse("a")), Interval(2.0, 10.0)),
    ]
    asked = {}
    for start in (11.0, 10.0, 5.0, 2.0, 1.0):
        toy, step = Toy(DENOISERS), step_at(1.5, start)
        alone = [term for term in terms if start in term[1]]
        assert torch.equal(GuidanceRun(terms)(step, toy), GuidanceRun(alone)(step, Toy(DENOISERS)))
        asked[start] = toy.asked
    assert asked == {
        11.0: [(POSITIVE,)],
        10.0: [(POSITIVE, A)],  # σ = high: inside
        5.0: [(POSITIVE, NEGATIVE, A)],
        2.0: [(POSITIVE, NEGATIVE)],  # σ = low: outside
        1.0: [(POSITIVE,)],
    }


def test_an_empty_interval_is_no_guidance_and_the_whole_axis_is_the_rule_itself():
    sigmas, x = karras(8), 80 * x_of(3, 1, 4)
    whole, to_the_top, empty, unguided = (
        heun(GuidanceRun(terms), Toy(DENOISERS), x, sigmas)
        for terms in (
            [(ClassifierFreeGuidance(3.0), Interval(0.0, math.inf))],
            [(ClassifierFreeGuidance(3.0), Interval(0.0, 80.0))],
            [(ClassifierFreeGuidance(3.0), Interval(2.0, 2.0))],
            [],
        )
    )
    assert torch.equal(whole, to_the_top) and torch.equal(empty, unguided) and not torch.equal(whole, unguided)


@pytest.mark.parametrize("cuts", [(0.0, math.inf), (0.0, 0.3, math.inf), (0.0, 0.05, 0.3, 7.0, math.inf)])
def test_intervals_that_partition_the_axis_are_one_interval(cuts):
    sigmas, x = karras(16), 80 * x_of(3, 1, 4)
    parts, whole = Toy(DENOISERS), Toy(DENOISERS)
    terms = [(ClassifierFreeGuidance(3.0), Interval(low, high)) for low, high in itertools.pairwise(cuts)]
    expected = heun(GuidanceRun([(ClassifierFreeGuidance(3.0), ALWAYS)]), whole, x, sigmas)
    assert torch.equal(heun(GuidanceRun(terms), parts, x, sigmas), expected)
    assert parts.evaluations == whole.evaluations == 2 * (2 * 16 - 1)


def test_the_official_steps_17_to_22_of_32_are_the_noise_levels_above_019_up_to_161():
    """arXiv:2404.07724: EDM's schedule of 32 steps; a step's two evaluations share one decision."""
    sigmas, toy = karras(32), Toy(DENOISERS)
    assert (round(sigmas[17], 4), round(sigmas[23], 4)) == (1.6086, 0.1886)
    x = 80 * x_of(1, 1, 4)
    heun(GuidanceRun([(ClassifierFreeGuidance(2.0), Interval(0.19, 1.61))]), toy, x, sigmas)
    guided = [step.index for branches, step in toy.calls if NEGATIVE in branches]
    assert guided == [index for index in range(17, 23) for _ in range(2)]
    assert toy.evaluations == 63 + 2 * 6  # against 2 · 63 without the interval
    snapped = Toy(DENOISERS)  # half-open: exactly the same steps from the schedule's own values
    heun(GuidanceRun([(ClassifierFreeGuidance(2.0), Interval(sigmas[23], sigmas[17]))]), snapped, x, sigmas)
    assert snapped.asked == toy.asked


# ------------------------------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize(("cfg", "scale"), [(7.5, 3.0), (1.0, 3.0), (7.5, 0.0), (0.0, 1.0), (1.0, 0.0)])
def test_classifier_free_and_weak_branch_give_the_papers_sum(cfg, scale):
    """D₋ + cfg (D₊ − D₋) + s (D₊ − D_p), arXiv:2403.17377."""
    step = step_at(2.0)
    run = GuidanceRun([(ClassifierFreeGuidance(cfg), ALWAYS), (PerturbationGuidance(scale, Worse("a")), ALWAYS)])
    positive, negative, weak = (DENOISERS[branch](step.x, 2.0) for branch in (POSITIVE, NEGATIVE, A))
    expected = negative + cfg * (positive - negative) + scale * (positive - weak)
    torch.testing.assert_close(run(step, Toy(DENOISERS)), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("weight", "std"), [(1.0, 0.5), (1.5, 0.3536), (2.0, 0.25), (3.0, 0.125)])
def test_cfg_between_gaussians_ends_at_the_papers_product_of_powers_not_at_the_tilted_density(weight, std):
    """The guided ODE is linear: its final std is s^w S^(1-w), here for s = 0.5, S = 1."""
    denoisers = {POSITIVE: Gaussian(0.0, 0.5), NEGATIVE: Gaussian(0.0, 1.0)}
    run = GuidanceRun([(ClassifierFreeGuidance(weight), ALWAYS)])
    end = heun(run, Toy(denoisers), torch.full((1, 1, 1), 80.0, dtype=torch.float64), karras(256)).item()
    assert end == pytest.approx(80 * gain(80.0, 0.0, 0.5, 1.0, weight), rel=1e-3)  # what 256 steps leave
    assert end == pytest.approx(std, abs=2e-4)
    if weight > 1:
        assert 1 / math.sqrt(weight / 0.25 + 1 - weight) > 1.2 * end  # the std of p₊^w p₋^(1-w)


def test_the_error_of_the_closed_form_is_the_samplers_of_second_order_for_heun_and_of_first_for_euler():
    denoisers = {POSITIVE: Gaussian(0.0, 0.5), NEGATIVE: Gaussian(0.0, 1.0)}
    x, exact = torch.ones(1, 1, 1, dtype=torch.float64), gain(80.0, 0.0, 0.5, 1.0, 2.0)
    for sampler, order in ((heun, 2), (euler, 1)):
        run = GuidanceRun([(ClassifierFreeGuidance(2.0), ALWAYS)])
        errors = [abs(sampler(run, Toy(denoisers), x, karras(steps)).item() / exact - 1) for steps in (200, 400)]
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("weight", [1.0, 2.0, 5.0])
def test_between_gaussians_of_one_width_cfg_moves_the_mean_and_keeps_the_width(weight):
    mean, std = 0.7, 0.5
    run = GuidanceRun([(ClassifierFreeGuidance(weight), ALWAYS)])
    denoisers = {POSITIVE: Gaussian(mean, std), NEGATIVE: Gaussian(0.0, std)}
    x = torch.tensor([-80.0, 0.0, 80.0], dtype=torch.float64).reshape(3, 1, 1)
    low, middle, high = heun(run, Toy(denoisers), x, karras(256)).flatten().tolist()
    shrink = std / math.hypot(std, 80.0)
    assert middle == pytest.approx(weight * mean * (1 - shrink), rel=5e-4)
    assert (high - low) / 2 == pytest.approx(80 * shrink, rel=5e-4)


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_a_piecewise_constant_weight_ends_at_the_product_of_its_pieces(weight):
    sigmas = karras(256)
    high, low = (min(sigmas, key=lambda sigma: abs(sigma - end)) for end in (2.0, 0.2))
    run = GuidanceRun([(ClassifierFreeGuidance(weight), Interval(low, high))])
    denoisers = {POSITIVE: Gaussian(0.0, 0.5), NEGATIVE: Gaussian(0.0, 1.0)}
    end = heun(run, Toy(denoisers), torch.full((1, 1, 1), 80.0, dtype=torch.float64), sigmas).item()
    pieces = gain(80.0, high, 0.5, 1.0, 1.0), gain(high, low, 0.5, 1.0, weight), gain(low, 0.0, 0.5, 1.0, 1.0)
    assert end == pytest.approx(80 * math.prod(pieces), rel=1.2e-3)
    if weight == 3.0:
        assert end == pytest.approx(0.16436, abs=1e-5)


MODES = {POSITIVE: Mixture((0.0, 1.0), 0.1), NEGATIVE: Mixture((-1.0, 0.0, 1.0), 0.1)}


@pytest.mark.parametrize(
    ("weight", "interval", "mass"),
    [
        (1.0, ALWAYS, 0.510),
        (2.0, ALWAYS, 0.325),
        (4.0, ALWAYS, 0.041),
        (6.0, ALWAYS, 0.000),
        (6.0, Interval(0.0, 0.6), 0.493),
        (6.0, Interval(0.1, 0.6), 0.493),
        (6.0, Interval(0.1, math.inf), 0.000),
    ],
)
def test_strong_cfg_loses_the_mode_both_prompts_share_and_an_interval_keeps_it(weight, interval, mass):
    """arXiv:2404.07724, figure 2 in one dimension."""
    quantiles = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    x = 20 * math.sqrt(2) * torch.erfinv(2 * quantiles - 1)
    run = GuidanceRun([(ClassifierFreeGuidance(weight), interval)])
    end = heun(run, Toy(MODES), x.reshape(-1, 1), karras(128, high=20.0))
    assert (end.abs() < 0.5).double().mean().item() == pytest.approx(mass, abs=0.005)


# --------------------------------------------------------------------------------- what changes the negative prediction

WORSE = Branch("negative", Worse("c"))
WITH_WORSE = DENOISERS | {WORSE: Mixture((0.1, -0.4), 0.6)}


def guided_with(*rules, cfg=4.0, regions=()) -> tuple[torch.Tensor, Toy]:
    toy = Toy(WITH_WORSE)
    run = GuidanceRun([(rule, ALWAYS) for rule in (*rules, ClassifierFreeGuidance(cfg))], regions)
    return run(replace(step_at(2.0), cfg=cfg), toy), toy


def test_cfg_moves_away_from_a_negative_that_another_prediction_replaces_and_its_own_is_not_evaluated():
    found, toy = guided_with(WorseNegative(1.0, WORSE))
    x = step_at(2.0).x
    positive, worse = WITH_WORSE[POSITIVE](x, 2.0), WITH_WORSE[WORSE](x, 2.0)
    torch.testing.assert_close(found, worse + 4 * (positive - worse), rtol=0, atol=1e-14)
    assert toy.asked == [(POSITIVE, WORSE)]


def test_a_negative_that_is_replaced_in_part_is_between_the_two():
    x = step_at(2.0).x
    positive, negative, worse = (WITH_WORSE[branch](x, 2.0) for branch in (POSITIVE, NEGATIVE, WORSE))
    region = torch.zeros(1, 1, 6, 6)
    region[..., :2, :] = 1
    for amount, regions, share in ((0.25, (), 0.25), (1.0, [region], region), (0.5, [region], 0.5 * region)):
        found, toy = guided_with(WorseNegative(amount, WORSE), regions=regions)
        away = negative + share * (worse - negative)
        torch.testing.assert_close(found, away + 4 * (positive - away), rtol=0, atol=1e-14)
        assert {*toy.asked[0]} == {POSITIVE, NEGATIVE, WORSE}


def test_rules_after_it_see_the_negative_that_cfg_sees():
    shown = []
    spy = Toyish(lambda denoised, predictions, step: shown.append(predictions[NEGATIVE]) or denoised)
    guided_with(WorseNegative(1.0, WORSE), spy)
    assert torch.equal(shown[0], WITH_WORSE[WORSE](step_at(2.0).x, 2.0))


def test_without_cfg_the_negative_is_not_asked_for_by_any_network():
    found, toy = guided_with(WorseNegative(1.0, WORSE), cfg=1.0)
    assert torch.equal(found, DENOISERS[POSITIVE](step_at(2.0).x, 2.0)) and toy.asked == [(POSITIVE,)]

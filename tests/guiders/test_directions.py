"""Directions that go on between steps: what is computed, what stands for the rest, and how wrong that is."""

import dataclasses
import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from pack.guiders import ClassifierFreeGuidance, IndependentConditionGuidance, PerturbationGuidance
from pack.guiders.base import NEGATIVE, POSITIVE, REFERENCE, Branch, Step
from pack.guiders.compose import GuidanceRun
from pack.guiders.directions import Directions, place_of
from pack.guiders.independent_condition import Pool
from pack.guiders.reuse import Reuse, Stop
from pack.guiders.schedule import Interval
from pack.guiders.self_attention import SelfAttentionGuidance
from pack.patches import NoisyTimeEmbedding
from pack.tests.guiders.test_rules import EXAMPLES, toy
from pack.tests.toy import Gaussian, Mixture, Toy, Worse, heun, karras

A = Branch(perturbation=Worse("a"))
STEPS = 12
SIGMAS = [float(STEPS - index) for index in range(STEPS + 1)]  # σ = 12 − place


def x_of(samples: int = 2) -> torch.Tensor:
    return torch.randn(samples, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def directions_of(reuse: Reuse | None = None, stop: Stop | None = None, sigmas=SIGMAS, **kwargs) -> Directions:
    return Directions(reuse, stop, sigmas, **kwargs)


def ran(directions: Directions | None, evaluate: Toy, x=None, rules=None, sigmas=SIGMAS) -> list[torch.Tensor]:
    """The results of all steps of a run at one x."""
    x = x_of() if x is None else x
    rules = rules or [ClassifierFreeGuidance(3.0)]
    run = GuidanceRun([(rule, Interval()) for rule in rules], directions=directions)
    return [run(Step(x, sigma, sigma, index), evaluate) for index, sigma in enumerate(sigmas[:-1])]


def computed(toy: Toy, branch: Branch = NEGATIVE) -> list[int]:
    return [index for index, asked in enumerate(toy.asked) if branch in asked]


def along(slope: float, curve: float = 0.0):
    """D(x; σ) whose difference from x is a straight line, or a curve, along SIGMAS."""
    return lambda x, sigma: x - slope * sigma - curve * sigma**2 * x.abs()


# ----------------------------------------------------------------------------------------------- which steps compute


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"every": 1}, [*range(STEPS)]),
        ({"every": 3}, [0, 3, 6, 9]),
        ({"every": 4, "first": 2}, [0, 1, 5, 9]),
        ({"every": 3, "last": 2}, [0, 3, 6, 9, 10, 11]),
        ({"every": 100}, [0]),
    ],
)
def test_a_direction_is_computed_in_its_first_and_last_steps_and_every_so_many_between(settings, steps):
    evaluate = Toy({POSITIVE: along(0), NEGATIVE: along(1)})
    ran(directions_of(Reuse(**settings)), evaluate)
    assert computed(evaluate) == steps and computed(evaluate, POSITIVE) == [*range(STEPS)]


def test_computing_every_step_is_no_reuse_bit_for_bit():
    evaluate = Toy({POSITIVE: Gaussian(1.0, 0.5), NEGATIVE: Mixture((-1.0, 0.5), 0.7)})
    for got, expected in zip(ran(directions_of(Reuse(every=1)), evaluate), ran(None, evaluate), strict=True):
        assert torch.equal(got, expected)


def test_all_evaluations_of_a_step_follow_its_first():
    evaluate, directions = Toy({POSITIVE: along(0), NEGATIVE: along(1)}), directions_of(Reuse(every=2))
    run = GuidanceRun([(ClassifierFreeGuidance(2.0), Interval())], directions=directions)
    for index in range(4):
        for sigma in (SIGMAS[index], SIGMAS[index + 1], (SIGMAS[index] + SIGMAS[index + 1]) / 2):
            run(Step(x_of(), sigma, SIGMAS[index], index), evaluate)
    assert computed(evaluate) == [0, 1, 2, 6, 7, 8]


@pytest.mark.parametrize("way", ["back in the schedule", "not asked", "forgotten", "another size"])
def test_a_direction_begins_anew(way):
    evaluate, directions = Toy({POSITIVE: along(0), NEGATIVE: along(1)}), directions_of(Reuse(every=100))
    run = GuidanceRun([(ClassifierFreeGuidance(2.0), Interval(low=0.0, high=11.0))], directions=directions)

    def at(index: int, x=None) -> None:
        run(Step(x_of() if x is None else x, SIGMAS[index], SIGMAS[index], index), evaluate)

    at(2), at(3)
    assert computed(evaluate) == [0]
    if way == "back in the schedule":
        at(1)
    elif way == "not asked":
        at(0), at(4)  # outside its interval
    elif way == "another size":
        at(4, x_of()[..., ::2, ::2])
    else:
        directions.forget(), at(4)
    assert computed(evaluate)[-1] == len(evaluate.asked) - 1


# ----------------------------------------------------------------------------------------------- how it goes on


def test_a_direction_that_changes_in_a_straight_line_goes_on_exactly():
    evaluate = Toy({POSITIVE: along(0), NEGATIVE: along(1)})
    got, exact = ran(directions_of(Reuse(every=3)), evaluate), ran(None, evaluate)
    for index, (one, other) in enumerate(zip(got, exact, strict=True)):
        if index not in (1, 2):  # one step alone was computed before these
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_held_is_the_direction_of_the_step_that_was_computed_last():
    evaluate = Toy({POSITIVE: along(0), NEGATIVE: along(1)})
    got = ran(directions_of(Reuse(every=3, between="held")), evaluate)
    for index, value in enumerate(got):
        torch.testing.assert_close(value, x_of() + 2 * SIGMAS[index - index % 3], rtol=0, atol=1e-12)


def test_a_direction_goes_on_no_farther_than_its_last_two_are_apart():
    evaluate = Toy({POSITIVE: along(0), NEGATIVE: along(1)})
    got = ran(directions_of(Reuse(every=6, first=2)), evaluate)
    for index in range(3, 7):  # computed at 0 and 1
        torch.testing.assert_close(got[index], x_of() + 2 * SIGMAS[2], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("between", "order"), [("linear", 2), ("held", 1)])
def test_the_error_falls_with_the_order_that_is_said(between, order):
    """Heun's method, of second order, on Gaussians, against many steps that all compute."""
    evaluate = Toy({POSITIVE: Gaussian(1.0, 0.5), NEGATIVE: Gaussian(-0.5, 1.0)})
    rule, x = (ClassifierFreeGuidance(2.0), Interval()), 10 * x_of()

    def end(steps: int, reuse: Reuse | None) -> torch.Tensor:
        sigmas = karras(steps, low=0.1, high=10.0)[:-1]
        return heun(GuidanceRun([rule], directions=reuse and directions_of(reuse, sigmas=sigmas)), evaluate, x, sigmas)

    exact = end(1281, None)
    errors = [(end(steps + 1, Reuse(every=2, between=between)) - exact).norm().item() for steps in (40, 80, 160)]
    falls = [math.log2(before / after) for before, after in itertools.pairwise(errors)]
    assert all(abs(fall - order) < 0.3 for fall in falls), falls


@pytest.mark.parametrize(
    ("sigma", "index", "place"),
    [(12.0, 0, 0.0), (11.0, 0, 1.0), (10.5, 1, 1.5), (9.0, 1, 3.0), (12.5, 0, -0.5), (0.5, 11, 11.5), (0.0, 11, 12.0)],
)
def test_a_place_is_the_number_of_a_step_or_between_two(sigma, index, place):
    assert place_of(Step(x_of(), sigma, SIGMAS[index], index), SIGMAS) == pytest.approx(place)
    rising = SIGMAS[::-1]  # from the picture to noise
    assert place_of(Step(x_of(), 12.0 - sigma, rising[index], index), rising) == pytest.approx(place)


def test_what_two_rules_share_is_computed_once_and_goes_on_for_both():
    evaluate = Toy({POSITIVE: along(0), NEGATIVE: along(1), A: along(2)})
    rules = [ClassifierFreeGuidance(3.0), PerturbationGuidance(1.0, Worse("a")), ClassifierFreeGuidance(2.0)]
    got, exact = ran(directions_of(Reuse(every=3)), evaluate, rules=rules), ran(None, evaluate, rules=rules)
    torch.testing.assert_close(got[7], exact[7], rtol=0, atol=1e-12)
    assert evaluate.asked[:4] == [(POSITIVE, NEGATIVE, A), (POSITIVE,), (POSITIVE,), (POSITIVE, NEGATIVE, A)]


def test_a_branch_of_another_input_is_compared_with_what_its_source_says_and_needs_the_reference():
    rule = SelfAttentionGuidance(1.0, mask="global")
    (_, other) = rule.branches()
    evaluate = Toy({POSITIVE: Gaussian(1.0, 0.5), REFERENCE: Gaussian(1.0, 0.5), other: Gaussian(0.2, 0.9)})
    directions = directions_of(Reuse(every=2, between="held"))
    got = ran(directions, evaluate, rules=[rule])
    assert sum(other in asked for asked in evaluate.asked) == STEPS // 2
    assert torch.equal(got[4], ran(None, evaluate, rules=[rule])[4])
    added = got[4] - evaluate.denoisers[POSITIVE](x_of(), SIGMAS[4])
    torch.testing.assert_close(got[5] - evaluate.denoisers[POSITIVE](x_of(), SIGMAS[5]), added, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("rule", "example"), EXAMPLES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_every_rule_acts_with_directions_that_go_on_and_is_itself_where_they_are_computed(rule, example):
    setting = example.of(rule)
    rules, evaluate = (*example.after, setting), toy(setting)
    x = torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def results(directions):
        run = GuidanceRun([(one, Interval()) for one in rules], directions=directions)
        steps = (Step(x * s, s, s, i, 1 - i / 8, cfg=3.0) for i, s in enumerate(SIGMAS[4:-1]))
        return [run(step, evaluate) for step in steps]

    got, exact = results(directions_of(Reuse(every=2), sigmas=SIGMAS[4:])), results(None)
    assert torch.equal(got[0], exact[0]) and all(value.isfinite().all() for value in got)
    once = {branch for branch in setting.branches() if branch not in (POSITIVE, REFERENCE)}
    if not once and not example.after:
        assert all(map(torch.equal, got, exact))  # it needs nothing that could go on


# ----------------------------------------------------------------------------------------------------- by itself


def test_the_next_period_is_twice_as_long_where_the_error_was_tolerated_and_half_where_not():
    reuse = Reuse(every=6, mode="auto", tolerance=0.1)
    assert [reuse.period(before, 0.1) for before in (1, 2, 4, 6)] == [2, 4, 6, 6]
    assert [reuse.period(before, 0.11) for before in (1, 2, 5, 6)] == [1, 1, 2, 3]


def test_auto_computes_what_is_drawn_at_random_every_so_many_steps():
    drawn = Branch(Pool())
    assert drawn.is_random and not A.is_random and Branch(perturbation=NoisyTimeEmbedding()).is_random
    evaluate = Toy({POSITIVE: along(0), drawn: along(0, curve=1)})
    rule = IndependentConditionGuidance(2.0, drawn.conditioning)
    ran(directions_of(Reuse(every=3, mode="auto", tolerance=0.001)), evaluate, rules=[rule])
    assert computed(evaluate, drawn) == [0, 3, 6, 9]


def test_auto_computes_less_the_more_it_tolerates():
    evaluate = Toy({POSITIVE: along(0), NEGATIVE: along(1, curve=0.1)})
    counts = []
    for tolerance in (0.001, 0.01, 0.05, 10.0):
        evaluate.calls.clear()
        ran(directions_of(Reuse(every=6, mode="auto", tolerance=tolerance)), evaluate)
        counts.append(len(computed(evaluate)))
    assert counts[0] == STEPS and counts == sorted(counts, reverse=True) and counts[-1] <= 4, counts


@dataclass(frozen=True)
class Apart:
    """Of a batch the first sample changes its direction in a straight line, the others in a curve, by their size."""

    def __call__(self, x, sigma):
        size = x.abs().amax(tuple(range(1, x.ndim)), keepdim=True)
        return x - sigma - torch.where(size > 1, 0.5 * sigma**2 * x, 0.0)


@pytest.mark.parametrize("stop", [None, Stop(cosine=1.0, length=0.2)], ids=["", "stop"])
def test_what_a_sample_gets_does_not_depend_on_the_others_in_its_batch(stop):
    x = x_of(3)
    x[0] *= 0.1
    evaluate = Toy({POSITIVE: along(0), NEGATIVE: Apart()})
    reuse = Reuse(every=5, mode="auto", tolerance=0.03)
    together = ran(directions_of(reuse, stop), evaluate, x)
    all_computed = computed(evaluate)
    alone_computed = []
    for sample in range(3):
        evaluate.calls.clear()
        alone = ran(directions_of(reuse, stop), evaluate, x[sample : sample + 1])
        alone_computed.append(computed(evaluate))
        for one, batch in zip(alone, together, strict=True):
            assert torch.equal(one[0], batch[sample])
    assert len({*map(tuple, alone_computed)}) > 1  # they differ, else this would show nothing
    assert {*all_computed} == {index for steps in alone_computed for index in steps}


# ------------------------------------------------------------------------------------------------------- the end


def test_a_direction_that_is_over_is_the_positive_alone_and_is_never_computed_again():
    evaluate = Toy({POSITIVE: along(0), NEGATIVE: along(1)})
    got = ran(directions_of(None, Stop(cosine=1.0, length=0.5)), evaluate)  # |Δ| = σ, at first 12
    assert computed(evaluate) == [*range(8)]  # σ = 5 is the first below a half
    assert all(torch.equal(value, x_of()) for value in got[8:]) and not torch.equal(got[7], x_of())


def test_the_cosine_is_of_both_predictions():
    x = x_of()
    towards = lambda x, sigma: x - 0.1 * sigma * x.flip(-1)  # noqa: E731
    evaluate = Toy({POSITIVE: along(0), NEGATIVE: towards})
    cosines = [torch.cosine_similarity(x.flatten(1), towards(x, s).flatten(1)).min().item() for s in SIGMAS[:-1]]
    assert cosines == sorted(cosines)
    ran(directions_of(None, Stop(cosine=(cosines[5] + cosines[6]) / 2)), evaluate, x)
    last = max(computed(evaluate))
    both = [torch.cosine_similarity(x.flatten(1), towards(x, s).flatten(1)).max().item() for s in SIGMAS[:-1]]
    assert last >= 6 and sum(value > (cosines[5] + cosines[6]) / 2 for value in both) >= 6 and last < STEPS - 1


def test_one_sample_ends_without_the_others():
    x = x_of()
    bounds = torch.tensor([4.0, 8.0], dtype=x.dtype).view(2, 1, 1, 1)
    evaluate = Toy({POSITIVE: along(0), NEGATIVE: lambda x, sigma: x - (sigma > bounds) * 1.0})
    got = ran(directions_of(None, Stop(cosine=1.0, length=0.5)), evaluate, x)
    assert [torch.equal(value[0], x[0]) for value in got] == [sigma <= 4 for sigma in SIGMAS[:-1]]
    assert [torch.equal(value[1], x[1]) for value in got] == [sigma <= 8 for sigma in SIGMAS[:-1]]
    assert computed(evaluate) == [*range(9)]


@pytest.mark.parametrize(("rule", "example"), EXAMPLES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_every_rule_bears_that_all_it_moves_away_from_is_the_positive(rule, example):
    setting = example.of(rule)
    x = torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    same = Toy({branch: Gaussian(1.0, 0.5) for branch in (POSITIVE, REFERENCE, NEGATIVE, *setting.branches())})
    run = GuidanceRun([(one, Interval()) for one in (*example.after, setting)])
    for index, sigma in enumerate(SIGMAS[6:-1]):
        got = run(Step(x * sigma, sigma, sigma, index, 1 - index / 6, cfg=3.0), same)
        assert got.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (Reuse, "every", 0),
        (Reuse, "first", 0),
        (Reuse, "tolerance", math.nan),
        (Reuse, "between", "no"),
        (Stop, "cosine", 2.0),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(kind, name, value):
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(kind(), **{name: value})

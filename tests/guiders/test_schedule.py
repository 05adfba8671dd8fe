"""Where a guidance acts: windows, intervals, and which step of the schedule an evaluation belongs to."""

import bisect
import itertools
import math
import random

import pytest
import torch
from pack.guiders.schedule import EVALUATIONS, FARTHEST, FREE, Curve, Interval, Schedule, StepTracker
from pack.tests.toy import karras

NAN, INF = math.nan, math.inf


# --------------------------------------------------------------------------------------------------------------- curve


@pytest.mark.parametrize("over", ["percent", "sigma"])
def test_the_order_in_which_points_are_written_does_not_matter(over):
    curves = {Curve.parse(", ".join(points), over) for points in itertools.permutations(["14: 0", "5: 1", "0.3: 0.5"])}
    (curve,) = curves
    assert curve.points == ((0.3, 0.5), (5.0, 1.0), (14.0, 0.0))
    assert [curve(where) for where in (20, 14, 9.5, 5, 0.3, 0.1)] == [0, 0, 0.5, 1, 0.5, 0.5]


@pytest.mark.parametrize(
    ("text", "over", "message"),
    [
        ("5: 0, 5: 1", "sigma", "points has two at 5; each must lie at a place of its own"),
        ("0.5: 1, 0.2: 0, 0.5: 1", "percent", "points has two at 0.5; each must lie at a place of its own"),
        ("0: 1, 1: nan", "percent", "point 1: nan is out of range; both must be finite, from -1e+06 to 1e+06"),
        ("inf: 1", "sigma", "point inf: 1 is out of range; both must be finite, from -1e+06 to 1e+06"),
        ("0: 1e300, 1: 0", "percent", "point 0: 1e+300 is out of range; both must be finite, from -1e+06 to 1e+06"),
        (" ,,", "percent", "points are empty; at least one is needed"),
    ],
)
def test_points_that_cannot_be_are_refused_by_the_first_that_is_wrong(text, over, message):
    with pytest.raises(ValueError) as error:
        Curve.parse(text, over)
    assert str(error.value) == message


@pytest.mark.parametrize("text", ["a" * 200_000, "0: 1," * 40_000 + "x", "9" * 5000 + ":", " " * 20_000 + "x"])
def test_a_long_text_is_refused_by_its_beginning(text):
    with pytest.raises(ValueError, match=r"characters.*write pairs of where and strength") as error:
        Curve.parse(text)
    assert len(str(error.value)) < 300


def test_a_curve_is_finite_between_any_points_that_it_takes():
    curve = Curve(((-FARTHEST, -FARTHEST), (FARTHEST, FARTHEST)), over="sigma")
    assert all(math.isfinite(curve(where)) for where in (-1e300, -FARTHEST, 0.0, 5e-324, 1.0, FARTHEST, 1e300))


# ------------------------------------------------------------------------------------------------ interval and window


@pytest.mark.parametrize(
    ("sigma", "inside"), [(0.5, False), (0.50001, True), (1.0, True), (2.0, True), (2.00001, False)]
)
def test_an_interval_is_open_below_and_closed_above(sigma, inside):
    assert (sigma in Interval(0.5, 2.0)) is inside


def test_the_whole_axis_holds_every_noise_level_but_zero():
    assert 1e-30 in Interval() and 1e30 in Interval() and INF in Interval() and 0.0 not in Interval()


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0)])
def test_an_interval_whose_ends_are_not_in_order_holds_nothing(low, high):
    assert not any(sigma in Interval(low, high) for sigma in (0.5, 1.0, 1.5, 2.0, 3.0))


@pytest.mark.parametrize(
    ("start", "end"),
    [(0.5, 0.5), (0.6, 0.5), (1.0, 0.0), (-0.1, 0.5), (0.5, 1.1), (NAN, 0.5), (0.5, NAN), (-INF, 0.5), (0.5, INF)],
)
def test_a_window_that_is_empty_or_not_in_order_or_not_a_number_is_refused_by_its_values(start, end):
    with pytest.raises(ValueError) as error:
        Schedule(start, end)
    assert f"start_percent is {start:g} and end_percent is {end:g}" in str(error.value)


def test_a_window_is_turned_round_into_noise_levels_as_the_host_counts_its_percents():
    assert Schedule(0.25, 0.75).interval(lambda percent: 16.0 * (1 - percent)) == Interval(4.0, 12.0)
    ends = {0.0: 999999999.9, 1.0: 0.0}  # what the host says beyond its table
    assert Schedule().interval(ends.get) == Interval(0.0, 1e9)


def test_an_interval_ends_are_rounded_to_float32_so_that_they_meet_the_samplers_own_noise_levels():
    to_sigma = {0.2: 14.614641189575195 + 1e-9, 0.8: torch.tensor(0.1)}.get  # a float64 and a tensor, as hosts give
    interval = Schedule(0.2, 0.8).interval(to_sigma)
    high, low = torch.tensor([14.614641189575195, 0.1]).tolist()
    assert interval == Interval(low, high) and low != 0.1
    assert high in interval and low not in interval
    assert all(type(end) is float for end in (interval.low, interval.high))


# ------------------------------------------------------------------------------------------- emulation of the samplers
# Each yields (step, σ) in the order in which the host's sampler of that name evaluates, in its own float32.


def euler(sigmas):
    yield from enumerate(sigmas[:-1])


def heun(sigmas):
    for i, after in enumerate(sigmas[1:]):
        yield i, sigmas[i]
        if after != 0:
            yield i, after


def heunpp2(sigmas):
    for i, after in enumerate(sigmas[1:]):
        yield i, sigmas[i]
        if after != sigmas[-1]:
            yield i, after
            if sigmas[i + 2] != sigmas[-1]:
                yield i, sigmas[i + 2]


def between(*fractions, eta=0.0):
    """Evaluations at fractions of the way down in log σ; `eta` lowers the end of the way, as ancestral steps do."""

    def sampler(sigmas):
        for i, after in enumerate(sigmas[1:]):
            yield i, sigmas[i]
            begin, end = torch.tensor([sigmas[i], after])
            up = min(end, eta * (end**2 * (begin**2 - end**2) / begin**2) ** 0.5) if eta else 0.0
            down = (end**2 - up**2) ** 0.5
            for fraction in fractions if down > 0 else ():
                yield i, begin.log().lerp(down.log(), fraction).exp().item()

    return sampler


def sa_solver_pece(sigmas):
    for i, sigma in enumerate(sigmas[:-1]):
        yield i, sigma
        if i > 0:
            yield i, sigma


SAMPLERS = {
    "euler": euler,
    "heun": heun,
    "heunpp2": heunpp2,
    "dpm_2": between(0.5),
    "dpm_2_ancestral": between(0.5, eta=1.0),  # √(σᵢ σ_down) is σᵢ₊₁, up to rounding
    "dpm_2_ancestral, eta 0.6": between(0.5, eta=0.6),
    "dpmpp_2s_ancestral": between(0.5, eta=1.0),
    "dpmpp_2s_ancestral_cfg_pp": between(0.5, eta=1.0),
    "dpmpp_2s_ancestral, eta 0": between(0.5),
    "exp_heun_2_x0": heun,
    "exp_heun_2_x0_sde": heun,
    "seeds_3": between(1 / 3, 2 / 3),
    "sa_solver_pece": sa_solver_pece,
}
ANCESTRAL = {name for name in SAMPLERS if "ancestral" in name}  # their noise is not defined where σ rises


def float32(sigmas):
    return torch.tensor(sigmas, dtype=torch.float32).tolist()


SCHEDULES = {
    "edm": karras(12, 0.03, 14.6),
    "one step": [14.6, 0.0],
    "two steps": [14.6, 3.0, 0.0],
    "exponential": [*(14.6 * 0.5**i for i in range(10)), 0.0],
    "flow": [1 - i / 10 for i in range(11)],
    "flow, shifted": [12 * t / (1 + 11 * t) for t in (1 - i / 50 for i in range(51))],
    "not to the end": karras(12, 0.03, 14.6)[:7],
    "from the middle": karras(12, 0.03, 14.6)[7:],
    "hundred steps": karras(100, 0.03, 14.6),
}
RISING = {
    "restarted": [14.6, 5.0, 1.5, 0.5, 5.0, 1.5, 0.5, 0.0],
    "restarted higher than it began": [5.0, 1.5, 0.5, 14.6, 4.0, 1.0, 0.0],
    "restarted three times": [14.6, 5.0, 1.0, 7.0, 2.0, 5.0, 1.0, 5.0, 0.3, 0.0],
}


def decisions(name: str, sigmas: list[float]):
    """((step, σ at its start) as the schedule says, the same as Steps tells it) for every evaluation."""
    sampler = name.partition(",")[0]
    steps = StepTracker(sigmas, sampler)
    return [((i, sigmas[i]), steps.of(sigma)) for i, sigma in SAMPLERS[name](sigmas)]


@pytest.mark.parametrize("schedule", [*SCHEDULES, *RISING])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_evaluation_belongs_to_the_step_that_makes_it(name, schedule):
    if name in ANCESTRAL and schedule in RISING:
        return
    for truth, told in decisions(name, float32((SCHEDULES | RISING)[schedule])):
        assert told == truth


@pytest.mark.parametrize("seed", range(40))
def test_every_evaluation_belongs_to_its_step_in_any_falling_schedule(seed):
    draw = random.Random(seed)
    sigmas = [draw.uniform(1.0, 80.0)]
    for _ in range(draw.randrange(30)):
        sigmas.append(sigmas[-1] * draw.uniform(0.3, 0.999))
    sigmas = float32([*sigmas, 0.0] if draw.random() < 0.7 or len(sigmas) == 1 else sigmas)
    for name in SAMPLERS:
        for truth, told in decisions(name, sigmas):
            assert told == truth, name


def test_the_samplers_that_look_ahead_are_all_emulated_here():
    assert set(EVALUATIONS) <= set(SAMPLERS)


@pytest.mark.parametrize("name", ["exp_heun_2_x0", "exp_heun_2_x0_sde", "seeds_3", "sa_solver_pece"])
@pytest.mark.parametrize("offset", [5e-5, 1e-4, 2e-4])  # the host's, at shift 2, 1 and 0.5
def test_the_first_evaluation_belongs_to_the_first_step_also_where_the_sampler_moves_it(name, offset):
    """Those that count in log SNR move σ = 1 of a flow down a little, since its SNR is 0."""
    sigmas = float32(SCHEDULES["flow"])
    steps = StepTracker(sigmas, name)
    for number, (i, sigma) in enumerate(SAMPLERS[name](sigmas)):
        assert steps.of(sigma if number else float32([1 - offset])[0]) == (i, sigmas[i])


def test_what_heun_asks_for_twice_belongs_to_the_earlier_step_first():
    steps = StepTracker([4.0, 2.0, 1.0, 0.0], "heun")
    indices = [steps.of(sigma)[0] for sigma in (4.0, 2.0, 2.0, 1.0, 1.0)]
    assert indices == [0, 0, 1, 1, 2]


def test_what_pece_asks_for_twice_belongs_to_the_later_step_both_times():
    steps = StepTracker([4.0, 2.0, 1.0, 0.0], "sa_solver_pece")
    indices = [steps.of(sigma)[0] for sigma in (4.0, 2.0, 2.0, 1.0, 1.0)]
    assert indices == [0, 1, 1, 2, 2]


def test_a_sampler_of_unknown_name_is_taken_to_begin_a_step_at_each_noise_level_of_the_schedule():
    steps = StepTracker([4.0, 2.0, 1.0, 0.0], "somebody's sampler")
    assert [steps.of(sigma) for sigma in (4.0, 3.0, 2.0, 1.5, 1.1, 1.0, 0.3)] == [
        (0, 4.0), (0, 4.0), (1, 2.0), (1, 2.0), (1, 2.0), (2, 1.0), (2, 1.0),
    ]  # fmt: skip


@pytest.mark.parametrize("rounding", [1 - 1e-6, 1 + 1e-6])
def test_a_noise_level_of_the_schedule_is_known_up_to_the_rounding_of_a_sampler_that_works_in_its_logarithm(rounding):
    sigmas = float32(karras(100, 0.03, 14.6))
    steps = StepTracker(sigmas, "somebody's sampler")
    assert [steps.of(sigma * rounding) for sigma in sigmas[:-1]] == list(enumerate(sigmas[:-1]))


def test_a_noise_level_that_repeats_in_the_schedule_has_one_start():
    steps = StepTracker([4.0, 2.0, 2.0, 1.0, 0.0], "euler")
    assert [steps.of(sigma)[1] for sigma in (4.0, 2.0, 2.0, 1.0)] == [4.0, 2.0, 2.0, 1.0]


@pytest.mark.parametrize("options", [{"sampler": name} for name in sorted(FREE)] + [{"free": True}])
def test_a_sampler_that_chooses_its_own_noise_levels_is_taken_as_it_comes(options):
    sigmas = float32(karras(12, 0.03, 14.6))
    steps = StepTracker(sigmas, **options)
    draw = random.Random(0)
    taken = [20.0, sigmas[0], *(draw.uniform(0.01, 14.6) for _ in range(50)), sigmas[5], 1e-3]  # also up again
    rising = sigmas[::-1]
    for sigma in taken:
        index, start = steps.of(sigma)
        assert start == sigma
        assert index == max(0, len(sigmas) - 1 - bisect.bisect_left(rising, sigma))


def test_the_callers_schedule_is_not_changed():
    sigmas = [4.0, 2.0, 1.0]
    StepTracker(sigmas, "heunpp2").of(4.0)
    assert sigmas == [4.0, 2.0, 1.0]

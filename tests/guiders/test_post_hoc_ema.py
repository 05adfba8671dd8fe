"""Averages of training: their lengths, what spans them, and what a reconstruction is next to the average itself."""

import math
import weakref

import pytest
import torch
from pack.patches.post_hoc_ema import (
    RAW,
    UNIFORM,
    coefficients,
    decay,
    gamma_of,
    misfit,
    overlap,
    reconstruct,
    sigma_rel_of,
)

STEPS = 1200
NARROW, WIDE = gamma_of(0.05), gamma_of(0.10)


def profile(tau: torch.Tensor, time: float, gamma: float) -> torch.Tensor:
    return torch.where(tau <= time, (gamma + 1) / time * (tau / time) ** gamma, 0)


def midpoints(end: float, n: int = 200_000) -> torch.Tensor:
    return (torch.arange(n, dtype=torch.float64) + 0.5) * (end / n)


def smooth(step: float) -> torch.Tensor:
    """Weights that move smoothly: constant, linear, quadratic, and two that bend."""
    t = torch.tensor(step / STEPS, dtype=torch.float64)
    return torch.stack([torch.ones_like(t), t, t * t, torch.sin(3 * t), torch.exp(-2 * t)])


def averages(gamma: float, weights=smooth) -> list[torch.Tensor]:
    """The average after each step of training, kept as training keeps it; a step has the weights of its middle."""
    kept, average = [torch.tensor(math.nan)], torch.zeros_like(weights(1.0))
    for step in range(1, STEPS + 1):
        beta = decay(step, gamma)
        average = beta * average + (1 - beta) * weights(step - 0.5)
        kept.append(average)
    return kept


def evenly(count: int) -> list[int]:
    return [STEPS * i // count for i in range(1, count + 1)]


# ------------------------------------------------------------------------------------------------------------- lengths


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_papers_lengths_have_the_papers_powers(sigma_rel, gamma):
    assert round(gamma_of(sigma_rel), 2) == gamma


@pytest.mark.parametrize("sigma_rel", [1e-4, 0.01, 0.05, 0.1, 0.2, 0.25, 0.28, UNIFORM])
def test_length_to_power_and_back(sigma_rel):
    gamma = gamma_of(sigma_rel)
    assert sigma_rel_of(gamma) == pytest.approx(sigma_rel, rel=1e-12)
    inverse = sigma_rel**-2
    roots = torch.linalg.eigvals(
        torch.tensor([[-7, inverse - 16, inverse - 12], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    )
    assert gamma == pytest.approx(roots.real.max().item(), rel=1e-9, abs=1e-9)


def test_raw_weights_are_the_limit_of_a_narrow_average():
    assert gamma_of(0.0) == RAW and sigma_rel_of(RAW) == 0.0
    assert gamma_of(1e-6) == pytest.approx(1e6, rel=1e-5)


@pytest.mark.parametrize("sigma_rel", [-0.01, 0.3, math.nan, math.inf])
def test_a_length_that_no_average_has_is_refused(sigma_rel):
    with pytest.raises(ValueError, match=f"σ_rel is {sigma_rel}; it must be from 0 .* to 0.2887"):
        gamma_of(sigma_rel)


@pytest.mark.parametrize("gamma", [0.0, WIDE, NARROW])
def test_a_profile_sums_to_one_and_its_relative_deviation_is_its_length(gamma):
    tau = midpoints(3.0)
    p = profile(tau, 3.0, gamma) * 3.0 / len(tau)
    mean = (p * tau).sum()
    assert p.sum().item() == pytest.approx(1, abs=1e-8)
    deviation = ((p * (tau - mean) ** 2).sum().sqrt() / 3.0).item()
    assert deviation == pytest.approx(sigma_rel_of(gamma), rel=1e-6)


@pytest.mark.parametrize(
    ("a", "b"), [((2.0, WIDE), (3.0, NARROW)), ((3.0, WIDE), (3.0, NARROW)), ((2.0, 0.0), (2.5, 0.5))]
)
def test_the_overlap_of_two_profiles_is_the_integral_of_their_product(a, b):
    tau = midpoints(3.0)
    integral = (profile(tau, *a) * profile(tau, *b)).mean().item() * 3.0
    assert overlap(a, b) == overlap(b, a) == pytest.approx(integral, rel=1e-4)


def test_the_average_that_training_keeps_weighs_its_steps_by_the_profile():
    gamma, edges = WIDE, torch.arange(STEPS + 1, dtype=torch.float64) / STEPS
    share = (edges ** (gamma + 1)).diff()  # ∫ p over each step
    expected = sum(share[step - 1] * smooth(step - 0.5) for step in range(1, STEPS + 1))
    torch.testing.assert_close(averages(gamma)[STEPS], expected, rtol=1e-12, atol=0)


# -------------------------------------------------------------------------------------------------------- coefficients

MANY = [(float(time), gamma) for time in range(1, 65) for gamma in (WIDE, NARROW)]


@pytest.mark.parametrize("gamma", [NARROW, RAW])
@pytest.mark.parametrize("ema", [0.01, 0.07, 0.1, 0.25])
def test_coefficients_sum_to_one(gamma, ema):
    for times in ([1.0], [1.0, 2.0], [0.1, 5.0, 5.1, 40.0], [float(time) for time in range(1, 65)]):
        found = coefficients([(time, gamma) for time in times], (times[-1], gamma_of(ema)))
        assert sum(found) == pytest.approx(1, abs=1e-12)
        assert all(math.isfinite(x) for x in found)


@pytest.mark.parametrize("index", [0, 5, 127])
def test_a_snapshots_own_profile_is_that_snapshot_exactly(index):
    assert coefficients(MANY, MANY[index]) == [float(i == index) for i in range(len(MANY))]


@pytest.mark.parametrize("index", [2, 5, 7])
def test_a_profile_that_is_nearly_a_snapshots_own_is_nearly_that_snapshot(index):
    time, gamma = MANY[:8][index]
    expected = [float(i == index) for i in range(8)]
    assert coefficients(MANY[:8], (time, gamma * (1 + 1e-9))) == pytest.approx(expected, abs=1e-4)


def test_a_single_snapshot_is_itself_whatever_is_asked_for():
    assert coefficients([(3.0, NARROW)], (3.0, WIDE)) == coefficients([(3.0, RAW)], (3.0, WIDE)) == [1.0]


@pytest.mark.parametrize("gamma", [NARROW, RAW])
def test_the_unit_of_time_does_not_matter(gamma):
    times = [2.0, 3.0, 7.0, 8.0]
    a, b = (coefficients([(t * unit, gamma) for t in times], (8.0 * unit, WIDE)) for unit in (1.0, 1024.0))
    assert a == pytest.approx(b, abs=1e-10)


def test_the_fit_is_the_best_there_is():
    snapshots, target = [(2.0, NARROW), (3.0, WIDE), (3.0, NARROW)], (3.0, gamma_of(0.15))
    tau = midpoints(3.0)
    spanned = torch.stack([profile(tau, *snapshot) for snapshot in snapshots], 1)
    best = torch.linalg.lstsq(spanned, profile(tau, *target)[:, None]).solution[:, 0]
    assert coefficients(snapshots, target) == pytest.approx((best / best.sum()).tolist(), abs=1e-4)


@pytest.mark.parametrize("times", [[1, 2, 3, 4], [1, 2, 5, 11], [3, 4]])
def test_raw_coefficients_are_shares_and_later_weights_have_more_where_times_are_even(times):
    found = coefficients([(float(time), RAW) for time in times], (float(times[-1]), WIDE))
    assert all(x > 0 for x in found)
    assert times != [1, 2, 3, 4] or found[:-1] == sorted(found[:-1])


# ------------------------------------------------------------------------------------------------------ reconstruction


def error(count: int, gammas: list[float], ema: float, weights=smooth) -> float:
    """Of the average that is put together from `count` times, next to the one that training would have kept."""
    snapshots = [(time, gamma) for time in evenly(count) for gamma in gammas]
    kept = {gamma: averages(gamma, weights) for gamma in gammas if gamma != RAW}
    states = [{"w": kept[gamma][time] if gamma in kept else weights(time)} for time, gamma in snapshots]
    target = (STEPS, gamma_of(ema))
    result = reconstruct(states, coefficients(snapshots, target))["w"]
    return (result - averages(target[1], weights)[STEPS]).abs().max().item()


@pytest.mark.parametrize("ema", [0.03, 0.07, 0.15, 0.2])
def test_two_averages_at_a_few_times_give_a_third_and_more_times_give_it_better(ema):
    errors = [error(count, [WIDE, NARROW], ema) for count in (2, 8, 32)]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 1e-3


@pytest.mark.parametrize("ema", [0.03, 0.07, 0.1, 0.15])
def test_one_average_gives_another_too_but_needs_more_times(ema):
    errors = [error(count, [NARROW], ema) for count in (2, 8, 32)]
    assert errors[0] > 1.5 * errors[1] > 5 * errors[2]
    assert error(8, [WIDE, NARROW], ema) < 0.2 * errors[1]


@pytest.mark.parametrize("ema", [0.05, 0.1, 0.2])
def test_raw_weights_at_a_few_times_give_an_average_and_twice_as_many_a_four_times_better_one(ema):
    errors = [error(count, [RAW], ema) for count in (5, 10, 20)]
    assert errors[0] > 3.5 * errors[1] > 3.5 * 3.5 * errors[2]
    assert errors[2] < 3e-3


def line(step: float) -> torch.Tensor:
    return torch.tensor([3.0 - 2.0 * step / STEPS, 0.5], dtype=torch.float64)


def test_raw_weights_that_move_in_a_straight_line_give_the_average_of_what_rests_before_the_first():
    tau = midpoints(4.0)
    exact = (profile(tau, 4.0, WIDE) * tau.clamp(min=1.0)).mean().item() * 4.0
    found = coefficients([(time, RAW) for time in (1.0, 2.0, 4.0)], (4.0, WIDE))
    assert found[0] + 2 * found[1] + 4 * found[2] == pytest.approx(exact, abs=1e-8)
    assert error(10, [RAW], 0.1, line) < 1e-6  # the profile has next to nothing before a tenth


def test_raw_weights_of_each_step_give_the_average_that_training_keeps():
    assert error(STEPS, [RAW], 0.1) < 1e-5


@pytest.mark.parametrize("gammas", [[NARROW], [WIDE, NARROW]])
def test_how_far_a_fit_is_from_its_target_is_known(gammas):
    tau, target = midpoints(STEPS), (STEPS, gamma_of(0.15))
    snapshots = [(time, gamma) for time in evenly(4) for gamma in gammas]
    found = coefficients(snapshots, target)
    wanted = profile(tau, *target)
    fitted = sum(x * profile(tau, *snapshot) for x, snapshot in zip(found, snapshots, strict=True))
    exact = ((fitted - wanted).norm() / wanted.norm()).item()
    assert misfit(snapshots, found, target) == pytest.approx(exact, rel=1e-3)
    assert misfit(snapshots, [1.0] + [0.0] * (len(snapshots) - 1), snapshots[0]) < 1e-7


# -------------------------------------------------------------------------------------------------------- state dicts


def state(seed: int, dtype=torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(3, 4, generator=generator).to(dtype), "count": torch.tensor(seed)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn])
def test_each_tensor_keeps_its_dtype_and_one_snapshot_its_bits(dtype):
    result = reconstruct([state(1, dtype)], [1.0])
    assert result["a"].dtype == dtype and torch.equal(result["a"].double(), state(1, dtype)["a"].double())


def test_halves_are_summed_in_single_precision():
    parts = [{"a": torch.full((1,), value).half()} for value in (1.0, 2.0**-11, 2.0**-11)]
    assert reconstruct(parts, [1.0, 1.0, 1.0])["a"].item() == 1 + 2.0**-10


def test_what_is_no_floating_number_is_the_last_ones_and_nothing_given_is_changed():
    states = [state(1), state(2)]
    result = reconstruct(states, [0.25, 0.75])
    torch.testing.assert_close(result["a"], 0.25 * state(1)["a"] + 0.75 * state(2)["a"])
    assert result["count"] == 2
    assert all(torch.equal(given["a"], state(seed)["a"]) for seed, given in enumerate(states, 1))


def test_one_state_dict_is_held_at_a_time():
    alive = weakref.WeakSet()

    def read(seed):
        assert not alive, "the one before is still held"
        tensors = {"a": torch.ones(4, dtype=torch.float16)}
        alive.update(tensors.values())
        return tensors

    assert reconstruct(map(read, range(3)), [0.5, 0.25, 0.25])["a"].tolist() == [1.0] * 4


# ------------------------------------------------------------------------------------------------------------- errors

GOOD = (2.0, WIDE)


@pytest.mark.parametrize(
    ("snapshots", "target", "message"),
    [
        ([], GOOD, "there are no snapshots"),
        ([(1.0, NARROW), (math.nan, NARROW)], GOOD, "snapshot 2 has time nan"),
        ([(0.0, NARROW), (2.0, NARROW)], GOOD, "snapshot 1 has time 0"),
        ([(1.0, NARROW), (math.inf, NARROW)], GOOD, "snapshot 2 has time inf"),
        ([(1.0, math.nan)], GOOD, "snapshot 1 has time 1 and γ nan"),
        ([(1.0, -0.5)], GOOD, "γ -0.5"),
        ([(1.0, NARROW), (3.0, NARROW), (2.0, NARROW)], GOOD, "snapshot 3 has time 2 and the one before it 3"),
        ([(1.0, NARROW), (2.0, NARROW), (2.0, NARROW)], GOOD, "snapshot 3 has time 2 and the one before it 2"),
        ([(2.0, RAW), (2.0, RAW)], GOOD, "snapshot 2 has time 2 and the one before it 2"),
        ([(1.0, RAW), (2.0, NARROW)], GOOD, "one kind"),
        ([(1.0, NARROW), (2.0, NARROW)], (2.5, WIDE), "the target has time 2.5"),
        ([(1.0, NARROW), (2.0, NARROW)], (0.0, WIDE), "the target has time 0"),
        ([(1.0, NARROW), (2.0, NARROW)], (2.0, math.nan), "γ nan"),
        ([(1.0, NARROW), (2.0, NARROW)], (2.0, RAW), "γ inf"),
    ],
)
def test_profiles_that_cannot_work_are_refused_by_number(snapshots, target, message):
    with pytest.raises(ValueError, match=message):
        coefficients(snapshots, target)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"a": torch.ones(3, 4)}, "late has no count, but early has"),
        (state(2) | {"extra": torch.ones(1)}, "early has no extra, but late has"),
        (state(2) | {"a": torch.ones(4, 3)}, r"a is \[4, 3\] in late but \[3, 4\] in early"),
        (state(2) | {"a": torch.full((3, 4), math.nan)}, "a of late has values that are not finite"),
        (state(2) | {"a": torch.full((3, 4), math.inf)}, "a of late has values that are not finite"),
    ],
)
def test_snapshots_that_do_not_fit_are_refused_with_key_shapes_and_names(second, message):
    with pytest.raises(ValueError, match=message):
        reconstruct([state(1), second], [0.5, 0.5], ["early", "late"])


def test_no_snapshots_and_unnamed_ones():
    with pytest.raises(ValueError, match="there are no snapshots"):
        reconstruct([], [])
    with pytest.raises(ValueError, match="snapshot 2 has no a, but snapshot 1 has"):
        reconstruct([{"a": torch.ones(1)}, {}], [0.5, 0.5])

"""HiGS: away from the average of earlier predictions, without what is along the prediction or of low frequency."""

import math

import pytest
import torch
from pack.guiders import ClassifierFreeGuidance, HistoryGuidance
from pack.guiders.base import NEGATIVE, POSITIVE, Step
from pack.guiders.compose import GuidanceRun
from pack.guiders.schedule import Interval
from pack.tests.toy import Gaussian, Mixture, Toy, heun, karras

SHAPES = ((1, 8, 2, 3, 4), (1, 4, 9))  # of a packed latent: a picture and its sound
CUT = math.prod(SHAPES[0])
PLAIN = {"cutoff": 0.0, "t_min": 0.0, "eta": 1.0}


def several(count: int, *shape: int, dtype=torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def at(index: int, time: float = 0.7, shapes=(), **changes) -> Step:
    return Step(torch.empty(0), 2.0, 2.0, index, time, shapes=shapes, **changes)


def fed(
    rule: HistoryGuidance, results: list[torch.Tensor], times=(0.9, 0.8, 0.7, 0.6), shapes=()
) -> list[torch.Tensor]:
    """What one run makes of the results so far of its steps."""
    apply = rule.begin()
    steps = (at(index, time, shapes) for index, time in enumerate(times))
    return [apply(denoised, {}, step) for denoised, step in zip(results, steps, strict=False)]


def cosines(size: int) -> torch.Tensor:
    """The matrix of the orthonormal DCT-II, [frequency, place]."""
    place, frequency = torch.arange(size, dtype=torch.float64), torch.arange(size, dtype=torch.float64)[:, None]
    matrix = torch.cos(math.pi * (place + 0.5) * frequency / size) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-13)
    return matrix


def of_the_paper(results, times, scale, eta, alpha, t_min, t_max, cutoff) -> list[torch.Tensor]:
    """Equations 5 to 9 of the paper, with the history written as a sum, for latents [batch, channels, height, width]."""
    found = []
    for k, (prediction, t) in enumerate(zip(results, times, strict=False)):
        if k == 0 or not t_min < t <= t_max:
            found.append(prediction)
            continue
        history = sum(alpha * (1 - alpha) ** (k - 1 - i) * results[i] for i in range(k))
        delta = prediction - history
        parallel = (delta * prediction).sum((1, 2, 3), True) / prediction.square().sum((1, 2, 3), True) * prediction
        delta = delta - parallel + eta * parallel
        rows, columns = cosines(delta.shape[-2]), cosines(delta.shape[-1])
        u, v = (torch.arange(n, dtype=torch.float64) / n for n in delta.shape[-2:])
        radius = (u[:, None] ** 2 + v[None] ** 2).sqrt()
        spectrum = rows @ delta @ columns.T / (1 + torch.exp(-50 * (radius - cutoff)))
        weight = scale * math.sqrt((t - t_min) / (t_max - t_min))
        found.append(prediction + weight * (rows.T @ spectrum @ columns))
    return found


@pytest.mark.parametrize("size", [(6, 5), (8, 8), (1, 7)], ids=str)
@pytest.mark.parametrize("changes", [{}, {"eta": 0.3, "alpha": 0.5, "t_max": 0.85, "cutoff": 0.4}], ids=["", "others"])
def test_it_is_the_papers_formula_with_a_cosine_transform_by_matrices(size, changes):
    settings = {"scale": 1.75, "eta": 0.0, "alpha": 0.75, "t_min": 0.4, "t_max": 1.0, "cutoff": 0.05} | changes
    results, times = several(6, 3, 4, *size), (1.0, 0.9, 0.8, 0.6, 0.45, 0.3)
    expected = of_the_paper(results, times, **settings)
    for given, wanted in zip(fed(HistoryGuidance(**settings), results, times), expected, strict=True):
        torch.testing.assert_close(given, wanted, rtol=0, atol=1e-13)
    assert not torch.allclose(expected[3], results[3]) and torch.equal(expected[5], results[5])


def test_the_first_step_is_left_as_it_is():
    (only,) = several(1, 2, 4, 6, 5)
    assert torch.equal(fed(HistoryGuidance(**PLAIN), [only])[0], only)


def test_the_average_gathers_in_steps_above_t_max_too():
    results = several(3, 2, 4, 6, 5)
    late = fed(HistoryGuidance(t_max=0.75), results)  # t is 0.9, 0.8, 0.7
    assert torch.equal(late[0], results[0]) and torch.equal(late[1], results[1])
    alone = fed(HistoryGuidance(t_max=0.75), results[1:], times=(0.8, 0.7))
    assert not torch.allclose(late[2], alone[1])


def test_a_colour_that_changes_alike_everywhere_is_hardly_added_and_the_finest_structure_wholly():
    plane, finest = (torch.outer(wave, wave)[None, None] for wave in cosines(16)[[0, 15]])
    for change, passes in ((plane, 1 / (1 + math.exp(50 * 0.05))), (finest, 1.0)):
        results = [torch.zeros_like(change), change]
        rule = HistoryGuidance(1.0, eta=1.0, t_min=0.0, t_max=0.8)  # w is 1 at t = 0.8
        torch.testing.assert_close(fed(rule, results)[1] - change, passes * change, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spatial", [(), (7,), (3, 4, 5)], ids=lambda spatial: f"{len(spatial)}-D")
def test_other_ranks_are_filtered_over_their_last_two_axes_or_the_one_they_have(spatial):
    results = several(2, 2, 4, *spatial)
    found = fed(HistoryGuidance(**PLAIN), results)[1]
    as_frames = [value.reshape(2, -1, *((1, 1, *spatial)[-2:])) for value in results]
    expected = fed(HistoryGuidance(**PLAIN), as_frames)[1]
    torch.testing.assert_close(found, expected.reshape(found.shape), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("step", "t"),
    [
        (at(1, time=0.55), 0.55),
        (Step(torch.empty(0), 0.8, 0.8, 1, 0.57, signal=0.2), 0.8),
        (Step(torch.empty(0), 0.6, 0.8, 1, 0.57, signal=0.4), 0.8),
    ],
    ids=["timesteps", "flow", "flow, second evaluation"],
)
def test_t_is_the_noise_level_of_a_flow_network_and_the_fraction_of_timesteps_of_others(step, t):
    results, rule = several(2, 2, 4, 6, 5), HistoryGuidance(1.0, t_min=0.0)
    apply = rule.begin()
    apply(results[0], {}, at(0))
    reference = fed(HistoryGuidance(1.0, t_min=0.0), results, times=(1.0, 1.0))[1] - results[1]
    added = apply(results[1], {}, step) - results[1]
    torch.testing.assert_close(added, math.sqrt(t) * reference, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.75, 0.5)])
def test_an_empty_interval_is_refused_with_both_ends(low, high):
    with pytest.raises(ValueError, match=rf"t_min is {low} and t_max is {high}; t_min must be less"):
        HistoryGuidance(t_min=low, t_max=high)


def test_another_sample_changes_no_bit_of_ones_own():
    results = several(3, 3, 4, 6, 5)
    alone = [fed(HistoryGuidance(), [value[row : row + 1] for value in results])[2] for row in range(3)]
    results[1][1] = math.nan
    together = fed(HistoryGuidance(), results)[2]
    assert torch.equal(together[:1], alone[0]) and torch.equal(together[2:], alone[2])


@pytest.mark.parametrize("changed", [0, 1], ids=["picture", "sound"])
def test_another_modality_changes_no_bit_of_ones_own(changed):
    results, parts = several(2, 2, 1, CUT + 36), (slice(None, CUT), slice(CUT, None))
    found = fed(HistoryGuidance(), results, shapes=SHAPES)[1]
    for part, shape in zip(parts, SHAPES, strict=True):
        alone = fed(HistoryGuidance(), [value[..., part].reshape(2, *shape[1:]) for value in results])[1]
        torch.testing.assert_close(found[..., part], alone.reshape(2, 1, -1), rtol=0, atol=1e-14)
    results[1][..., parts[changed]] = math.nan
    again = fed(HistoryGuidance(), results, shapes=SHAPES)[1]
    assert torch.equal(again[..., parts[1 - changed]], found[..., parts[1 - changed]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_zero_and_what_does_not_change_stay_finite(dtype):
    (value,) = several(1, 2, 4, 6, 5, dtype=dtype)
    zero = torch.zeros_like(value)
    assert torch.equal(fed(HistoryGuidance(), [zero, zero])[1], zero)
    assert all(result.isfinite().all() for result in fed(HistoryGuidance(eta=1.0), [zero, value, value]))
    torch.testing.assert_close(fed(HistoryGuidance(alpha=1.0, eta=1.0), [value, value])[1], value, rtol=0, atol=0)
    large = [value * 2.0**13, -value * 2.0**13]
    assert fed(HistoryGuidance(0.5), large)[1].isfinite().all()


def test_a_run_with_a_sampler_of_second_order_knows_nothing_of_another():
    x = 80 * several(1, 2, 1, 4, 4)[0]
    denoisers = Toy({POSITIVE: Gaussian(1.0, 0.5), NEGATIVE: Mixture((-1.0, 0.5), 0.7)})
    rules = [(ClassifierFreeGuidance(3.0), Interval()), (HistoryGuidance(t_min=0.0, t_max=1.0), Interval())]
    run = GuidanceRun(rules)

    def sampled(run):
        return heun(run, denoisers, x, karras(8))

    assert torch.equal(sampled(run), sampled(run)) and torch.equal(sampled(run), sampled(GuidanceRun(rules)))

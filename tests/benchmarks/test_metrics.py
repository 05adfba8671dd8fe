"""The measures of the benchmarks, against closed forms."""

import numpy as np
import pytest
from pack.benchmarks import metrics
from pack.benchmarks.metrics import Gaussian, Manifold, PixelSpace

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def the_same_numbers_whichever_test_ran_before():
    RANDOM.bit_generator.state = np.random.default_rng(0).bit_generator.state


def exact(mean, cov, n=500, seed=1) -> np.ndarray:
    """n features whose mean and unbiased covariance are exactly these."""
    x = np.random.default_rng(seed).standard_normal((n, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T  # now of covariance I
    return x @ np.linalg.cholesky(np.asarray(cov)).T + np.asarray(mean)


# ------------------------------------------------------------------------------------------------- Fréchet distance


def test_of_axis_aligned_gaussians_it_is_the_sum_over_axes():
    """|μ₁ − μ₂|² + Σ (σ₁ − σ₂)²"""
    real = Gaussian.of(exact([0, 0, 0], np.diag([1.0, 4.0, 9.0])))
    generated = exact([1, -2, 0.5], np.diag([4.0, 4.0, 0.25]), seed=2)
    assert metrics.frechet(generated, real) == pytest.approx(1 + 4 + 0.25 + 1 + 0 + 2.5**2, abs=1e-9)


def test_of_covariances_that_do_not_commute_it_is_the_closed_form_of_two_dimensions():
    """tr (AB)^½ = (tr AB + 2 (det AB)^½)^½ for 2 × 2"""
    a, b = np.array([[2.0, 0.8], [0.8, 1.0]]), np.array([[1.0, -0.6], [-0.6, 3.0]])
    trace = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = 9 + np.trace(a) + np.trace(b) - 2 * trace
    one, other = Gaussian.of(exact([3, 0], a)), Gaussian.of(exact([0, 0], b, seed=3))
    assert one.distance(other) == pytest.approx(expected, abs=1e-9)
    assert other.distance(one) == pytest.approx(expected, abs=1e-9)


def test_a_set_has_no_distance_to_itself_nor_to_a_turned_copy_of_a_round_one():
    features = RANDOM.standard_normal((300, 8)) * np.arange(1, 9)
    assert metrics.frechet(features, Gaussian.of(features)) < 1e-9
    turn = np.linalg.qr(RANDOM.standard_normal((4, 4))).Q
    round_one = exact(np.zeros(4), np.eye(4))
    assert metrics.frechet(round_one @ turn, Gaussian.of(round_one)) < 1e-9


def test_too_few_features_are_refused_and_few_give_too_much():
    reference = Gaussian(np.zeros(6), np.eye(6))
    with pytest.raises(ValueError, match="6 features of 6 dimensions: at least 7"):
        metrics.frechet(np.eye(6), reference)
    mean = {
        n: np.mean([metrics.frechet(RANDOM.standard_normal((n, 6)), reference) for _ in range(40)]) for n in (50, 400)
    }
    assert mean[50] > 4 * mean[400] > 0  # the bias falls about as 1/n: by 8 here


def test_half_precision_features_are_measured_in_double():
    features = (RANDOM.standard_normal((400, 4)) + 100).astype(np.float32)
    assert metrics.frechet(features, Gaussian.of(features.astype(np.float64))) < 1e-9


# ------------------------------------------------------------------------------------------------------ pixel space


def pictures(n, generator, side=16):
    """Grey pictures of one random brightness, with a little noise."""
    level = generator.uniform(0.2, 0.8, (n, 1, 1, 1))
    return (level + 0.02 * generator.standard_normal((n, side, side, 3))).clip(0, 1)


def test_the_first_component_of_grey_pictures_is_their_brightness():
    real = pictures(200, np.random.default_rng(0))
    space = PixelSpace.of(real, count=4)
    coordinates = space(real)
    assert coordinates.shape == (200, 4)
    assert abs(np.corrcoef(coordinates[:, 0], real.mean((1, 2, 3)))[0, 1]) > 0.999
    np.testing.assert_allclose(space.components.T @ space.components, np.eye(4), atol=1e-12)
    assert coordinates[:, 0].var() > 100 * coordinates[:, 1].var()


def test_a_shift_of_all_pixels_is_seen_in_full_and_enlarging_is_not():
    real = pictures(200, np.random.default_rng(0))
    space = PixelSpace.of(real, count=4)
    reference = Gaussian.of(space(real))
    shift = 0.1
    expected = shift**2 * 16 * 16 * 3  # |μ₁ − μ₂|², all of it along the first component, but for the noise in it
    assert metrics.frechet(space(real + shift), reference) == pytest.approx(expected, rel=1e-3)
    np.testing.assert_allclose(space(real.repeat(8, 1).repeat(8, 2)), space(real), atol=1e-9)
    with pytest.raises(ValueError, match="20 × 20 do not divide"):
        space(np.zeros((1, 20, 20, 3)))


# ------------------------------------------------------------------------------------------------ precision and recall


def test_identical_sets_have_precision_and_recall_one_and_disjoint_ones_zero():
    features = RANDOM.standard_normal((120, 5))
    real = Manifold(features, 3)
    assert (metrics.precision(features, real), metrics.recall(features, real)) == (1, 1)
    assert (metrics.precision(features + 100, real), metrics.recall(features + 100, real)) == (0, 0)


def test_half_of_the_modes_is_all_precision_and_half_recall_and_the_other_way_round():
    near, far = RANDOM.standard_normal((600, 2)), RANDOM.standard_normal((600, 2)) + 50
    both = Manifold(np.concatenate([near, far]), 5)
    one = near + 1e-6
    assert metrics.precision(one, both) == 1 and metrics.recall(one, both) == pytest.approx(0.5, abs=0.01)
    real = Manifold(near, 5)
    wide = np.concatenate([one, far])
    assert metrics.precision(wide, real) == pytest.approx(0.5, abs=0.01) and metrics.recall(wide, real) == 1


def test_radii_are_those_of_the_kth_neighbour_on_a_line_over_many_chunks():
    line = np.arange(metrics.CHUNK + 30, dtype=float)[:, None]
    radii = Manifold(line, 2).radii
    assert radii[0] == radii[-1] == 4 and set(radii[1:-1]) == {1}
    assert Manifold(line, 1).holds(np.array([[-0.9], [-1.1], [3.5], [metrics.CHUNK + 31.0]])).tolist() == [1, 0, 1, 0]
    with pytest.raises(ValueError, match="3 features have no neighbour number 3"):
        Manifold(line[:3], 3)


# ----------------------------------------------------------------------------------- variety, obedience, appearance


def test_diversity_is_the_mean_distance_within_a_prompt_whatever_lies_between_prompts():
    features = np.array([[0, 0], [3, 4], [100, 0], [100, 1], [100, 2], [7, 7]], float)
    groups = np.array([0, 0, 5, 5, 5, 9])  # 5;  (1 + 1 + 2) / 3;  one alone
    assert metrics.diversity(features, groups) == pytest.approx((5 + 4 / 3) / 2)
    assert metrics.diversity(features + 1000 * groups[:, None], groups) == pytest.approx((5 + 4 / 3) / 2)
    assert np.isnan(metrics.diversity(features[:2], np.array([0, 1])))


def test_hits_are_by_part():
    logits = np.zeros((2, 2, 3))
    logits[0, 0, 2] = logits[0, 1, 1] = logits[1, 0, 0] = logits[1, 1, 0] = 1
    assert metrics.hits(logits, np.array([[2, 1], [0, 1]])).tolist() == [[True, True], [True, False]]


def test_appearance_of_pictures_that_are_known():
    grey, red = np.full((4, 4, 3), 0.5), np.zeros((4, 4, 3))
    red[..., 0] = 1
    stripes = np.zeros((4, 4, 3))
    stripes[:, ::2] = 0.5
    found = metrics.appearance(np.stack([grey, red, stripes]))
    np.testing.assert_allclose(found["contrast"], [0, 0, 0.25], atol=1e-12)
    np.testing.assert_allclose(found["saturation"], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(found["clipped"], [0, 1, 0.5], atol=1e-12)


# -------------------------------------------------------------------------------------------------------- how sure


def test_the_interval_covers_a_known_mean_as_often_as_it_says_and_knows_its_error():
    truth, inside, errors = 2.0, 0, []
    for trial in range(100):
        x = truth + np.random.default_rng(trial).standard_normal(100)
        found = metrics.bootstrap(lambda at, x=x: x[at].mean(), np.arange(100), draws=200, seed=trial)
        inside += found.low <= truth <= found.high
        errors.append(found.error)
    assert 88 <= inside <= 99  # 95 expected; 100 draws of it have a deviation of 2.2
    assert np.mean(errors) == pytest.approx(0.1, rel=0.05)


def test_pictures_of_one_prompt_are_drawn_together():
    """Ten copies of each of 40 numbers: the error is that of 40, not of 400."""
    x = RANDOM.standard_normal(40).repeat(10)
    groups = np.arange(40).repeat(10)
    error = metrics.bootstrap(lambda at: x[at].mean(), groups, draws=400).error
    assert error == pytest.approx(x.std() / 40**0.5, rel=0.15)
    for chosen in metrics.resamples(groups, 5, 0):
        assert set(np.bincount(chosen // 10, minlength=40)) <= set(range(0, 400, 10))


def test_two_methods_on_the_same_prompts_are_drawn_together():
    """A large common part falls out of the difference."""
    common = 100 * RANDOM.standard_normal(200)
    a, b = common + RANDOM.standard_normal(200), common + RANDOM.standard_normal(200) + 1
    groups = np.arange(200)
    paired = metrics.bootstrap(lambda at: b[at].mean() - a[at].mean(), groups)
    assert paired.error < 0.15 and paired.low < 1 < paired.high
    assert metrics.bootstrap(lambda at: a[at].mean(), groups).error > 5
    one, other = (list(metrics.resamples(groups, 3, 7)) for _ in range(2))
    assert all((x == y).all() for x, y in zip(one, other, strict=True))


def test_the_interval_of_a_distance_stands_around_it_though_repeated_pictures_raise_it():
    x = RANDOM.standard_normal((300, 8))
    reference = Gaussian(np.zeros(8), np.eye(8))
    found = metrics.bootstrap(lambda at: metrics.frechet(x[at], reference), np.arange(300), draws=100)
    assert found.low < found.value < found.high
    draws = [metrics.frechet(x[at], reference) for at in metrics.resamples(np.arange(300), 100, 0)]
    assert np.mean(draws) > found.high  # what an interval of the raw percentiles would be around


def test_half_samples_give_the_error_of_a_mean_and_repeat_no_picture():
    x = RANDOM.standard_normal(300)
    found = metrics.half_samples(lambda at: x[at].mean(), np.arange(300), draws=400)
    assert found.error == pytest.approx(x.std() / 300**0.5, rel=0.15)
    assert found.value == pytest.approx(x.mean()) and found.high - found.value == pytest.approx(1.96 * found.error)
    assert all(len(set(at)) == len(at) == 150 for at in metrics.resamples(np.arange(300), 5, 0, halves=True))


def test_recall_of_a_part_is_that_of_the_part_alone():
    features, real = RANDOM.standard_normal((80, 3)), Manifold(RANDOM.standard_normal((90, 3)), 3)
    at = RANDOM.permutation(80)[:30]
    alone = Manifold(features[at], 3).holds(real.features).mean()
    assert metrics.Recall(features, real)(at) == pytest.approx(alone, abs=1e-12) and 0 < alone < 1

"""Classifier guidance with exact classifiers: of Gaussians, where log p(y | x; σ) is known at every noise level."""

import math
from dataclasses import dataclass

import pytest
import torch
from pack.guiders.base import NEGATIVE, POSITIVE, Step
from pack.guiders.classifier import CleanClassifier, NoisyClassifier, gradient
from pack.guiders.classifier_free import ClassifierFree

MEANS, WEIGHTS, STD = (-1.0, 0.7), (0.3, 0.7), 0.4


def level(sigma: float, flow: bool, shape=(2, 3, 4, 5), seed=0) -> Step:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Step(x, sigma, sigma, signal=1 - sigma if flow else 1.0)


def summed(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).sum(1)


def spread(step: Step) -> float:
    """The variance of x, given the class."""
    return (step.signal * STD) ** 2 + step.sigma**2


def posteriors(step: Step) -> torch.Tensor:
    """log p(class | x; σ), pixel by pixel: [..., classes]."""
    a, x = step.signal, step.x
    logits = [math.log(w) - (x - a * m) ** 2 / (2 * spread(step)) for w, m in zip(WEIGHTS, MEANS, strict=True)]
    return torch.stack(logits, -1).log_softmax(-1)


def denoised(step: Step, mean) -> torch.Tensor:
    """E[x₀ | x] where x₀ is N(mean, STD²)."""
    a, b = step.signal, step.sigma
    return (a * STD**2 * step.x + b**2 * mean) / spread(step)


def unconditional(step: Step) -> torch.Tensor:
    each = torch.stack([denoised(step, mean) for mean in MEANS], -1)
    return (posteriors(step).exp() * each).sum(-1)


@dataclass(frozen=True, eq=False)
class Of:
    """The classifier that a function is."""

    function: callable

    def begin(self):
        return self.function


BAYES = Of(lambda step: summed(posteriors(step)[..., 1]))


def guided(rule, step: Step, base=None) -> torch.Tensor:
    base = unconditional(step) if base is None else base
    return rule.begin()(base, {POSITIVE: base}, step)


LEVELS = pytest.mark.parametrize(
    "sigma, flow", [(0.01, False), (0.5, False), (2.0, False), (30.0, False), (0.01, True), (0.5, True), (0.99, True)]
)


@LEVELS
@pytest.mark.parametrize("scale", [0.5, 1.0, 7.5])
def test_with_the_exact_classifier_it_is_classifier_free_guidance_on_the_unconditional_prediction(sigma, flow, scale):
    """D₀ + s (b²/a) ∇ log p(y | x; σ) = D₀ + s (D₊ − D₀)"""
    step = level(sigma, flow)
    base, wanted = unconditional(step), denoised(step, MEANS[1])
    cfg = ClassifierFree(scale + 1).begin()(base, {POSITIVE: wanted, NEGATIVE: base}, step)
    torch.testing.assert_close(guided(NoisyClassifier(BAYES, scale), step), cfg, rtol=0, atol=1e-10)


def test_where_x_is_all_noise_a_classifier_of_x_has_no_say():
    step = level(1.0, flow=True)
    assert step.signal == 0
    rule, base = NoisyClassifier(Of(lambda step: summed(step.x)), 5.0), unconditional(step)
    assert guided(rule, step) is not None and torch.equal(guided(rule, step), base)


def test_the_clean_form_weighs_by_one_where_x_is_all_noise_and_by_nothing_where_it_is_all_picture():
    rule = CleanClassifier(Of(lambda step: summed(step.x)), 5.0)
    noise, picture = level(1.0, flow=True), level(0.0, flow=True)
    torch.testing.assert_close(guided(rule, noise) - unconditional(noise), torch.full_like(noise.x, 5.0))
    assert torch.equal(guided(rule, picture), unconditional(picture))


@pytest.mark.parametrize("rule", [NoisyClassifier, CleanClassifier])
def test_it_is_linear_in_the_scale_and_at_zero_asks_for_nothing(rule):
    step = level(0.8, flow=True)
    base = unconditional(step)
    once = guided(rule(BAYES, 1.0), step) - base
    assert once.abs().max() > 1e-3
    for scale in (0.25, 3.0, 100.0):
        torch.testing.assert_close(guided(rule(BAYES, scale), step) - base, scale * once, rtol=1e-10, atol=1e-12)
    assert rule(BAYES, 0.0).branches() == () and rule(BAYES, 1.0).branches() == (POSITIVE,)


@LEVELS
def test_the_clean_form_is_exact_for_unit_gaussian_data_and_a_log_linear_classifier(sigma, flow):
    """x₀ is N(0, 1) and p(y | x₀) is as exp(c x₀), so p(y | x; σ) is as exp(c E[x₀ | x])."""
    step, c = level(sigma, flow), 0.7
    share = step.signal / (step.signal**2 + step.sigma**2)
    base = share * step.x
    noisy = guided(NoisyClassifier(Of(lambda step: summed(c * share * step.x)), 2.0), step, base)
    clean = guided(CleanClassifier(Of(lambda step: summed(c * step.x)), 2.0), step, base)
    torch.testing.assert_close(clean, noisy, rtol=0, atol=1e-12)


@pytest.mark.parametrize("flow", [False, True])
def test_the_clean_form_comes_nearer_to_the_exact_one_as_the_noise_falls(flow):
    """Its error is of second order in σ relative to the guidance itself."""

    def error(sigma: float) -> float:
        step = level(sigma, flow)
        exact, clean = (guided(rule(BAYES), step) - unconditional(step) for rule in (NoisyClassifier, CleanClassifier))
        return ((clean - exact).norm() / exact.norm()).item()

    errors = [error(sigma) for sigma in (0.16, 0.08, 0.04, 0.02)]
    assert errors[-1] < 2e-2 and error(0.8) > 0.1
    for larger, smaller in zip(errors[1:-1], errors[2:], strict=True):
        assert 3 < larger / smaller < 5


def test_the_clean_classifier_is_asked_about_the_positive_prediction_as_a_picture_without_noise():
    asked = []

    def function(step):
        asked.append((step.sigma, step.signal, step.start, step.x.detach().clone()))
        return summed(step.x)

    step = level(0.6, flow=True)
    positive, so_far = unconditional(step), unconditional(step) + 1
    CleanClassifier(Of(function)).begin()(so_far, {POSITIVE: positive}, step)
    ((sigma, signal, start, x),) = asked
    assert (sigma, signal, start) == (0.0, 1.0, 0.6) and torch.equal(x, positive)


@pytest.mark.parametrize("rule", [NoisyClassifier, CleanClassifier])
def test_a_sample_does_not_feel_the_others(rule):
    step = level(0.8, flow=False)
    together = guided(rule(BAYES, 3.0), step)
    for row in range(2):
        alone = Step(step.x[row : row + 1], 0.8, 0.8)
        assert torch.equal(guided(rule(BAYES, 3.0), alone), together[row : row + 1])


@pytest.mark.parametrize("rule", [NoisyClassifier, CleanClassifier])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_sample_whose_gradient_is_not_finite_is_left_as_it_is_and_the_others_are_guided(rule, bad):
    def broken(step):
        each = posteriors(step)[..., 1]
        return summed(each) * torch.tensor([bad, 1.0], dtype=each.dtype)

    step = level(0.8, flow=False)
    result, base = guided(rule(Of(broken)), step), unconditional(step)
    assert torch.equal(result[0], base[0]) and torch.equal(result[1], guided(rule(BAYES), step)[1])


@pytest.mark.parametrize("rule", [NoisyClassifier, CleanClassifier])
def test_it_works_where_the_host_allows_no_gradients(rule):
    expected = guided(rule(BAYES, 3.0), level(0.8, flow=False))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            step = level(0.8, flow=False)
            result = guided(rule(BAYES, 3.0), step)
        assert torch.equal(result, expected) and not result.requires_grad and not step.x.requires_grad


def test_a_classifier_may_write_over_its_own_intermediate_values_as_the_hosts_do():
    def in_place(step):
        x = step.x * 1.0
        y = torch.nn.functional.layer_norm(x, x.shape[1:])
        x += y
        return summed(x * x)

    def plain(step):
        x = step.x + torch.nn.functional.layer_norm(step.x, step.x.shape[1:])
        return summed(x * x)

    step = level(0.5, flow=False)
    torch.testing.assert_close(gradient(in_place, step), gradient(plain, step), rtol=1e-12, atol=1e-12)


def test_what_a_run_needs_is_made_when_it_begins_and_once():
    class Counted:
        begun = 0

        def begin(self):
            Counted.begun += 1
            return BAYES.function

    apply, step = CleanClassifier(Counted()).begin(), level(0.5, flow=False)
    for _ in range(3):
        apply(unconditional(step), {POSITIVE: unconditional(step)}, step)
    assert Counted.begun == 1
    one = Of(BAYES.function)
    assert CleanClassifier(one) == CleanClassifier(one) != CleanClassifier(Of(BAYES.function))
    assert NoisyClassifier(one) != CleanClassifier(one)

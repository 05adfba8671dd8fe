"""Classifier guidance with exact classifiers: of Gaussians, where log p(y | x; σ) is known at every noise level."""

import dataclasses
import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from pack.guiders.base import NEGATIVE, POSITIVE, Step
from pack.guiders.classifier import CleanClassifierGuidance, NoisyClassifierGuidance, gradient
from pack.guiders.classifier_free import ClassifierFreeGuidance
from pack.guiders.noisy_network import NoisyNetwork, depth, embedded

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
    ("sigma", "flow"),
    [(0.01, False), (0.5, False), (2.0, False), (30.0, False), (0.01, True), (0.5, True), (0.99, True)],
)


@LEVELS
@pytest.mark.parametrize("scale", [0.5, 1.0, 7.5])
def test_with_the_exact_classifier_it_is_classifier_free_guidance_on_the_unconditional_prediction(sigma, flow, scale):
    """D₀ + s (b²/a) ∇ log p(y | x; σ) = D₀ + s (D₊ − D₀)"""
    step = level(sigma, flow)
    base, wanted = unconditional(step), denoised(step, MEANS[1])
    cfg = ClassifierFreeGuidance(scale + 1).begin()(base, {POSITIVE: wanted, NEGATIVE: base}, step)
    torch.testing.assert_close(guided(NoisyClassifierGuidance(BAYES, scale), step), cfg, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("sigma", "flow"), [(1.0, True), (0.0, True), (0.0, False)])
def test_where_x_is_all_noise_or_none_a_classifier_of_x_has_no_say_and_is_not_asked(sigma, flow):
    step, asked = level(sigma, flow), []
    assert step.signal * step.sigma == 0
    rule, base = NoisyClassifierGuidance(Of(asked.append), 5.0), torch.ones_like(step.x)
    assert torch.equal(guided(rule, step, base), base) and not asked


def test_the_clean_form_weighs_by_one_where_x_is_all_noise_and_by_nothing_where_it_is_all_picture():
    rule = CleanClassifierGuidance(Of(lambda step: summed(step.x)), 5.0)
    noise, picture = level(1.0, flow=True), level(0.0, flow=True)
    torch.testing.assert_close(guided(rule, noise) - unconditional(noise), torch.full_like(noise.x, 5.0))
    assert torch.equal(guided(rule, picture), unconditional(picture))


@pytest.mark.parametrize("rule", [NoisyClassifierGuidance, CleanClassifierGuidance])
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
    noisy = guided(NoisyClassifierGuidance(Of(lambda step: summed(c * share * step.x)), 2.0), step, base)
    clean = guided(CleanClassifierGuidance(Of(lambda step: summed(c * step.x)), 2.0), step, base)
    torch.testing.assert_close(clean, noisy, rtol=0, atol=1e-12)


@pytest.mark.parametrize("flow", [False, True])
def test_the_clean_form_comes_nearer_to_the_exact_one_as_the_noise_falls(flow):
    """Its error is of second order in σ relative to the guidance itself."""

    def error(sigma: float) -> float:
        step = level(sigma, flow)
        exact, clean = (
            guided(rule(BAYES), step) - unconditional(step)
            for rule in (NoisyClassifierGuidance, CleanClassifierGuidance)
        )
        return ((clean - exact).norm() / exact.norm()).item()

    errors = [error(sigma) for sigma in (0.16, 0.08, 0.04, 0.02)]
    assert errors[-1] < 2e-2 and error(0.8) > 0.1
    for larger, smaller in itertools.pairwise(errors):
        assert 3 < larger / smaller < 5


def test_the_clean_classifier_is_asked_about_the_positive_prediction_as_a_picture_without_noise():
    asked = []

    def function(step):
        asked.append((step.sigma, step.signal, step.start, step.x.detach().clone()))
        return summed(step.x)

    step = level(0.6, flow=True)
    positive, so_far = unconditional(step), unconditional(step) + 1
    CleanClassifierGuidance(Of(function)).begin()(so_far, {POSITIVE: positive}, step)
    ((sigma, signal, start, x),) = asked
    assert (sigma, signal, start) == (0.0, 1.0, 0.6) and torch.equal(x, positive)


@pytest.mark.parametrize("rule", [NoisyClassifierGuidance, CleanClassifierGuidance])
def test_a_sample_does_not_feel_the_others(rule):
    step = level(0.8, flow=False)
    together = guided(rule(BAYES, 3.0), step)
    for row in range(2):
        alone = Step(step.x[row : row + 1], 0.8, 0.8)
        assert torch.equal(guided(rule(BAYES, 3.0), alone), together[row : row + 1])


@pytest.mark.parametrize("rule", [NoisyClassifierGuidance, CleanClassifierGuidance])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_sample_whose_gradient_is_not_finite_is_left_as_it_is_and_the_others_are_guided(rule, bad):
    def broken(step):
        each = posteriors(step)[..., 1]
        return summed(each) * torch.tensor([bad, 1.0], dtype=each.dtype)

    step = level(0.8, flow=False)
    result, base = guided(rule(Of(broken)), step), unconditional(step)
    assert torch.equal(result[0], base[0]) and torch.equal(result[1], guided(rule(BAYES), step)[1])


@pytest.mark.parametrize("rule", [NoisyClassifierGuidance, CleanClassifierGuidance])
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

    apply, step = CleanClassifierGuidance(Counted()).begin(), level(0.5, flow=False)
    for _ in range(3):
        apply(unconditional(step), {POSITIVE: unconditional(step)}, step)
    assert Counted.begun == 1
    one = Of(BAYES.function)
    assert CleanClassifierGuidance(one) == CleanClassifierGuidance(one) != CleanClassifierGuidance(Of(BAYES.function))
    assert NoisyClassifierGuidance(one) != CleanClassifierGuidance(one)


# ------------------------------------------------------------------------------------------- the network of noisy latents


class Trainable(torch.nn.Module):
    """What somebody would write to train one, from the format's description."""

    def __init__(self, channels=(3, 8, 12), features=16, classes=3):
        super().__init__()
        pairs, self.features = list(itertools.pairwise(channels)), features
        self.conv = torch.nn.ModuleList(torch.nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in pairs)
        self.film = torch.nn.ModuleList(torch.nn.Linear(features, 2 * o) for _, o in pairs)
        self.head = torch.nn.Linear(channels[-1], classes)

    def forward(self, x, a, b):
        """a and b are [batch]."""
        c_noise = (b / a).log() / 4
        angles = 1000 * c_noise[:, None] * torch.logspace(0, -4, self.features // 2 + 1, dtype=x.dtype)[:-1]
        f = torch.cat([angles.cos(), angles.sin()], dim=1)
        h = x / (a**2 + b**2).sqrt()[:, None, None, None]
        for conv, film in zip(self.conv, self.film, strict=True):
            gain, shift = film(f)[:, :, None, None].chunk(2, dim=1)
            h = conv(h) * (1 + gain) + shift
            h = h * h.sigmoid()
        return self.head(h.mean(dim=(2, 3))).log_softmax(dim=1)


def trainable(*args, dtype=torch.float64) -> Trainable:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Trainable(*args).to(dtype)


def of_class(network: NoisyNetwork, wanted: int) -> Of:
    return Of(lambda step: network(step.x, step.sigma, step.signal)[:, wanted])


@LEVELS
@pytest.mark.parametrize("channels", [(3, 8), (3, 8, 12), (3, 5, 6, 7, 8)], ids=len)
def test_the_network_is_what_its_description_says(sigma, flow, channels):
    module = trainable(channels)
    network = NoisyNetwork(module.state_dict())
    assert depth(network.tensors) == len(channels) - 1
    for shape in ((2, 3, 4, 5), (3, 3, 16, 9), (1, 3, 1, 1)):
        step = level(sigma, flow, shape)
        a, b = (torch.full((shape[0],), value, dtype=torch.float64) for value in (step.signal, sigma))
        found = network(step.x, sigma, step.signal)
        torch.testing.assert_close(found, module(step.x, a, b), rtol=0, atol=1e-10)
        torch.testing.assert_close(found.exp().sum(1), torch.ones(shape[0], dtype=torch.float64))


def test_the_network_knows_the_noise_by_its_ratio_to_the_picture_only():
    """The same picture and noise, as a VE, a VP and a flow model hold them."""
    network, x = NoisyNetwork(trainable().state_dict()), level(0.0, False).x
    ratio = 1.7
    expected = network(x, ratio, 1.0)
    for size in (1 / math.hypot(1, ratio), 1 / (1 + ratio)):
        torch.testing.assert_close(network(x * size, ratio * size, size), expected, rtol=0, atol=1e-12)
    assert (network(x, 2 * ratio, 1.0) - expected).abs().max() > 1e-3


def test_the_embedding_is_a_point_on_as_many_circles_as_half_its_width():
    f = embedded(123.4, 6)
    torch.testing.assert_close(f[:3].square() + f[3:].square(), torch.ones(3, dtype=torch.float64))
    angles = [123.4 * 10000 ** (-k / 3) for k in range(3)]
    assert f.tolist() == pytest.approx([*map(math.cos, angles), *map(math.sin, angles)], abs=1e-12)


MEAN, EXACT_AT = 0.3, ((0.05, 1.0), (0.7, 1.0), (3.0, 1.0), (14.6, 1.0), (0.2, 0.8), (0.9, 0.1))


def bayes_network(pixels: int) -> NoisyNetwork:
    """Of samples whose pixels are all N(+MEAN, STD²) or all N(−MEAN, STD²): log p(+) − log p(−) = k(σ) Σ x, exactly.
    silu(z) − silu(−z) is z, the kernel sums squares of 2 × 2, and one linear map of f gives k at the levels EXACT_AT."""
    kernel = torch.tensor([[0.0, 0, 0], [0, 1, 1], [0, 1, 1]], dtype=torch.float64)
    ratios = [(b, a, 2 * a * MEAN / ((a * STD) ** 2 + b**2) * math.hypot(a, b)) for b, a in EXACT_AT]
    f = torch.stack([embedded(250 * math.log(b / a), 32) for b, a, _ in ratios])
    k = torch.tensor([k for *_, k in ratios], dtype=torch.float64)
    film = torch.zeros(4, 32, dtype=torch.float64)
    film[:2] = torch.linalg.pinv(f) @ (k - 1)
    head = torch.tensor([[0.5, -0.5], [-0.5, 0.5]], dtype=torch.float64) * pixels / 4
    return NoisyNetwork(
        {
            "conv.0.weight": torch.stack([kernel, -kernel]).unsqueeze(1),
            "conv.0.bias": torch.zeros(2, dtype=torch.float64),
            "film.0.weight": film,
            "film.0.bias": torch.zeros(4, dtype=torch.float64),
            "head.weight": head,
            "head.bias": torch.zeros(2, dtype=torch.float64),
        }
    )


@pytest.mark.parametrize(("sigma", "signal"), EXACT_AT)
def test_with_a_network_that_is_the_exact_classifier_it_is_classifier_free_guidance(sigma, signal):
    x = torch.randn(5, 1, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = Step((x * 0.3 + 0.1) * math.hypot(sigma, signal), sigma, sigma, signal=signal)
    plus, minus = denoised(step, MEAN), denoised(step, -MEAN)
    likely = (2 * signal * MEAN * summed(step.x) / spread(step)).sigmoid().view(-1, 1, 1, 1)
    base = likely * plus + (1 - likely) * minus
    rule = NoisyClassifierGuidance(of_class(bayes_network(48), 0), 2.5)
    torch.testing.assert_close(guided(rule, step, base), base + 2.5 * (plus - base), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("sigma", "flow"), [(0.05, False), (2.0, False), (14.6, False), (0.3, True), (0.95, True)])
def test_the_networks_gradient_is_that_of_finite_differences(sigma, flow):
    log_p, step = of_class(NoisyNetwork(trainable().state_dict()), 1).function, level(sigma, flow)
    found = gradient(log_p, step)
    assert found.flatten(1).norm(dim=1).min() > 1e-6
    for seed in range(3):
        along = level(sigma, flow, seed=seed + 1).x
        h = 1e-5 * math.hypot(sigma, step.signal)
        up, down = (log_p(Step(step.x + s * h * along, sigma, sigma, signal=step.signal)) for s in (1, -1))
        torch.testing.assert_close(summed(found * along), (up - down) / (2 * h), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("sigma", "signal"), [(1e-3, 1.0), (4500.0, 1.0), (1 - 1e-6, 1e-6), (1e-6, 1 - 1e-6)])
def test_the_network_gives_finite_guidance_at_the_ends_of_any_schedule(sigma, signal):
    network = NoisyNetwork(trainable(dtype=torch.float32).state_dict())
    x = level(sigma, False).x.float() * math.hypot(sigma, signal)
    step = Step(x, sigma, sigma, signal=signal)
    result = guided(NoisyClassifierGuidance(of_class(network, 1), 1.0), step, torch.zeros_like(x))
    assert result.isfinite().all() and result.abs().max() > 0


def test_the_network_takes_each_sample_by_itself():
    rule = NoisyClassifierGuidance(of_class(NoisyNetwork(trainable().state_dict()), 1), 3.0)
    step = level(0.8, False, (4, 3, 9, 6))
    base = torch.zeros_like(step.x)
    together = guided(rule, step, base)
    for row in range(4):
        alone = guided(rule, Step(step.x[row : row + 1], 0.8, 0.8), base[:1])
        torch.testing.assert_close(alone, together[row : row + 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_copy_of_the_network_has_a_gradient_though_it_was_loaded_in_inference_mode(stored):
    state = trainable().state_dict()
    step = level(0.8, False)
    plain = NoisyNetwork({key: tensor.to(stored).double() for key, tensor in state.items()})
    expected = gradient(of_class(plain, 1).function, step)
    with torch.inference_mode():
        loaded = NoisyNetwork({key: tensor.to(stored) for key, tensor in state.items()})
        copy = loaded.to(torch.device("cpu"), torch.float64)
        torch.testing.assert_close(gradient(of_class(copy, 1).function, step), expected, rtol=0, atol=1e-13)
    assert loaded.tensors["head.bias"].dtype == stored
    assert not {id(tensor) for tensor in copy.tensors.values()} & {id(tensor) for tensor in loaded.tensors.values()}


@pytest.mark.parametrize("rule", [NoisyClassifierGuidance, CleanClassifierGuidance])
def test_a_flow_whose_noise_is_scaled_counts_by_its_noise(rule):
    """x = (1 − σ) x₀ + k σ n, as one of the host's networks has it."""
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def toward(step):  # ∇ log p(y|x) = −x
        return -step.x.square().flatten(1).sum(1) / 2

    scaled, plain = Step(x, 0.25, 0.25, signal=0.5, noise_scale=4.0), Step(x, 1.0, 1.0, signal=0.5)
    apply = rule(Of(toward), 1.0).begin()
    assert torch.equal(apply(x, {POSITIVE: x}, scaled), apply(x, {POSITIVE: x}, plain))


# ------------------------------------------------------------------------------------------------------------- moments


def of_adam(gradients: list[torch.Tensor], beta1: float, beta2: float) -> list[torch.Tensor]:
    """How far torch's optimizer Adam goes up each of the gradients, at a learning rate of 1."""
    place = torch.nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = torch.optim.Adam([place], 1.0, (beta1, beta2), maximize=True)
    found = []
    for given in gradients:
        before, place.grad = place.detach().clone(), given.clone()
        optimizer.step()
        found.append(place.detach() - before)
    return found


@pytest.mark.parametrize("flow", [False, True], ids=["VE", "flow"])
@pytest.mark.parametrize(("beta1", "beta2"), [(0.0, 0.5), (0.9, 0.995)])
def test_with_adam_it_is_the_authors_step_of_the_noise_in_variance_preserving_terms(flow, beta1, beta2):
    """ε̂ = ε − s √(1 − ᾱ) ĝ, where ĝ is Adam's of ∇ log p by the x of a network of DDPM, and ᾱ = a²/(a² + b²)."""
    rule = NoisyClassifierGuidance(BAYES, 0.05, True, beta1, beta2)
    apply, scale, gradients, results = rule.begin(), 0.05, [], []
    steps = [dataclasses.replace(level(sigma, flow, seed=i), index=i) for i, sigma in enumerate((0.9, 0.6, 0.5, 0.2))]
    for step in steps:
        base, length = unconditional(step), math.hypot(step.signal, step.sigma)
        x = (step.x / length).requires_grad_()
        (found,) = torch.autograd.grad(BAYES.function(dataclasses.replace(step, x=length * x)).sum(), x)
        gradients.append(found)
        results.append((step, base, apply(base, {POSITIVE: base}, step)))
    for (step, base, result), direction in zip(results, of_adam(gradients, beta1, beta2), strict=True):
        alpha = step.signal**2 / (step.signal**2 + step.sigma**2)
        x = step.x * (alpha**0.5 / step.signal)
        noise = (x - alpha**0.5 * base) / (1 - alpha) ** 0.5 - scale * (1 - alpha) ** 0.5 * direction
        expected = (x - (1 - alpha) ** 0.5 * noise) / alpha**0.5
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def test_with_adam_each_number_moves_by_the_scale_in_the_first_step_whatever_the_gradients_size():
    step = level(0.5, flow=True)
    share = step.sigma**2 / (step.signal**2 + step.sigma**2)
    for size in (1.0, 1000.0):
        likely = Of(lambda step, size=size: summed(size * step.x * torch.arange(-2.5, 2.0, 1.0)))
        moved = guided(CleanClassifierGuidance(likely, 0.05, adam=True), step) - unconditional(step)
        torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.05 * share), rtol=1e-7, atol=0)


def test_with_adam_no_gradient_moves_nothing_and_a_bad_one_spoils_no_later_step():
    step = level(0.5, flow=True)
    still = guided(CleanClassifierGuidance(Of(lambda step: summed(0 * step.x)), 0.05, adam=True), step)
    assert torch.equal(still, unconditional(step))
    bad = Of(lambda step: summed(step.x * torch.tensor([math.inf if step.index == 0 else 1.0, 1.0]).view(2, 1, 1, 1)))
    apply, base = NoisyClassifierGuidance(bad, 0.05, adam=True).begin(), unconditional(step)
    results = [apply(base, {POSITIVE: base}, dataclasses.replace(step, index=index)) for index in range(3)]
    assert torch.equal(results[0][0], base[0]) and all(result.isfinite().all() for result in results)
    assert not torch.allclose(results[2][0], base[0])


def test_without_adam_a_step_knows_nothing_of_the_last():
    step, rule = level(0.5, flow=True), NoisyClassifierGuidance(BAYES, 2.0, beta1=0.9, beta2=0.9)
    apply, base = rule.begin(), unconditional(step)
    results = [apply(base, {POSITIVE: base}, dataclasses.replace(step, index=index)) for index in range(2)]
    assert torch.equal(results[0], results[1])

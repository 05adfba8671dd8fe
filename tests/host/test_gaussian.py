"""Closed forms of Gaussian data, through the host's own sampler and all three of its parametrisations."""

import math
from dataclasses import dataclass

import comfy.model_sampling
import comfy.samplers
import pytest
import torch
from pack.guiders import host
from pack.guiders.classifier import NoisyClassifierGuidance
from pack.guiders.classifier_free import SamplerCFG
from pack.guiders.host.quirks import mixture
from pack.guiders.independent_condition import IndependentConditionGuidance
from pack.guiders.schedule import Schedule
from pack.guiders.self_attention import SelfAttentionGuidance, blur
from pack.tests.host.exact import TYPES, condition, denoised, exact, log_probability, noise_of, signal_of
from pack.tests.host.harness import TERM_NODES, close, noise_like, sigmas_of

KINDS = pytest.mark.parametrize("kind", ["eps", "v", "flow"])
SEED = 7
EVERYWHERE = {"start_percent": 0.0, "end_percent": 1.0}


def trajectory(model, positive, negative, cfg=1.0, steps=6, sampler="euler", batch=2, skip=0):
    """([(x, D) of each step], the sample, σs). The simple scheduler's σs are the host's own, not between two."""
    latent, seen = torch.zeros(batch, 4, 6, 5), []
    sigmas = sigmas_of(model, steps, "simple")[skip:]
    samples = host.make_guider(model, positive, negative, cfg).sample(
        noise_like(latent),
        latent,
        comfy.samplers.sampler_object(sampler),
        sigmas,
        callback=lambda step, clean, x, total: seen.append((x.clone(), clean.clone())),
        disable_pbar=True,
        seed=SEED,
    )
    return seen, samples, sigmas


def add(model, rule, **when):
    return host.add_term(model, host.Term(rule, Schedule(**when), "test"))


# ------------------------------------------------------------------------------------------------ where sampling ends


def spread(kind: str, sigma: float, std: float) -> float:
    """The width of x at σ, for data of that width."""
    return math.hypot(signal_of(kind, sigma) * std, sigma)


def carried(kind: str, x: torch.Tensor, high: float, low: float, mean: float, std: float) -> torch.Tensor:
    """Where the probability flow takes x: a point keeps its place in the distribution."""
    return signal_of(kind, low) * mean + (x.double() - signal_of(kind, high) * mean) * (
        spread(kind, low, std) / spread(kind, high, std)
    )


def ends(seen, sigmas) -> tuple[torch.Tensor, float, torch.Tensor, float]:
    """(x, σ) of the first step and of the last: the schedule's own jump from there to 0 is left out."""
    return seen[0][0], sigmas[0].item(), seen[-1][0].double(), sigmas[len(seen) - 1].item()


@KINDS
@pytest.mark.parametrize(("mean", "std"), [(0.7, 0.5), (-2.0, 1.5)])
def test_without_guidance_each_sample_goes_where_the_flow_takes_it_with_an_error_of_first_order(kind, mean, std):
    errors = []
    for steps in (125, 250):
        seen, samples, sigmas = trajectory(exact(kind), condition((mean, std)), None, steps=steps)
        expected = carried(kind, seen[0][0], sigmas[0].item(), 0.0, mean, std)
        errors.append((samples - expected).abs().max().item() / std)
    assert errors[1] < 0.06 and math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.3)


@KINDS
@pytest.mark.parametrize(("mean", "std"), [(0.7, 0.5), (-2.0, 1.5)])
def test_without_guidance_samples_have_the_mean_and_the_width_of_the_data(kind, mean, std):
    _seen, samples, sigmas = trajectory(exact(kind), condition((mean, std)), None, steps=100, sampler="heun", batch=40)
    centre = carried(kind, torch.zeros(()), sigmas[0].item(), 0.0, mean, std).item()  # the sampler's noise has mean 0
    assert samples.mean().item() == pytest.approx(centre, abs=5 * std / samples.numel() ** 0.5)
    assert centre == pytest.approx(mean, abs=0.15 * std) and (kind != "flow" or centre == mean)
    assert samples.std().item() == pytest.approx(std, rel=5 / (2 * samples.numel()) ** 0.5)


@KINDS
@pytest.mark.parametrize("weight", [0.0, 1.5, 3.0])
def test_cfg_between_gaussians_of_two_widths_narrows_by_the_product_of_their_powers(kind, weight):
    """To s^w S^(1−w), and not to 1/√(w/s² + (1−w)/S²), the width of p₊^w p₋^(1−w)."""
    positive, negative = condition((0.0, 0.5)), condition((0.0, 1.0))
    seen, samples, sigmas = trajectory(exact(kind), positive, negative, weight, steps=100, sampler="heun")
    start, high, end, low = ends(seen, sigmas)
    narrow, wide = (spread(kind, low, std) / spread(kind, high, std) for std in (0.5, 1.0))
    assert close(end, start * narrow**weight * wide ** (1 - weight)) < 2e-3
    if weight > 1:
        tilted = 1 / math.sqrt(weight / 0.25 + 1 - weight)
        assert close(samples.double(), carried(kind, start, high, 0.0, 0.0, tilted)) > 0.1


@KINDS
@pytest.mark.parametrize("weight", [0.0, 2.0, 5.0])
def test_cfg_between_gaussians_of_one_width_moves_the_mean_and_keeps_the_width(kind, weight):
    positive, negative = condition((0.7, 0.5)), condition((0.0, 0.5))
    seen, _, sigmas = trajectory(exact(kind), positive, negative, weight, steps=100, sampler="heun")
    start, high, end, low = ends(seen, sigmas)
    assert (end - carried(kind, start, high, low, weight * 0.7, 0.5)).abs().max() < 2e-3 * (1 + weight)


@KINDS
def test_autoguidance_narrows_by_the_same_product_with_the_weak_models_width(kind):
    model = TERM_NODES["BeyondCFGAutoguidance"].execute(
        model=exact(kind), weak_model=exact(kind, widen=2.0), weight=2.0, **EVERYWHERE
    )[0]
    seen, _, sigmas = trajectory(model, condition((0.0, 0.5)), None, steps=100, sampler="heun")
    start, high, end, low = ends(seen, sigmas)
    narrow, wide = (spread(kind, low, std) / spread(kind, high, std) for std in (0.5, 1.0))
    assert close(end, start * narrow**2 / wide) < 2e-3


# ------------------------------------------------------------------------------------- every step, by hand in float64

PLUS, MINUS = ((0.8, 0.5),), ((-0.4, 1.2), (0.1, 0.6))
POOL = [condition((mean, 0.9))[0] for mean in (-1.0, 0.0, 1.0, 2.0, 3.0)]


@dataclass
class Moment:
    """What the equation of a guidance may ask for at one step."""

    kind: str
    x: torch.Tensor
    sigma: float
    index: int

    def of(self, *gaussians, x=None, widen=1.0) -> torch.Tensor:
        """D of data with these Gaussians; a model of a weak model's width where `widen` is not 1."""
        return self.of_each(torch.tensor([gaussians], dtype=torch.float64), x, widen)

    def of_each(self, gaussians, x=None, widen=1.0) -> torch.Tensor:
        x = self.x if x is None else x
        widths = torch.tensor([1.0, widen], dtype=torch.float64)
        return denoised(x, signal_of(self.kind, self.sigma), noise_of(self.kind, self.sigma), gaussians * widths)

    @property
    def plus(self):
        return self.of(*PLUS)

    @property
    def minus(self):
        return self.of(*MINUS)


def plain(model, kind, cfg):
    return model, lambda at: at.plus


def autoguidance(model, kind, cfg):
    weak = exact(kind, widen=2.0)
    model = TERM_NODES["BeyondCFGAutoguidance"].execute(model=model, weak_model=weak, weight=2.5, **EVERYWHERE)[0]
    return model, lambda at: 2.5 * at.plus - 1.5 * at.of(*PLUS, widen=2.0)


def sims(model, kind, cfg):
    weak = exact(kind, widen=1.5)
    model = TERM_NODES["BeyondCFGSIMS"].execute(model=model, auxiliary_model=weak, scale=1.5, **EVERYWHERE)[0]
    return model, lambda at: 2.5 * at.plus - 1.5 * at.of(*PLUS, widen=1.5)


def icg(model, kind, cfg):
    pool = host.prompts(POOL, 3)

    def expected(at):
        drawn = [POOL[pool.draw(SEED, at.index, sample) % len(POOL)][0][0] for sample in range(len(at.x))]
        return 3.0 * at.plus - 2.0 * at.of_each(torch.stack(drawn))

    return add(model, IndependentConditionGuidance(2.0, pool)), expected


def sag(model, kind, cfg):
    reference = PLUS if cfg == 1 else MINUS

    def expected(at):
        seen = at.of(*reference)
        soft = blur(seen, 2.0)
        there = at.x + signal_of(kind, at.sigma) * (soft - seen)
        return at.plus + 0.7 * (soft - at.of(*reference, x=there))

    return add(model, SelfAttentionGuidance(0.7, 2.0, "global")), expected


CASES = {"nothing": plain, "Autoguidance": autoguidance, "SIMS": sims, "ICG": icg, "SAG": sag}


def assert_follows(kind, seen, samples, sigmas, equation):
    """The whole run is Euler's in float64 on this D."""
    x = seen[0][0].double()
    for index, (sigma, after) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True)):
        expected = equation(Moment(kind, x, sigma, index))
        assert close(seen[index][0].double(), x) < 1e-5 and close(seen[index][1].double(), expected) < 1e-5
        x = x + (after - sigma) * (x - expected) / sigma
    assert len(seen) == index + 1 and close(samples.double(), x) < 1e-5


@KINDS
@pytest.mark.parametrize(("case", "cfg"), [(case, cfg) for case in CASES for cfg in (1.0, 3.5)])
def test_every_step_of_the_hosts_sampler_follows_the_equation(kind, case, cfg):
    """With cfg: (cfg − 1)(D₊ − D₋) more."""
    model, equation = CASES[case](exact(kind), kind, cfg)
    assert_follows(
        kind,
        *trajectory(model, condition(*PLUS), condition(*MINUS), cfg),
        lambda at: equation(at) + (cfg - 1) * (at.plus - at.minus),
    )


@pytest.mark.parametrize("cfg", [1.0, 3.5])
@pytest.mark.parametrize("kind", TYPES)
def test_every_step_of_sag_is_that_of_the_networks_own_noise(kind, cfg):
    """ε' = ε + s (ε − ε̂), with ε = (x − a D)/b seen again in x̂ = a x̃ + b ε; a and b are those of the host's D."""
    reference = PLUS if cfg == 1 else MINUS

    def expected(at):
        a, b = signal_of(kind, at.sigma), noise_of(kind, at.sigma)
        clean = at.of(*reference)
        noise = (at.x - a * clean) / b
        there = a * blur(clean, 2.0) + b * noise
        again = (there - a * at.of(*reference, x=there)) / b
        shift = -b / a * 0.7 * (noise - again)
        return at.plus + (cfg - 1) * (at.plus - at.minus) + shift

    model = add(exact(kind), SelfAttentionGuidance(0.7, 2.0, "global"))
    skip = int(kind == "flow")  # where a flow's x is all noise, a is 0
    assert_follows(kind, *trajectory(model, condition(*PLUS), condition(*MINUS), cfg, skip=skip), expected)


def test_the_host_has_no_sampling_whose_mixture_of_picture_and_noise_is_not_known():
    known = {
        "EPS",
        "V_PREDICTION",
        "V_PREDICTION_DDPM",
        "EDM",
        "CONST",
        "X0",
        "IMG_TO_IMG",
        "IMG_TO_IMG_FLOW",
        "COSMOS_RFLOW",
    }
    kinds = {name: kind for name, kind in vars(comfy.model_sampling).items() if hasattr(kind, "calculate_denoised")}
    assert kinds.keys() <= known
    for name, kind in kinds.items():
        sampling = type("Sampling", (kind,), {"sigma_data": 1.0})()
        for sigma in (0.2, 0.7):
            a, b = mixture(sampling, sigma)
            b, at = b * sigma, torch.tensor([sigma], dtype=torch.float64)
            if name == "V_PREDICTION_DDPM":  # for x₀ = 3, n = 5 the network's v is a n − b x₀
                assert sampling.calculate_denoised(
                    at, at.new_tensor([a * 5 - b * 3]), a * 3 + b * 5
                ).item() == pytest.approx(3)
            elif name != "IMG_TO_IMG_FLOW":  # there the picture that is given is the noise
                mixed = sampling.noise_scaling(at, at.new_tensor([5.0]), at.new_tensor([3.0]))
                assert mixed.item() == pytest.approx(a * 3 + b * 5)


@KINDS
def test_every_step_follows_the_sum_of_all(kind):
    model, first = autoguidance(exact(kind), kind, 3.5)
    model, second = icg(model, kind, 3.5)
    assert_follows(
        kind,
        *trajectory(model, condition(*PLUS), condition(*MINUS), 3.5),
        lambda at: first(at) + second(at) - at.plus + 2.5 * (at.plus - at.minus),
    )


@KINDS
def test_cfg_in_an_interval_is_followed_with_weight_one_outside(kind):
    model = add(exact(kind), SamplerCFG(), start_percent=0.3, end_percent=0.7)
    interval = Schedule(0.3, 0.7).interval(model.get_model_object("model_sampling").percent_to_sigma)
    seen, samples, sigmas = trajectory(model, condition(*PLUS), condition(*MINUS), 3.5, steps=8)
    inside = [sigma in interval for sigma in sigmas[:-1].tolist()]
    assert 2 <= sum(inside) <= 6
    assert_follows(kind, seen, samples, sigmas, lambda at: at.plus + 2.5 * inside[at.index] * (at.plus - at.minus))


# ----------------------------------------------------------------------------------------------- classifier guidance


@dataclass(frozen=True, eq=False)
class Bayes:
    """log p(y | x; σ) = log p(x | y; σ) − log p(x; σ) + constant"""

    wanted: torch.Tensor
    all: torch.Tensor

    def begin(self):
        return lambda step: (
            log_probability(step.x, step.signal, step.sigma, self.wanted)
            - log_probability(step.x, step.signal, step.sigma, self.all)
        )


@KINDS
@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_guided_by_the_exact_classifier_of_noisy_latents_the_unconditional_model_samples_as_with_cfg(kind, weight):
    """From a first σ below a flow's 1, where x is all noise and the classifier is not asked."""
    wanted, every = (1.0, 0.4), ((1.0, 0.4), (-0.6, 0.4), (0.2, 0.7))
    bayes = Bayes(*(condition(*gaussians)[0][0] for gaussians in ((wanted,), every)))
    classified = add(exact(kind), NoisyClassifierGuidance(bayes, weight))
    _, expected, _ = trajectory(exact(kind), condition(wanted), condition(*every), weight, skip=1)
    _, guided, _ = trajectory(classified, condition(*every), None, skip=1)
    _, without, _ = trajectory(exact(kind), condition(*every), None, skip=1)
    assert close(guided, expected) < 1e-5 and close(without, expected) > 0.1

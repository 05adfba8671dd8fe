"""Identities that hold across rules: of parametrisations, of sums, of counts, and at the ends of what is allowed."""

import math
from itertools import combinations, product

import pytest
import torch
from diffusers import guiders as diffusers
from pack.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    GuidanceRescale,
    IndependentConditionGuidance,
    PerturbationGuidance,
    SelfAttentionGuidance,
    WeakModelGuidance,
)
from pack.guiders.base import NEGATIVE, POSITIVE, Branch, Step, WeakModelRef
from pack.guiders.compose import GuidanceRun
from pack.guiders.independent_condition import Pool
from pack.guiders.schedule import Interval
from pack.guiders.self_attention import Degraded, blur
from pack.patches.attention_sums import AttentionSums
from pack.patches.base import AttentionCall, Moment
from pack.tests.toy import Gaussian, Mixture, Seen, Toy, Worse

POOL = Pool()
SUMS = {  # rules that add a weighted difference of predictions: by the weight s in D + s (D₊ − D′), the branch of D′
    "classifier-free": (lambda s: ClassifierFreeGuidance(1 + s), NEGATIVE),
    "perturbed": (lambda s: PerturbationGuidance(s, Worse("any")), Branch(perturbation=Worse("any"))),
    "weak model": (lambda s: WeakModelGuidance(s), Branch(model=WeakModelRef(0))),
    "independent condition": (lambda s: IndependentConditionGuidance(s, POOL), Branch(POOL)),
}
TOYS = {branch: Mixture((-0.3, 0.2 + i, 1.1), 0.4) for i, (_, branch) in enumerate(SUMS.values())}
TOYS[POSITIVE] = Gaussian(1.0, 0.5)


def latent(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at(x: torch.Tensor, sigma: float = 1.5, signal: float = 1.0) -> Step:
    return Step(x, sigma, sigma, signal=signal)


def run(*rules) -> GuidanceRun:
    return GuidanceRun((rule, Interval()) for rule in rules)


# ----------------------------------------------------------------------------------------------------------------- sums


OF_DIFFUSERS = {  # its guiders of a perturbed prediction: the name of their scale, and what they are given
    "PerturbedAttentionGuidance": ("perturbed_guidance", {"perturbed_guidance_layers": [7]}),
    "SmoothedEnergyGuidance": ("seg_guidance", {"seg_guidance_layers": [7]}),
    "SkipLayerGuidance": ("skip_layer_guidance", {"skip_layer_guidance_layers": [7]}),
}


@pytest.mark.parametrize("papers", [True, False], ids=["the papers' scale", "the scale of diffusers"])
@pytest.mark.parametrize("cfg", [1.0, 4.5])
@pytest.mark.parametrize("name", OF_DIFFUSERS)
def test_diffusers_guiders_of_a_perturbed_prediction_are_cfg_and_a_perturbation(name, cfg, papers):
    """Without CFG diffusers counts the scale from the perturbed prediction, as a weight; with it from the positive's, as
    the papers and this pack always do."""
    kind, given = OF_DIFFUSERS[name]
    settings = {f"{kind}_scale": 2.8, f"{kind}_start": 0.0, f"{kind}_stop": 1.0, "use_original_formulation": papers}
    guider = getattr(diffusers, name)(guidance_scale=cfg - papers, **settings, **given)
    guider.set_state(1, 4, torch.tensor(500))
    positive, negative, weak = (latent(2, 4, 6, 5, seed=seed) for seed in range(3))
    expected = guider.forward(positive, negative, weak).pred
    scale = 2.8 if papers or cfg != 1 else 1.8
    rules = ClassifierFreeGuidance(cfg), PerturbationGuidance(scale, Worse("any"))
    predictions = {POSITIVE: positive, NEGATIVE: negative, Branch(perturbation=Worse("any")): weak}
    result = run(*rules).at(1.5, 1.0).fold(positive, predictions, at(positive))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("one", "other"), combinations(SUMS, 2))
def test_superposition_what_two_guidances_add_together_is_the_sum_of_what_each_adds_alone(one, other):
    x = latent(2, 4, 6, 5)
    base = TOYS[POSITIVE](x, 1.5)
    for s, t in product((-0.5, 2.0), (0.5, 7.0)):
        rules = SUMS[one][0](s), SUMS[other][0](t)
        together, first, second = (run(*given)(at(x), Toy(TOYS)) for given in (rules, rules[:1], rules[1:]))
        torch.testing.assert_close(together - base, first - base + second - base, rtol=0, atol=1e-13)


# A network's output P is A x + B D. (A, B) of each parametrisation, at x = a x₀ + b ε.
OUTPUTS = {
    "epsilon": lambda a, b: (1 / b, -a / b),
    "v": lambda a, b: (a / b, -(a * a + b * b) / b),
    "flow": lambda a, b: (1 / b, -(a + b) / b),
    "score": lambda a, b: (-1 / b**2, a / b**2),
}
NOISES = pytest.mark.parametrize(
    ("a", "b"), [(1.0, 1.5), (1.0, 14.6), (0.6, 0.8), (0.3, 0.7)], ids=["VE", "VE", "VP", "flow"]
)


@NOISES
@pytest.mark.parametrize("output", OUTPUTS)
def test_weights_that_sum_to_one_combine_outputs_of_any_parametrisation_as_they_combine_x0(output, a, b):
    x = latent(2, 4, 6, 5)
    scale, slope = OUTPUTS[output](a, b)
    outputs = {branch: scale * x + slope * denoise(x, b) for branch, denoise in TOYS.items()}
    rules = [make(0.5 + i) for i, (make, _) in enumerate(SUMS.values())]
    folded = outputs[POSITIVE]
    for rule in rules:
        folded = rule.begin()(folded, outputs, at(x, b, a))
    expected = scale * x + slope * run(*rules)(at(x, b, a), Toy(TOYS))
    torch.testing.assert_close(folded, expected, rtol=1e-11, atol=1e-11)


@NOISES
def test_self_attention_guidance_is_its_papers_difference_of_noises_whatever_the_signal(a, b):
    """ε + s (ε(x) − ε(x̂)), x̂ = a x̃ + b ε(x): not D + s (D(x) − D(x̂)), since the two see different x."""
    x, denoise = latent(2, 4, 6, 5), Mixture((-1.0, 0.5), 0.7)
    rule = SelfAttentionGuidance(0.7, 2.0, "global")
    toy = Toy(dict.fromkeys((POSITIVE, *rule.branches()), denoise))
    result = run(rule)(at(x, b, a), toy)
    clean = denoise(x, b)
    noise = (x - a * clean) / b
    there = a * blur(clean, 2.0) + b * noise
    away = (there - a * denoise(there, b)) / b
    torch.testing.assert_close((x - a * result) / b, noise + 0.7 * (noise - away), rtol=0, atol=1e-12)
    assert not torch.allclose(result, clean + 0.7 * (clean - denoise(there, b)), atol=1e-3)


# ------------------------------------------------------------------------------------------------------------ bit by bit


@pytest.mark.parametrize("name", SUMS)
def test_a_prediction_of_the_positive_itself_is_no_guidance_to_the_bit(name):
    """ŷ = y, a LoRA of strength 0, t̃ = t: D′ is D₊."""
    make, branch = SUMS[name]
    x, denoise = latent(2, 4, 6, 5), TOYS[POSITIVE]
    for s in (-0.5, 3.0, 99.0):
        assert torch.equal(run(make(s))(at(x), Toy({POSITIVE: denoise, branch: denoise})), denoise(x, 1.5))


def sag_with(mask: torch.Tensor, x, denoise) -> torch.Tensor:
    rule = SelfAttentionGuidance(0.7, 2.0, "attention", observation=Seen())
    step = Step(x, 1.5, 1.5, maps={Seen(): mask})
    return run(rule)(step, Toy(dict.fromkeys((POSITIVE, *rule.branches()), denoise)))


def test_self_attention_guidance_where_nothing_is_attended_to_more_than_the_average_is_none_to_the_bit():
    x, denoise = latent(2, 4, 8, 6), Mixture((-1.0, 0.5), 0.7)
    even = torch.ones(2, 1, 8, 6, dtype=torch.float64)
    assert torch.equal(sag_with(even, x, denoise), denoise(x, 1.5))
    half = even.clone()
    half[0, :, :4] = 2.0
    there = sag_with(half, x, denoise)
    assert not torch.allclose(there[0], denoise(x, 1.5)[0]) and torch.equal(there[1], denoise(x, 1.5)[1])


def test_self_attention_guidance_of_a_prediction_that_is_the_same_everywhere_is_none():
    x = latent(2, 4, 1, 1).expand(2, 4, 8, 6)
    denoise = Mixture((-1.0, 0.5), 0.7)
    mask = torch.where(latent(2, 1, 8, 6) > 0, 2.0, 0.5)
    torch.testing.assert_close(sag_with(mask, x, denoise), denoise(x, 1.5), rtol=0, atol=1e-14)


def call(q: torch.Tensor, k: torch.Tensor, text: int) -> AttentionCall:
    image = slice(text, q.shape[2])
    return AttentionCall(
        q, k, k, image, None, q.shape[3] ** -0.5, None, lambda queries, tokens: queries, "middle", None
    )


@pytest.mark.parametrize("text", [0, 5])
@pytest.mark.parametrize("tokens", [63, 64, 2048])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_column_sums_of_equal_attention_mark_no_token_and_those_of_any_are_one_on_average(tokens, text, dtype):
    q = latent(2, 3, text + tokens, 8).to(dtype)
    even = AttentionSums(()).observe(call(q, q[:, :, :1].expand_as(q), text))
    assert even.shape == (2, tokens) and not (even > 1 + 1e-5).any()  # SelfAttention's own rule
    uneven = AttentionSums(()).observe(call(q, 3 * q, text))
    torch.testing.assert_close(uneven.mean(-1), torch.ones(2), rtol=0, atol=1e-5)
    assert (uneven > 1 + 1e-5).any() and not (uneven > 1 + 1e-5).all()


# --------------------------------------------------------------------------------------------------- counts of evaluations


@pytest.mark.parametrize(
    ("rules", "evaluations", "calls"),
    [
        ((), 1, 1),
        (
            (
                ClassifierFreeGuidance(1.0),
                PerturbationGuidance(0.0, Worse("any")),
                WeakModelGuidance(0.0),
                SelfAttentionGuidance(0.0),
            ),
            1,
            1,
        ),
        ((GuidanceRescale(0.7), AdaptiveProjectedGuidance()), 1, 1),
        ((ClassifierFreeGuidance(4.0),), 2, 1),
        ((PerturbationGuidance(3.0, Worse("any")),), 2, 1),
        ((WeakModelGuidance(1.0),), 2, 1),
        ((IndependentConditionGuidance(2.0),), 2, 1),
        (
            (SelfAttentionGuidance(0.7, 2.0, "global"),),
            3,
            2,
        ),  # its reference is the positive itself or the negative on the host
        (
            (
                ClassifierFreeGuidance(4.0),
                PerturbationGuidance(3.0, Worse("any")),
                PerturbationGuidance(1.0, Worse("any")),
            ),
            3,
            1,
        ),
        (
            (
                ClassifierFreeGuidance(4.0),
                PerturbationGuidance(3.0, Worse("any")),
                PerturbationGuidance(1.0, Worse("other")),
                WeakModelGuidance(1.0),
            ),
            5,
            1,
        ),
        (
            (
                ClassifierFreeGuidance(4.0),
                SelfAttentionGuidance(0.7, 2.0, "global"),
                WeakModelGuidance(1.0),
                GuidanceRescale(0.7),
            ),
            5,
            2,
        ),
    ],
)
def test_so_many_predictions_in_so_many_calls_make_a_step(rules, evaluations, calls):
    branches = dict.fromkeys((POSITIVE, *(branch for rule in rules for branch in rule.branches())))
    toy = Toy(dict.fromkeys(branches, Gaussian(1.0, 0.5)))
    run(*rules)(at(latent(1, 4, 6, 5)), toy)
    assert (toy.evaluations, len(toy.calls)) == (evaluations, calls)


# ------------------------------------------------------------------------------------------------------------ random draws


def test_draws_depend_on_seed_step_and_sample_and_leave_the_global_generator_alone():
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    pool, moment, prediction = Pool(seed=3), Moment(7, 2), latent(4, 4, 8, 6)
    noise = moment.normal(torch.empty(4, 5), "salt")
    masks = Degraded(2.0, "random", None).where(prediction, prediction, at(prediction))
    for samples in (1, 2, 3):
        assert torch.equal(moment.normal(torch.empty(samples, 5), "salt"), noise[:samples])
        few = prediction[:samples]
        part = Degraded(2.0, "random", None).where(few, few, at(few))
        assert torch.equal(part, masks[:samples])
    assert torch.equal(torch.random.get_rng_state(), state)
    others = [Moment(8, 2), Moment(7, 3)]
    assert not any(torch.equal(other.normal(torch.empty(4, 5), "salt"), noise) for other in others)
    assert not torch.equal(moment.normal(torch.empty(4, 5), "pepper"), noise) and len(set(noise[:, 0].tolist())) == 4
    draws = {pool.draw(seed, step, sample) for seed, step, sample in product(range(3), repeat=3)}
    assert len(draws) == 27 and pool.draw(1, 2, 0) == Pool(seed=3).draw(1, 2, 0) != Pool(seed=4).draw(1, 2, 0)


# ------------------------------------------------------------------------------------------------------------------- ends


RULES = [make for make, _ in SUMS.values()]
RULES += [
    lambda s: SelfAttentionGuidance(abs(s), 2.0, "global"),
    lambda s: GuidanceRescale(1.0),
    lambda s: AdaptiveProjectedGuidance(0.0, 1e-3),
]


@pytest.mark.parametrize("sigma", [0.0, 1e-30, 1e4])
@pytest.mark.parametrize("make", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_are_numbers_at_no_noise_at_all_noise_and_at_the_largest_strength(make, sigma, dtype):
    x = latent(2, 4, 8, 6).to(dtype) * max(sigma, 1.0)
    rule = make(99.0)
    toys = {branch: Gaussian(float(i), 0.5) for i, branch in enumerate((POSITIVE, *rule.branches()))}
    for given in (x, torch.zeros_like(x), torch.full_like(x, 1e4)):
        assert run(rule)(at(given, sigma, 0.0 if sigma > 1 else 1.0), Toy(toys)).isfinite().all()


@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_at_no_noise_every_denoiser_gives_x_and_guidance_gives_it_too(weight):
    x = latent(2, 4, 6, 5)
    rules = [make(weight) for make, _ in SUMS.values()]
    torch.testing.assert_close(run(*rules)(at(x, 0.0), Toy(TOYS)), x, rtol=0, atol=1e-12)
    assert math.isclose(TOYS[POSITIVE](x, 1e-9)[0, 0, 0, 0].item(), x[0, 0, 0, 0].item(), abs_tol=1e-12)

"""Laws of every registered rule, on exact denoisers."""

import dataclasses
import functools
import inspect
import math
from dataclasses import dataclass

import pytest
import torch
from pack.guiders import (
    RULES,
    AngleCap,
    BetaCFG,
    ClassifierFreeGuidance,
    CleanClassifierGuidance,
    DynamicThresholding,
    NoisyClassifierGuidance,
    PerpNeg,
    PerturbationGuidance,
    WorseNegative,
    ZeroStar,
)
from pack.guiders.base import NEGATIVE, POSITIVE, Branch, GuidanceRule, Step, strength_of
from pack.guiders.classifier_free import SamplerCFG
from pack.guiders.compose import GuidanceRun
from pack.guiders.independent_condition import Pool
from pack.guiders.schedule import Interval
from pack.tests.contracts import faults_of_rule
from pack.tests.toy import Gaussian, Mixture, Toy, Worse


@dataclass(frozen=True)
class Example:
    """A setting of a rule that acts, and the field that is its strength."""

    rule: type[GuidanceRule]
    strength: str
    off: float  # the strength that does nothing
    settings: dict

    def of(self, rule: type, **changes) -> GuidanceRule:
        return rule(**(self.settings | changes))

    @functools.cached_property
    def after(self) -> tuple[GuidanceRule, ...]:
        """What it is laid over: nothing, or where it leaves a single prediction as it is, what CFG has made."""
        setting, x = self.of(self.rule), latent(6, 5)
        alone = torch.allclose(folded((setting,), x, toy(setting)), folded((), x, toy(setting)))
        return (ClassifierFreeGuidance(CFG),) if alone else ()

    @property
    def is_factor(self) -> bool:
        """Whether its strength is what the pack calls a scale or a weight, which promises that it is linear."""
        return self.strength in ("scale", "weight")

    @property
    def compares(self) -> bool:
        """Whether it is made of predictions at one x alone, the positive and others."""
        branches = self.of(self.rule).branches()
        return branches != (POSITIVE,) and all(branch.source is None for branch in branches)

    @functools.cached_property
    def is_local(self) -> bool:
        """Whether each element of the result comes from that element alone, so that there is no sum whose order counts."""
        setting, x = self.of(self.rule), latent(6, 5)
        x[..., 0, 0] += 1.0
        elsewhere = guided(setting, x) == guided(setting, latent(6, 5))
        elsewhere[..., 0, 0] = True
        return bool(elsewhere.all())


class Likely:
    """A classifier of pixels: log p is the sum of log_sigmoid."""

    def begin(self):
        return lambda step: torch.nn.functional.logsigmoid(step.x).flatten(1).sum(1)


MADE_WITH = {  # what a rule needs that has no default, or the host gives it
    PerturbationGuidance: {"perturbation": Worse("any")},
    NoisyClassifierGuidance: {"classifier": Likely(), "scale": 3.0},
    CleanClassifierGuidance: {"classifier": Likely(), "scale": 3.0},
    PerpNeg: {"empty": Pool()},
    WorseNegative: {"branch": Branch("negative", Worse("any"))},
    BetaCFG: {"a": 1.0, "b": 1.0},  # else its first step is the negative's
    AngleCap: {"max_angle": 5.0},  # the angles of its example are below the default
    DynamicThresholding: {"mimic_scale": 2.0},  # less than the example's CFG, else there is nothing to narrow
    ZeroStar: {"zero_init_steps": 0},  # its first step is x, whatever the predictions are
}


def example_of(rule: type[GuidanceRule]) -> Example:
    """The rule at its defaults, but that its strength is never the one that is off."""
    strength = strength_of(rule)
    assert strength, f"{rule.__name__}: no field is its strength; declare one by param(..., off=...)"
    off = strength.metadata["off"]
    settings = dict(MADE_WITH.get(rule, {}))
    if strength.default == off:
        settings.setdefault(strength.name, min(off + 3.0, strength.metadata["high"]))
    return Example(rule, strength.name, off, settings)


EXAMPLES = {rule: example_of(rule) for rule in RULES if not inspect.isabstract(rule)}
EVERY = pytest.mark.parametrize(("rule", "example"), EXAMPLES.items(), ids=lambda value: getattr(value, "__name__", ""))
SHAPES = pytest.mark.parametrize("spatial", [(7,), (6, 5), (3, 4, 5)], ids=lambda spatial: f"{len(spatial)}-D")
SIGMA, CFG = 1.5, 4.0


def latent(*spatial: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(3, 4, *spatial, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def toy(rule: GuidanceRule) -> Toy:
    """Every branch a denoiser of its own, none of them linear with another."""
    weak = (branch for branch in rule.branches() if branch not in (POSITIVE, NEGATIVE))
    others = {branch: Mixture((-0.3, 0.2 + i, 1.1), 0.4) for i, branch in enumerate(weak)}
    return Toy({POSITIVE: Gaussian(1.0, 0.5), NEGATIVE: Mixture((-1.0, 0.5), 0.7), **others})


def guided(rule: GuidanceRule, x: torch.Tensor, evaluate: Toy | None = None) -> torch.Tensor:
    return folded((*EXAMPLES[type(rule)].after, rule), x, evaluate or toy(rule))


def folded(rules: tuple[GuidanceRule, ...], x: torch.Tensor, evaluate: Toy) -> torch.Tensor:
    """The result of the second step of a run, so that it counts what rules remember."""
    run = GuidanceRun((rule, Interval()) for rule in rules)
    return [run(step, evaluate) for step in steps_of(x, rules)][-1]


def steps_of(x: torch.Tensor, rules: tuple[GuidanceRule, ...]) -> tuple[Step, Step]:
    """The first two steps of a run with these rules. CFG as a rule stands for the sampler's."""
    cfg = CFG if any(isinstance(rule, ClassifierFreeGuidance) for rule in rules) else 1.0
    return Step(2 * x, 2 * SIGMA, 2 * SIGMA, 0, 1.0, cfg=cfg), Step(x, SIGMA, SIGMA, 1, 0.7, cfg=cfg)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_has_the_functions_of_its_contract_and_no_others(rule):
    assert not faults_of_rule(rule)


@EVERY
def test_a_rule_is_a_hashable_setting_that_cannot_change_and_acts_in_its_example(rule, example):
    setting = example.of(rule)
    assert isinstance(setting, GuidanceRule)
    assert setting == example.of(rule) and hash(setting) == hash(example.of(rule))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(setting, example.strength, 1.0)
    x = latent(6, 5)
    assert not torch.allclose(guided(setting, x), folded(example.after, x, toy(setting)))


@EVERY
def test_neutral_is_the_positive_prediction_exactly_and_asks_for_nothing(rule, example):
    neutral = example.of(rule, **{example.strength: example.off})
    assert neutral.branches() == ()
    x, evaluate = latent(6, 5), toy(example.of(rule))
    assert torch.equal(folded((neutral,), x, evaluate), evaluate.denoisers[POSITIVE](x, SIGMA))
    assert evaluate.asked == [(POSITIVE,)] * 2


@EVERY
@SHAPES
def test_a_row_alone_is_that_row_in_a_batch(rule, example, spatial):
    x = latent(*spatial)
    together = guided(example.of(rule), x)
    assert together.shape == x.shape
    for row in range(len(x)):
        assert torch.equal(guided(example.of(rule), x[row : row + 1]), together[row : row + 1])


@EVERY
@SHAPES
def test_permuting_the_batch_permutes_the_result(rule, example, spatial):
    x, order = latent(*spatial), torch.tensor([2, 0, 1])
    assert torch.equal(guided(example.of(rule), x[order]), guided(example.of(rule), x)[order])


@EVERY
@pytest.mark.parametrize("spatial", [(6, 5), (3, 4, 5)], ids=["2-D", "3-D"])
def test_transposing_the_picture_transposes_the_result(rule, example, spatial):
    x = latent(*spatial)
    result, expected = guided(example.of(rule), x.mT), guided(example.of(rule), x).mT
    torch.testing.assert_close(result, expected, rtol=0, atol=0 if example.is_local else 1e-14)


@EVERY
def test_inputs_are_not_changed(rule, example):
    setting, x = example.of(rule), latent(6, 5)
    evaluate, step = toy(setting), steps_of(x, example.after)[-1]
    predictions = evaluate((POSITIVE, *setting.branches()), step)
    denoised = x + 1
    given = [x, denoised, *predictions.values()]
    before, branches = [value.clone() for value in given], list(predictions)
    setting.begin()(denoised, predictions, step)
    assert all(torch.equal(value, copy) for value, copy in zip(given, before, strict=True))
    assert list(predictions) == branches


@EVERY
def test_two_runs_are_equal(rule, example):
    x = latent(6, 5)
    assert torch.equal(guided(example.of(rule), x), guided(example.of(rule), x))


@EVERY
def test_a_further_evaluation_of_a_step_and_a_run_that_was_broken_off_leave_nothing(rule, example):
    setting, x = example.of(rule), latent(6, 5)
    run = GuidanceRun((each, Interval()) for each in (*example.after, setting))
    first, second = steps_of(x, example.after)
    trial = dataclasses.replace(first, x=x.flip(-1), sigma=SIGMA)  # as a sampler of second order makes one
    broken_off = dataclasses.replace(second, x=3 * x, index=7)
    for step in (broken_off, first, trial):
        run(step, toy(setting))
    assert torch.equal(run(second, toy(setting)), guided(setting, x))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_dtype_of_the_predictions_is_kept_and_half_precision_is_near_the_exact_result(rule, example, dtype):
    x = latent(6, 5, dtype=dtype)
    result = guided(example.of(rule), x)
    exact = guided(example.of(rule), x.double())
    assert result.dtype == dtype
    # a difference of two rounded predictions of size about 1, ten times enlarged at most, a few roundings each
    assert (result.double() - exact).abs().max() < 40 * torch.finfo(dtype).eps


AFFINE = [(rule, example) for rule, example in EXAMPLES.items() if example.is_factor]


@pytest.mark.parametrize("strength", [0.5, 2.0, 7.5, 100.0])
@pytest.mark.parametrize(("rule", "example"), AFFINE, ids=[rule.__name__ for rule, _ in AFFINE])
def test_the_result_is_affine_in_the_strength(rule, example, strength):
    x = latent(6, 5)
    neutral = example.off
    at = [guided(example.of(rule, **{example.strength: value}), x, toy(example.of(rule))) for value in (neutral, 3.0)]
    expected = torch.lerp(*at, (strength - neutral) / (3.0 - neutral))
    result = guided(example.of(rule, **{example.strength: strength}), x)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


DIFFERENCES = [(rule, example) for rule, example in AFFINE if example.compares]


@pytest.mark.parametrize(("rule", "example"), DIFFERENCES, ids=[rule.__name__ for rule, _ in DIFFERENCES])
def test_equal_predictions_leave_the_result_as_it_was(rule, example):
    setting, x = example.of(rule), latent(6, 5)
    same = {branch: Gaussian(1.0, 0.5) for branch in (POSITIVE, *setting.branches())}
    assert torch.equal(guided(setting, x, Toy(same)), Gaussian(1.0, 0.5)(x, SIGMA))


OF_CFG = pytest.mark.parametrize(
    ("rule", "example"),
    [(rule, example) for rule, example in EXAMPLES.items() if rule.corrects_cfg],
    ids=lambda value: getattr(value, "__name__", ""),
)


@OF_CFG
def test_what_other_guidances_add_beside_a_correction_of_cfg_stays(rule, example):
    other, setting, x = PerturbationGuidance(2.0, Worse("other")), example.of(rule), latent(6, 5)
    evaluate = Toy({**toy(setting).denoisers, Branch(perturbation=Worse("other")): Mixture((0.2, 0.9), 0.4)})
    cfg = ClassifierFreeGuidance(CFG)
    added = folded((cfg, other), x, evaluate) - folded((cfg,), x, evaluate)
    alone = folded((cfg, setting), x, evaluate)
    for rules in ((cfg, other, setting), (cfg, setting, other)):
        torch.testing.assert_close(folded(rules, x, evaluate) - alone, added, rtol=0, atol=1e-12)


@OF_CFG
def test_a_correction_of_cfg_is_not_there_without_cfg(rule, example):
    setting, x = example.of(rule), latent(6, 5)
    evaluate = toy(setting)
    assert torch.equal(folded((setting,), x, evaluate), evaluate.denoisers[POSITIVE](x, SIGMA))
    assert evaluate.asked == [(POSITIVE,)] * 2


AMOUNTS = [(rule, example) for rule, example in EXAMPLES.items() if example.strength == "amount"]


@pytest.mark.parametrize(("rule", "example"), AMOUNTS, ids=[rule.__name__ for rule, _ in AMOUNTS])
def test_an_amount_is_how_far_a_rule_goes(rule, example):
    x = latent(6, 5)
    none = folded(example.after, x, toy(example.of(rule)))
    whole, part = (guided(example.of(rule, amount=amount), x) for amount in (1.0, 0.3))
    torch.testing.assert_close(part, torch.lerp(none, whole, 0.3), rtol=0, atol=1e-12)


NUMBERS = [
    pytest.param(rule, example, field.name, id=f"{rule.__name__}-{field.name}")
    for rule, example in EXAMPLES.items()
    for field in dataclasses.fields(rule)
    if field.metadata.get("low") is not None
]


@pytest.mark.parametrize(("rule", "example", "name"), NUMBERS)
def test_a_number_that_is_not_finite_or_out_of_range_is_refused_by_name_value_and_range(rule, example, name):
    metadata = next(field.metadata for field in dataclasses.fields(rule) if field.name == name)
    low, high = metadata["low"], metadata["high"]
    for bad in (math.nan, math.inf, -math.inf, math.nextafter(low, -math.inf), high + 1):
        with pytest.raises(ValueError) as error:
            example.of(rule, **{name: bad})
        assert str(error.value) == f"{name} is {bad}; it must be a number from {low:g} to {high:g}"
    for good in (low, high):
        assert getattr(example.of(rule, **{name: good}), name) == good


# ------------------------------------------------------------------------------------------------- one rule at a time


def test_classifier_free_guidance_swaps_its_prompts_as_its_weight_swaps_about_one_half():
    """D₊ + (w − 1)(D₊ − D₋) = D₋ + ((1 − w) − 1)(D₋ − D₊)"""
    x, w = latent(6, 5), 4.0
    positive, negative = Gaussian(1.0, 0.5), Mixture((-1.0, 0.5), 0.7)
    apply = ClassifierFreeGuidance(w).begin()
    step = Step(x, SIGMA, SIGMA)
    one = apply(positive(x, SIGMA), {POSITIVE: positive(x, SIGMA), NEGATIVE: negative(x, SIGMA)}, step)
    other = negative(x, SIGMA) + (1 - w - 1) * (negative(x, SIGMA) - positive(x, SIGMA))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


def test_at_weight_zero_classifier_free_guidance_is_the_negative():
    x = latent(6, 5)
    evaluate = toy(ClassifierFreeGuidance(0.0))
    negative = evaluate.denoisers[NEGATIVE](x, SIGMA)
    torch.testing.assert_close(guided(ClassifierFreeGuidance(0.0), x, evaluate), negative, rtol=0, atol=1e-15)


@pytest.mark.parametrize("cfg", [0.0, 1.0, 7.5])
def test_the_samplers_cfg_is_itself_at_full_strength_and_one_at_none(cfg):
    assert SamplerCFG.weight(cfg, 1.0) == cfg
    assert SamplerCFG.weight(cfg, 0.0) == 1.0

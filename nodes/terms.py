"""MODEL → MODEL: each node adds one guidance to the model; a chain of them acts together."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io

from ..guiders import (
    RULES,
    ClassifierFreeGuidance,
    IndependentConditionGuidance,
    PerpNeg,
    PerturbationGuidance,
    WeakModelGuidance,
    WorseNegative,
    host,
)
from ..guiders import SelfAttentionGuidance as SAG
from ..guiders.attended_negative import AttendedNegative
from ..guiders.base import Branch
from ..guiders.classifier_free import SamplerCFG
from ..guiders.independent_condition import ABOUT as ICG
from ..guiders.independent_condition import Pool
from ..guiders.perp_neg import ABOUT as PERP_NEG
from ..guiders.weak_model import AUTOGUIDANCE, SIMS
from ..guiders.worse_negative import NEGATIVE_MODEL, PERTURBED_NEGATIVE
from ..patches import PERTURBATIONS, PROMPT_GUIDANCES, IdentityAttention
from ..patches.attention_sums import AttentionSums
from ..patches.base import BlockPerturbation, Perturbation, TimePerturbation, TimeShift, TokenPerturbation
from ..patches.host import check_time, choose_layers, choose_prompt_layers
from ..patches.layers import Layer, with_auto
from ..patches.random_skipped_layer import RandomSkippedLayer
from . import schema
from .guidance import Guidance, term_node

OF_TIME = (TimePerturbation, TimeShift)  # act in no chosen layers
WITHOUT_NODE = {  # of the registered rules
    ClassifierFreeGuidance: "in the host the sampler itself does it; CFG Interval says where in sampling",
}


NEGATIVE_TEXT = io.Conditioning.Input(
    "negative",
    optional=True,
    tooltip=(
        "What the picture should not show. If nothing is connected, the sampler's own negative prompt is "
        "used, at cfg 1 too. BasicGuider has none, so connect one here."
    ),
)


def guidances() -> list[Guidance]:
    """All guidances whose node is made here, in the order in which the host lists them. Perturbations, and rules that
    need nothing but the values of their fields, come from their registries."""
    return [
        Guidance(SamplerCFG.about, SamplerCFG, [], cfg_interval),
        Guidance(AUTOGUIDANCE, WeakModelGuidance, [WEAK_MODEL, schema.strength(AUTOGUIDANCE)], autoguidance),
        Guidance(SIMS, WeakModelGuidance, [AUXILIARY_MODEL, schema.strength(SIMS)], sims),
        Guidance(PERP_NEG, PerpNeg, [EMPTY, *schema.inputs(PerpNeg)], perp_neg),
        Guidance(NEGATIVE_MODEL, WorseNegative, [NEGATIVE_MODEL_IN, *schema.inputs(WorseNegative)], negative_model),
        Guidance(PERTURBED_NEGATIVE, WorseNegative, PERTURBED_NEGATIVE_IN, perturbed_negative),
        Guidance(
            ICG,
            IndependentConditionGuidance,
            [schema.strength(ICG), *CONDITIONS],
            independent_condition,
            foresee_conditions,
        ),
        Guidance(SAG.about, SAG, [*schema.inputs(SAG), schema.READ_LAYERS], self_attention),
        *(guidance_by_negative(method) for method in PROMPT_GUIDANCES),
        *(guidance_away_from(method) for method in PERTURBATIONS),
        *(guidance_of(rule) for rule in RULES if is_complete(rule)),
    ]


# ------------------------------------------------------------------------------------------------- from the registries


def guidance_away_from(method: type[Perturbation]) -> Guidance:
    """The guidance away from what the model predicts under a perturbation."""
    about = method.about
    needs_layers = not issubclass(method, OF_TIME)

    def make(model, **values):
        settings = schema.settings(method, values)
        if needs_layers:
            settings["layers"] = layers_for(model, method, values["layers"])
        else:
            check_time(model, embedding=issubclass(method, TimePerturbation))
        return model, PerturbationGuidance(schema.scale(about, values[about.strength]), method(**settings))

    inputs = [schema.strength(about), *schema.inputs(method), *([layers_of(method)] if needs_layers else [])]
    return Guidance(about, PerturbationGuidance, inputs, make)


def layers_of(method: type[Perturbation]) -> io.String.Input:
    """The input for the layers of a perturbation."""
    if method is RandomSkippedLayer:
        what = "Which blocks may be left out. auto: all but the first tenth and the last tenth."
        return schema.layers(what, names=schema.NAMES_OF_BLOCKS)
    if issubclass(method, BlockPerturbation):
        return schema.SKIPPED_BLOCKS
    return schema.WHOLE_LAYERS if issubclass(method, TokenPerturbation) else schema.LAYERS


def layers_for(model, method: type[Perturbation], text: str) -> tuple[Layer, ...]:
    """The layers of `model` that `text` names, for a perturbation. Raises ValueError where that cannot act there."""
    text = with_auto(text, method.about.auto) if method.about.auto else text
    skips, enters = issubclass(method, BlockPerturbation), issubclass(method, TokenPerturbation)
    return choose_layers(model, text, skip=skips, enter=enters)


def guidance_by_negative(method: Any) -> Guidance:
    """The guidance by a negative prompt in the attention of the main prediction."""

    def make(model, layers, negative=None, **values):
        chosen = choose_prompt_layers(model, layers)
        prompt = "negative" if negative is None else host.one_prompt(negative, method.about.name, "negative")
        return model, AttendedNegative(method(layers=chosen, **schema.settings(method, values)), prompt)

    return Guidance(method.about, AttendedNegative, [*schema.inputs(method), schema.PROMPT_LAYERS, NEGATIVE_TEXT], make)


def is_complete(rule: Any) -> bool:
    """Whether a rule introduces itself, and all that it is made with is a user's setting."""
    return rule.about is not None and all(field.metadata for field in dataclasses.fields(rule))


def guidance_of(rule: Any) -> Guidance:
    """The guidance of a rule that is complete."""

    def make(model, **values):
        return model, rule(**schema.settings(rule, values))

    def foresee(written):
        if written.has(given.id for given in schema.inputs(rule) if not given.optional):
            rule(**schema.settings(rule, dict(written.values)))

    return Guidance(rule.about, rule, schema.inputs(rule), make, foresee)


# ----------------------------------------------------------------------------------------- rules that need the host


def cfg_interval(model):
    """The sampler's own CFG, which then acts in a part of sampling."""
    return model, SamplerCFG()


def weak_model_input(name: str, tooltip: str) -> io.Input:
    """The input for a model to move away from."""
    return io.Model.Input(
        name, tooltip=f"{tooltip} It must be of the same family as the main model. Both are in memory at the same time."
    )


WEAK_MODEL = weak_model_input("weak_model", "A worse version of the model: one that is less trained, smaller or older.")
AUXILIARY_MODEL = weak_model_input(
    "auxiliary_model", "The same model after training on its own pictures, for example with a LoRA."
)


def autoguidance(model, weak_model, weight):
    """Away from what a weak model predicts."""
    return away_from(model, weak_model, schema.scale(AUTOGUIDANCE, weight))


def sims(model, auxiliary_model, scale):
    """Away from what a model predicts that was trained on this model's pictures."""
    return away_from(model, auxiliary_model, schema.scale(SIMS, scale))


def away_from(model, weak, scale: float):
    """Away from what the model `weak` predicts. Where the scale is 0, `weak` is not even loaded."""
    rule = WeakModelGuidance(scale)
    if rule.branches():
        model, ref = host.with_weak_model(model, weak)
        rule = dataclasses.replace(rule, model=ref)
    return model, rule


EMPTY = io.Conditioning.Input(
    "empty_conditioning", tooltip="A third prompt that asks for nothing. Connect a CLIP Text Encode with an empty text."
)


def perp_neg(model, empty_conditioning, neg_scale, amount):
    """CFG whose negative takes away only what the positive does not ask for."""
    return model, PerpNeg(neg_scale, amount, host.one_prompt(empty_conditioning, PERP_NEG.name, "empty_conditioning"))


NEGATIVE_MODEL_IN = weak_model_input(
    "negative_model",
    "The model that predicts for the negative prompt: the base of a fine-tune, or the same model with a LoRA.",
)


def negative_model(model, negative_model, amount):
    """CFG whose negative prediction another model makes."""
    rule = WorseNegative(amount)
    if amount != 0:
        model, ref = host.with_weak_model(model, negative_model)
        rule = dataclasses.replace(rule, branch=Branch("negative", model=ref))
    return model, rule


LAYERED = {
    method.about.name: method for method in PERTURBATIONS if not issubclass(method, OF_TIME)
}  # what can be done in chosen layers
PERTURBED_NEGATIVE_IN = [
    io.Combo.Input(
        "perturbation",
        options=list(LAYERED),
        default=IdentityAttention.about.name,
        tooltip=(
            "How the network is made worse for the negative prompt: as the node of this name does, with its "
            "default settings. Skip Layer needs a transformer, such as SD3.5, Flux or Wan."
        ),
    ),
    *schema.inputs(WorseNegative),
    schema.LAYERS_OF_ANY,
]


def perturbed_negative(model, perturbation, amount, layers):
    """CFG whose negative prediction a perturbed network makes."""
    method: Any = LAYERED[perturbation]
    chosen = layers_for(model, method, layers)
    return model, WorseNegative(amount, Branch("negative", method(layers=chosen)))


CONDITIONS = [
    io.Combo.Input(
        "conditions",
        options=["gaussian", "random tokens", "prompts"],
        default="gaussian",
        tooltip=(
            "Which random condition is used. gaussian: noise in place of the prompt; needs nothing. random "
            "tokens: nonsense texts made with clip, as in the paper. prompts: your own, connected to prompts."
        ),
    ),
    io.Int.Input(
        "pool_size",
        default=8,
        min=2,
        max=256,
        tooltip=(
            "For random tokens only: how many nonsense texts are made before sampling. Each step draws one of them."
        ),
    ),
    io.Int.Input(
        "pool_seed",
        default=0,
        min=0,
        max=2**64 - 1,
        tooltip="Which random conditions are drawn, and in which order. The sampler's seed matters too.",
    ),
    io.Clip.Input("clip", optional=True, tooltip="Makes the nonsense texts. Needed for random tokens only."),
    io.Conditioning.Input(
        "prompts",
        optional=True,
        tooltip="Two or more prompts, joined with Conditioning (Combine). Needed for prompts only.",
    ),
]


def check_conditions(conditions: str, has_clip: bool, has_prompts: bool) -> None:
    """Raise ValueError where what they are made of is not connected."""
    if conditions == "random tokens" and not has_clip:
        raise ValueError(
            "conditions is random tokens, but no clip is connected to encode them. Connect one, or use gaussian"
        )
    if conditions == "prompts" and not has_prompts:
        raise ValueError("conditions is prompts, but no prompts are connected. Connect two or more, or use gaussian")


def independent_condition(model, weight, conditions, pool_size, pool_seed, clip=None, prompts=None):
    """Away from what the model predicts for a condition that has nothing to do with the picture."""
    check_conditions(conditions, clip is not None, prompts is not None)
    if conditions == "gaussian":
        pool = Pool(seed=pool_seed)
    elif conditions == "random tokens":
        pool = host.random_tokens(clip, pool_size, pool_seed)
    else:
        pool = host.prompts(prompts or [], pool_seed)
    return model, IndependentConditionGuidance(schema.scale(ICG, weight), pool)


def foresee_conditions(written):
    """Raise ValueError where conditions have nothing to be made of."""
    if "conditions" in written.values:
        check_conditions(written.values["conditions"], "clip" in written.given, "prompts" in written.given)


def self_attention(model, scale, blur_sigma, mask, layers):
    """Away from what the model makes of its own prediction with the attended parts blurred."""
    observation = AttentionSums(choose_layers(model, layers))
    return model, SAG(scale, blur_sigma, mask, observation)


GUIDANCES = guidances()
NODES = [term_node(guidance) for guidance in GUIDANCES]

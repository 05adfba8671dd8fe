"""MODEL → MODEL: each node adds one guidance to the model; a chain of them acts together."""

from __future__ import annotations

import dataclasses
from functools import partial

from comfy_api.latest import io

from ..guiders import AdaptiveProjectedGuidance, GuidanceRescale, SelfAttentionGuidance
from ..guiders.classifier_free import SamplerCFG
from ..guiders.host import Term, add_term, prompts, random_tokens, with_weak_model
from ..guiders.independent_condition import ABOUT as ICG
from ..guiders.independent_condition import IndependentConditionGuidance, Pool
from ..guiders.perturbation import PerturbationGuidance
from ..guiders.schedule import Schedule
from ..guiders.weak_model import AUTOGUIDANCE, SIMS, WeakModelGuidance
from ..patches import PERTURBATIONS
from ..patches.attention_sums import AttentionSums
from ..patches.base import BlockPerturbation, TimePerturbation
from ..patches.host import check_time, select_layers
from . import schema


def term(model, rule, title: str, start_percent, end_percent, schedule=None):
    """MODEL with `rule` on it, in the part of sampling and with the curve that the user has set."""
    return add_term(model, Term(rule, Schedule(start_percent, end_percent, schedule), title))


def term_node(about, inputs: list, guide) -> type[schema.Node]:
    """The node of one guidance. guide(title, model, **the inputs) → MODEL with it."""

    class TermNode(schema.Node):
        output = schema.MODEL_OUT

        @classmethod
        def build(cls, model, **settings):
            return guide(cls.about.title, model, **settings)

    TermNode.about, TermNode.inputs = about, [schema.MODEL_IN, *inputs]
    TermNode.__name__ = TermNode.__qualname__ = about.node_id
    return TermNode


def cfg_interval(title, model, **when):
    """MODEL whose sampler's own CFG acts in a part of sampling."""
    return term(model, SamplerCFG(), title, **when)


def scale_of(about, settings: dict) -> float:
    """Takes the strength out of a node's settings, as the scale s of D + s (D₊ − D₋)."""
    return settings.pop(about.strength) - about.off


def perturbation_inputs(method: type) -> list:
    about, layers = method.about, [] if issubclass(method, TimePerturbation) else [schema.LAYERS]
    return [
        schema.strength(about), *schema.inputs(method), *layers, *schema.window(*about.window), schema.SCHEDULE_IN
    ]  # fmt: skip


def perturb(method: type, title, model, start_percent, end_percent, schedule=None, layers=None, **settings):
    """MODEL guided away from what it predicts under a perturbation."""
    scale = scale_of(method.about, settings)
    if layers is None:
        check_time(model)
    else:
        settings["layers"] = select_layers(model, layers, skip=issubclass(method, BlockPerturbation))
    return term(model, PerturbationGuidance(scale, method(**settings)), title, start_percent, end_percent, schedule)


def guide_away(about, title, model, start_percent, end_percent, schedule=None, **settings):
    """MODEL guided away from what a weak model predicts."""
    rule, (weak,) = WeakModelGuidance(scale_of(about, settings)), settings.values()
    if rule.branches():  # else it need not even be loaded
        model, ref = with_weak_model(model, weak)
        rule = dataclasses.replace(rule, model=ref)
    return term(model, rule, title, start_percent, end_percent, schedule)


def weak_model_input(name: str, tooltip: str):
    return io.Model.Input(
        name, tooltip=f"{tooltip} It must share the main model's latent space. Loaded together with it."
    )


WEAK = weak_model_input("weak_model", "A worse version of the model: less trained, smaller, or older.")
AUXILIARY = weak_model_input("auxiliary_model", "The model trained on its own pictures, such as with a LoRA of them.")


SAG = SelfAttentionGuidance.about
ICG_INPUTS = [
    schema.strength(ICG),
    io.Combo.Input(
        "conditions",
        options=["gaussian", "random tokens", "prompts"],
        default="gaussian",
        tooltip="What the independent condition is. gaussian: noise like the prompt's own encoding, needs nothing. "
        "random tokens: texts of random tokens through the CLIP, the paper's for text. prompts: others, joined in one "
        "conditioning.",
    ),
    io.Int.Input(
        "pool_size",
        default=8,
        min=2,
        max=256,
        tooltip="How many texts of random tokens are encoded, before sampling, for each step to draw one of.",
    ),
    io.Int.Input(
        "pool_seed",
        default=0,
        min=0,
        max=2**64 - 1,
        tooltip="Which texts are made and in which order conditions are drawn. The sampler's seed matters too.",
    ),
    *schema.window(),
    io.Clip.Input("clip", optional=True, tooltip="Encodes the random tokens. Needed for random tokens only."),
    io.Conditioning.Input("prompts", optional=True, tooltip="Two or more prompts, joined. Needed for prompts only."),
    schema.SCHEDULE_IN,
]


def independent(title, model, conditions, pool_size, pool_seed, start_percent, end_percent, schedule=None, **settings):
    """MODEL guided away from what it predicts for a condition of its own."""
    clip, others = settings.pop("clip", None), settings.pop("prompts", None)
    if conditions == "gaussian":
        pool = Pool(seed=pool_seed)
    elif conditions == "random tokens":
        if clip is None:
            raise ValueError(
                "conditions is random tokens, but no clip is connected to encode them. Connect one, or use gaussian"
            )
        pool = random_tokens(clip, pool_size, pool_seed)
    else:
        if others is None:
            raise ValueError(
                "conditions is prompts, but no prompts are connected. Connect two or more, or use gaussian"
            )
        pool = prompts(others, pool_seed)
    rule = IndependentConditionGuidance(scale_of(ICG, settings), pool)
    return term(model, rule, title, start_percent, end_percent, schedule)


SAG_INPUTS = [
    schema.strength(SAG),
    *schema.inputs(SelfAttentionGuidance)[1:],
    schema.LAYERS,
    *schema.window(),
    schema.SCHEDULE_IN,
]


def self_attention(title, model, layers, start_percent, end_percent, schedule=None, **settings):
    """MODEL guided away from what it makes of its own prediction with the attended parts blurred."""
    settings["scale"] = scale_of(SAG, settings)
    rule = SelfAttentionGuidance(**settings, observation=AttentionSums(select_layers(model, layers)))
    return term(model, rule, title, start_percent, end_percent, schedule)


def finish(method: type, title, model, start_percent, end_percent, schedule=None, **settings):
    """MODEL with a rule that changes what the terms before it have made."""
    return term(model, method(**settings), title, start_percent, end_percent, schedule)


def weak_model_inputs(about, weak) -> list:
    return [weak, schema.strength(about), *schema.window(), schema.SCHEDULE_IN]


NODES = [
    term_node(SamplerCFG.about, [*schema.window(0.2, 0.9), schema.SCHEDULE_IN], cfg_interval),
    term_node(AUTOGUIDANCE, weak_model_inputs(AUTOGUIDANCE, WEAK), partial(guide_away, AUTOGUIDANCE)),
    term_node(SIMS, weak_model_inputs(SIMS, AUXILIARY), partial(guide_away, SIMS)),
    term_node(ICG, ICG_INPUTS, independent),
    term_node(SAG, SAG_INPUTS, self_attention),
    *(term_node(method.about, perturbation_inputs(method), partial(perturb, method)) for method in PERTURBATIONS),
    *(
        term_node(
            method.about,
            [*schema.inputs(method), *schema.window(*method.about.window), schema.SCHEDULE_IN],
            partial(finish, method),
        )
        for method in (GuidanceRescale, AdaptiveProjectedGuidance)
    ),
]

"""The rows of the table of quality: each guidance as its node makes it, with the strengths that are tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ...guiders import (
    AngleCap,
    FrequencyDecoupled,
    HistoryGuidance,
    MagnitudeAware,
    MomentumGuidance,
    NormCap,
    PreviousStepGuidance,
    SlidingModeGuidance,
    TangentialCFG,
    ZeroStar,
)
from ...guiders.base import About
from ...guiders.independent_condition import ABOUT as ICG
from ...guiders.self_attention import SelfAttentionGuidance
from ...guiders.weak_model import AUTOGUIDANCE, SIMS
from ...guiders.worse_negative import PERTURBED_NEGATIVE
from ...patches import (
    AttentionTemperature,
    BlurredQuery,
    IdentityAttention,
    NoisyTimeEmbedding,
    RandomSkippedLayer,
    ShuffledTokens,
    SwappedTokens,
)
from ..truncation import Truncation

NONE, REAL = "none", "real pictures"
POOL_SIZE = 16  # of the prompts that ICG draws from
PERCENT = (0.2, 0.75)  # the interval of CFG: on a flow model without shift 0.25 ≤ σ ≤ 0.8
NEGATIVE = "negative"  # what a method may need, beside files: the sampler's cfg and an empty prompt


@dataclass(frozen=True)
class Method:
    """One row of the table. build(rig, model, strength) → (MODEL with it, the sampler's cfg)."""

    name: str
    word: str  # what its strength is called
    strengths: tuple[float, ...]  # those tried on the small demo models
    usual: tuple[float, ...]  # those tried on a model of full size
    build: Callable
    off: float | None = None  # the strength that does nothing, where there is one
    needs: tuple[str, ...] = ()  # NEGATIVE, or files of the rig by what they are
    settings: str = ""  # what else is set, as shown in the report; {layers} are the rig's
    adds: bool = True  # whether it is a term that others can stand beside
    made_of: tuple[str, ...] = ()  # methods that it is compared with, beside none
    parts: tuple[tuple[str, float], ...] = ()  # of a pair: its methods, each with its own strength


def node(
    name: str, about: About, strengths: tuple[float, ...], usual: tuple[float, ...], needs=(), settings="", **fixed
) -> Method:
    """The row of one of the pack's nodes, with its defaults and `fixed`, whose values may be functions of the rig. What the
    strength is called, and which does nothing, the node knows itself."""

    def build(rig, model, strength):
        given = {key: value(rig) if callable(value) else value for key, value in fixed.items()}
        return rig.with_node(about.node_id, model, strength, **given), 1.0

    return Method(name, about.strength, strengths, usual, build, about.off, needs, settings)


def none(rig, model, strength):
    return model, 1.0


def cfg(rig, model, strength):
    return model, strength


def cfg_interval(rig, model, strength):
    start, end = PERCENT
    return rig.with_node("BeyondCFGInterval", model, None, start_percent=start, end_percent=end), strength


def truncation(rig, model, strength):
    return rig.with_rule(model, Truncation(strength), "Truncation"), 1.0


def classifier(rig, model, strength):
    return rig.with_rule(model, rig.classifier_rule(strength), "Classifier"), 1.0


def average(rig, model, strength):
    return rig.average(strength), 1.0


def corrected(name: str, about: About, cfgs: tuple[float, ...], **fixed) -> Method:
    """The row of CFG with one of the pack's nodes that correct it, at the node's defaults and `fixed`. Its strength is
    the sampler's cfg, so that each correction is tried where it is best."""

    def build(rig, model, cfg):
        given = {key: value(rig) if callable(value) else value for key, value in fixed.items()}
        return rig.with_node(about.node_id, model, None, **given), cfg

    printed = ["{layers}" if callable(value) else f"{key} {value}" for key, value in fixed.items()]
    settings = ", ".join(printed) or "defaults"
    return Method(name, "cfg", cfgs, (3, 5, 7, 10), build, 1.0, (NEGATIVE,), settings, adds=False, made_of=("CFG",))


def beside(method: Method) -> Method:
    """The same row, of which no pair is made."""
    return replace(method, adds=False)


def attention(name: str, about: About, strengths: tuple[float, ...], settings="{layers}", **fixed) -> Method:
    usual = tuple(scale + about.off for scale in (1, 2, 3, 5))
    return node(name, about, strengths, usual, settings=settings, layers=lambda rig: rig.layers, **fixed)


def autoguidance(name: str, file: str, weights: tuple[float, ...]) -> Method:
    """Guidance by another model, from the rig's file of that kind."""
    usual = (1.5, 2, 2.5, 3)
    return node(name, AUTOGUIDANCE, weights, usual, (file,), weak_model=lambda rig: rig.file_model(file))


DEGRADATIONS = {"input noise 10 %": ("input noise", 0.1), "input noise 20 %": ("input noise", 0.2)}
DEGRADATIONS |= {"dropout 5 %": ("dropout", 0.05), "dropout 10 %": ("dropout", 0.1)}


def degraded(main: str, weak: str = "") -> Method:
    """The model made worse in one way, guided by itself made worse in another; alone where there is no other."""

    def build(rig, model, weight):
        worse = rig.degraded(model, *DEGRADATIONS[main], seed=1)
        if weak:
            other = rig.degraded(model, *DEGRADATIONS[weak], seed=2)
            worse = rig.with_node(AUTOGUIDANCE.node_id, worse, weight, weak_model=other)
        return worse, 1.0

    if not weak:
        return Method(main, "", (1.0,), (1.0,), build, adds=False)
    weights = (1.5, 2, 3, 4)
    name, word, off = f"{main} ← {weak}", AUTOGUIDANCE.strength, AUTOGUIDANCE.off
    return Method(name, word, weights, weights, build, off, adds=False, made_of=(main,))


METHODS = (
    Method(NONE, "", (0.0,), (0.0,), none, off=0.0, adds=False),
    Method("CFG", "cfg", (1.1, 1.25, 1.5, 2), (3, 5, 7, 10), cfg, 1.0, (NEGATIVE,)),
    Method(
        "CFG + interval", "cfg", (1.25, 1.5, 2, 3), (3, 5, 7, 10), cfg_interval, 1.0, (NEGATIVE,),
        settings="{} to {} of sampling".format(*PERCENT),
    ),
    attention("PAG", IdentityAttention.about, (0.25, 0.5, 1, 2)),
    attention("SEG", BlurredQuery.about, (0.05, 0.1, 0.25, 1)),
    node("SAG", SelfAttentionGuidance.about, (0.1, 0.25, 0.5, 1), (0.25, 0.5, 0.75, 1.5)),
    node(
        "ICG", ICG, (1.05, 1.1, 1.25, 1.5), (2, 3, 5, 8), settings=f"{POOL_SIZE} other prompts",
        conditions="prompts", prompts=lambda rig: rig.pool,
    ),
    node("TSG", NoisyTimeEmbedding.about, (1.05, 1.1, 1.5, 2), (1.5, 2, 3, 5)),
    autoguidance("Autoguidance", "weak", (1.1, 1.25, 1.5, 2)),
    autoguidance("Autoguidance, less capacity", "smaller", (1.25, 1.5, 2, 3)),
    autoguidance("Autoguidance, both", "smaller and weak", (1.1, 1.25, 1.5, 2)),
    node(
        "SIMS", SIMS, (0.3, 1, 1.5, 2), (0.3, 0.5, 0.75, 1), ("own pictures",),
        auxiliary_model=lambda rig: rig.file_model("own pictures"),
    ),
    Method("Classifier", "scale", (0.25, 0.5, 1, 4), (0.5, 1, 2, 4), classifier, 0.0, ("classifiers",)),
    Method("Post-hoc EMA", "σ_rel", (0.06, 0.075, 0.1, 0.125), (), average, needs=("snapshots",), adds=False),
    degraded("input noise 10 %"),
    degraded("input noise 10 %", "input noise 20 %"),
    degraded("dropout 5 %"),
    degraded("dropout 5 %", "dropout 10 %"),
    degraded("input noise 10 %", "dropout 10 %"),
    degraded("dropout 5 %", "input noise 20 %"),
    Method("Truncation", "factor", (1.02, 1.05, 1.1, 1.2), (1.02, 1.05, 1.1, 1.2), truncation, off=1.0, adds=False),
)  # fmt: skip
CFGS = (1.25, 1.5, 2)
FIELD = tuple(map(beside, (
    attention("TPG", ShuffledTokens.about, (0.05, 0.1, 0.25)),
    attention("SSG", SwappedTokens.about, (0.05, 0.1, 0.25)),
    node(
        "Random Skip Layer", RandomSkippedLayer.about, (0.1, 0.25, 1), (0.1, 0.25, 0.5, 1),
        settings="auto, 0.1 to 0.9 of sampling", layers="auto",
    ),
    attention("ERG", AttentionTemperature.about, (1.1, 1.25, 1.5)),
    attention("SoftPAG", IdentityAttention.about, (0.5, 1, 2), settings="{layers}, blend 0.5", blend=0.5),
    corrected("CFG-Zero*", ZeroStar.about, CFGS, zero_init_steps=0),
    corrected("Tangential CFG", TangentialCFG.about, CFGS),
    corrected("Magnitude-Aware", MagnitudeAware.about, CFGS),
    corrected("Frequency-Decoupled", FrequencyDecoupled.about, (1.1, 1.25, 1.5)),
    corrected("Norm Cap", NormCap.about, CFGS),
    corrected("Angle Cap", AngleCap.about, CFGS),
    corrected("CFG-Ctrl", SlidingModeGuidance.about, CFGS),
    corrected("Perturbed Negative", PERTURBED_NEGATIVE, CFGS, perturbation="PAG", layers=lambda rig: rig.layers),
    node("HiGS", HistoryGuidance.about, (0.25, 0.75, 1.75), (0.5, 1, 1.75, 3)),
    node("Momentum", MomentumGuidance.about, (0.25, 0.5, 1), (0.25, 0.5, 1, 1.5)),
    node(
        "Self-Guidance (previous)", PreviousStepGuidance.about, (0.5, 1, 3), (1, 2, 3, 5),
        settings="0.5 to 1 of sampling",
    ),
)))  # fmt: skip
ALL = (*METHODS, *FIELD)
SHARES = (0.25, 0.5, 0.75, 1.0)  # of both chosen strengths, for a pair


def pair(one: Method, one_strength: float, other: Method, other_strength: float) -> Method:
    """Both at a share of their own strength, beyond what does nothing."""
    both = (one, one_strength), (other, other_strength)

    def build(rig, model, share):
        weights = []
        for method, strength in both:
            model, weight = method.build(rig, model, method.off + share * (strength - method.off))
            weights.append(weight)
        return model, max(weights)  # one of them is 1, that of a method without the sampler's cfg

    settings = "1 is " + " and ".join(
        f"{method.name} {strength:g} {method.settings}".rstrip() for method, strength in both
    )
    needs = tuple(dict.fromkeys((*one.needs, *other.needs)))
    return Method(
        f"{one.name} + {other.name}", "share of both", SHARES, SHARES, build, 0.0, needs, settings,
        made_of=(one.name, other.name), parts=tuple((method.name, strength) for method, strength in both),
    )  # fmt: skip


def best_pair(chosen: dict[Method, tuple[float, float]]) -> Method | None:
    """Of the two different guidances with the least distance that can stand together. chosen: method → (strength,
    distance)."""
    terms = sorted((method for method in chosen if method.adds), key=lambda method: chosen[method][1])
    for at, other in enumerate(terms):
        for one in terms[:at]:
            alike = one.name.split(",")[0] == other.name.split(",")[0]
            if not alike and not (NEGATIVE in one.needs and NEGATIVE in other.needs):
                return pair(one, chosen[one][0], other, chosen[other][0])
    return None

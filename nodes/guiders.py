"""model, positive, negative → GUIDER: one drag. Each is the host's own CFG guider on the model that the term node of
the same name would give."""

from __future__ import annotations

import dataclasses

from ..guiders.classifier_free import SamplerCFG
from ..guiders.host import make_guider
from ..guiders.schedule import Schedule
from ..guiders.weak_model import AUTOGUIDANCE
from ..patches import PERTURBATIONS
from . import schema
from .terms import (
    ICG,
    ICG_INPUTS,
    SAG,
    SAG_INPUTS,
    WEAK,
    Autoguidance,
    guide_away,
    independent,
    perturb,
    perturbation_inputs,
    self_attention,
    term,
)

PROMPTS = [schema.MODEL_IN, schema.POSITIVE, schema.NEGATIVE]


class CFGGuider(schema.Node):
    about = dataclasses.replace(
        SamplerCFG.about,
        node_id="BeyondCFGGuider",
        title="CFG Guider",
        summary=(
            "Classifier-free guidance for SamplerCustomAdvanced, with the part of sampling in which it acts. "
            "The negative may stay unconnected where cfg is 1."
        ),
        aliases=("classifier-free guidance", "cfg", "guidance interval", "negative prompt"),
    )
    inputs = [*PROMPTS, schema.cfg(7.0), *schema.window(), schema.SCHEDULE_IN]
    output = schema.GUIDER_OUT

    @classmethod
    def build(cls, model, positive, cfg, start_percent, end_percent, negative=None, schedule=None):
        if Schedule(start_percent, end_percent, schedule) != Schedule():
            model = term(model, SamplerCFG(), cls.about.title, start_percent, end_percent, schedule)
        return make_guider(model, positive, negative, cfg)


def perturbation_guider(method: type) -> type[schema.Node]:
    """The guider node of a registered perturbation."""

    class PerturbationGuider(schema.Node):
        about = dataclasses.replace(
            method.about,
            node_id=f"{method.about.node_id}Guider",
            title=f"{method.about.title} Guider",
            summary=f"{method.about.summary} As a guider for SamplerCustomAdvanced, with CFG.",
        )
        inputs = [*PROMPTS, schema.cfg(4.0), *perturbation_inputs(method)]
        output = schema.GUIDER_OUT

        @classmethod
        def build(cls, model, positive, cfg, negative=None, **settings):
            return make_guider(perturb(method, cls.about.title, model, **settings), positive, negative, cfg)

    PerturbationGuider.__name__ = PerturbationGuider.__qualname__ = f"{method.about.node_id}Guider"
    return PerturbationGuider


class AutoguidanceGuider(schema.Node):
    about = dataclasses.replace(
        AUTOGUIDANCE,
        node_id="BeyondCFGAutoguidanceGuider",
        title="Autoguidance Guider",
        summary=f"{AUTOGUIDANCE.summary} As a guider for SamplerCustomAdvanced, with CFG.",
    )
    inputs = [schema.MODEL_IN, WEAK, *PROMPTS[1:], schema.cfg(1.0), *Autoguidance.inputs[2:]]
    output = schema.GUIDER_OUT

    @classmethod
    def build(cls, model, weak_model, positive, cfg, negative=None, **settings):
        model = guide_away(AUTOGUIDANCE, cls.about.title, model, weak_model, **settings)
        return make_guider(model, positive, negative, cfg)


class ICGGuider(schema.Node):
    about = dataclasses.replace(
        ICG,
        node_id="BeyondCFGICGGuider",
        title="ICG Guider",
        summary=f"{ICG.summary} As a guider for SamplerCustomAdvanced.",
    )
    inputs = [*PROMPTS, schema.cfg(1.0), *ICG_INPUTS]
    output = schema.GUIDER_OUT

    @classmethod
    def build(cls, model, positive, cfg, negative=None, **settings):
        return make_guider(independent(cls.about.title, model, **settings), positive, negative, cfg)


class SAGGuider(schema.Node):
    about = dataclasses.replace(
        SAG,
        node_id="BeyondCFGSAGGuider",
        title="SAG Guider",
        summary=f"{SAG.summary} As a guider for SamplerCustomAdvanced, with CFG.",
    )
    inputs = [*PROMPTS, schema.cfg(4.0), *SAG_INPUTS]
    output = schema.GUIDER_OUT

    @classmethod
    def build(cls, model, positive, cfg, negative=None, **settings):
        return make_guider(self_attention(cls.about.title, model, **settings), positive, negative, cfg)


NODES = [
    CFGGuider,
    AutoguidanceGuider,
    ICGGuider,
    SAGGuider,
    *(perturbation_guider(method) for method in PERTURBATIONS if method.about.guider),
]

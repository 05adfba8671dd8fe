"""model, positive, negative → GUIDER: one drag. Each is the host's own CFG guider on the model that the term node of
the same name would give."""

from __future__ import annotations

import dataclasses

from comfy_api.latest import io

from ..guiders.classifier_free import SamplerCFG
from ..guiders.host import Term, add_term, check_cfg, make_guider
from ..guiders.schedule import Schedule
from . import schema, terms
from .guidance import WINDOW, Guidance, foresee_window, region_of
from .values import Written


def foresee_cfg(written: Written) -> None:
    """Raise ValueError where cfg needs a negative and none is connected."""
    if "cfg" in written.values:
        check_cfg(written.values["cfg"], "negative" in written.given)


class CFGGuider(schema.Node):
    """model, positive, negative, cfg → GUIDER, whose CFG acts in a part of sampling."""

    about = dataclasses.replace(
        SamplerCFG.about,
        node_id="BeyondCFGGuider",
        name="CFG Interval Guider",
        title="CFG Interval Guider",
        group="Guiders",
        summary=(
            "Gives SamplerCustomAdvanced the usual CFG, in a part of sampling if you like. The negative prompt may stay "
            "unconnected where cfg is 1."
        ),
        aliases=("classifier-free guidance", "cfg", "guidance interval", "negative prompt"),
    )
    inputs = (
        schema.MODEL_IN,
        schema.POSITIVE,
        schema.NEGATIVE,
        schema.cfg(7.0),
        *schema.window(),
        schema.SCHEDULE_IN,
        schema.REGION_IN,
    )
    output = schema.GUIDER_OUT
    basics = frozenset(WINDOW)

    @classmethod
    def build(cls, model, positive, cfg, start_percent, end_percent, negative=None, schedule=None, region=None):
        when, where = Schedule(start_percent, end_percent, schedule), region_of(region)
        if when != Schedule() or where is not None:
            model = add_term(model, Term(SamplerCFG(), when, cls.about.name, where))
        return make_guider(model, positive, negative, cfg)

    @classmethod
    def foresee(cls, written):
        foresee_window(written)
        foresee_cfg(written)


def guider_node(guidance: Guidance) -> type[schema.Node]:
    """The node model, positive, negative → GUIDER of a guidance: its inputs, with the prompts and cfg after its models."""
    models = [given for given in guidance.inputs if isinstance(given, io.Model.Input)]
    settings = [given for given in guidance.inputs if not isinstance(given, io.Model.Input)]
    cfg = 1.0 if guidance.about.strength == "weight" else 4.0  # a weight counts as cfg does, and stands in its place
    name = f"{guidance.about.name} Guider"

    class Guider(schema.Node):
        about = dataclasses.replace(
            guidance.about,
            node_id=f"{guidance.about.node_id}Guider",
            name=name,
            title=name,
            group="Guiders",
            aliases=("guider", "custom sampler"),  # who types what is wrong with a picture wants the node of a MODEL
            summary=f"{guidance.about.name} and CFG in one node for SamplerCustomAdvanced. {guidance.about.summary}",
        )
        inputs = (*models, schema.POSITIVE, schema.NEGATIVE, schema.cfg(cfg), *settings)
        basics = guidance.basics
        output = schema.GUIDER_OUT

        @classmethod
        def build(cls, positive, cfg, negative=None, **values):
            return make_guider(guidance.add(cls.about.name, **values), positive, negative, cfg)

        @classmethod
        def foresee(cls, written):
            foresee_window(written)
            foresee_cfg(written)
            guidance.foresee(written)

    Guider.__name__ = Guider.__qualname__ = Guider.about.node_id
    return Guider


NODES = [CFGGuider, *(guider_node(guidance) for guidance in terms.GUIDANCES if guidance.about.guider)]

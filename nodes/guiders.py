"""model, positive, negative → GUIDER: one drag. Each is the host's own CFG guider on the model that the term node of
the same name would give."""

from __future__ import annotations

import dataclasses

from comfy_api.latest import io

from ..guiders.classifier_free import SamplerCFG
from ..guiders.host import make_guider
from ..guiders.schedule import Schedule
from . import schema, terms


class CFGGuider(schema.Node):
    about = dataclasses.replace(
        SamplerCFG.about,
        node_id="BeyondCFGGuider",
        title="CFG Interval Guider",
        summary=(
            "Classifier-free guidance for SamplerCustomAdvanced, with the part of sampling in which it acts. "
            "The negative may stay unconnected where cfg is 1."
        ),
        aliases=("classifier-free guidance", "cfg", "guidance interval", "negative prompt"),
    )
    inputs = [
        schema.MODEL_IN,
        schema.POSITIVE,
        schema.NEGATIVE,
        schema.cfg(7.0),
        *schema.window(),
        schema.SCHEDULE_IN,
    ]
    output = schema.GUIDER_OUT

    @classmethod
    def build(cls, model, positive, cfg, start_percent, end_percent, negative=None, schedule=None):
        if Schedule(start_percent, end_percent, schedule) != Schedule():
            model = terms.term(model, SamplerCFG(), cls.about.title, start_percent, end_percent, schedule)
        return make_guider(model, positive, negative, cfg)


def guider_node(node: type[schema.Node]) -> type[schema.Node]:
    """The guider of a term node: its inputs, with the prompts and cfg after its models."""
    models = [given for given in node.inputs if isinstance(given, io.Model.Input)]
    cfg = 1.0 if node.about.strength == "weight" else 4.0  # those that count as cfg does stand in its place

    class Guider(schema.Node):
        about = dataclasses.replace(
            node.about,
            node_id=f"{node.about.node_id}Guider",
            title=f"{node.about.title} Guider",
            summary=f"{node.about.summary} As a guider for SamplerCustomAdvanced, with CFG.",
        )
        inputs = [*models, schema.POSITIVE, schema.NEGATIVE, schema.cfg(cfg), *node.inputs[len(models) :]]
        output = schema.GUIDER_OUT

        @classmethod
        def build(cls, positive, cfg, negative=None, **settings):
            model = node.build.__func__(cls, **settings)  # under the guider's own title
            return make_guider(model, positive, negative, cfg)

    Guider.__name__ = Guider.__qualname__ = Guider.about.node_id
    return Guider


NODES = [CFGGuider, *(guider_node(node) for node in terms.NODES if node.about.guider)]

"""MODEL → MODEL, with guidances that cost less: computed in some steps alone, and ended when they no longer matter."""

from __future__ import annotations

from comfy_api.latest import io

from ..guiders.host import with_reuse, with_stop
from ..guiders.reuse import Reuse, Stop
from . import schema

MODEL_IN = io.Model.Input(
    "model",
    tooltip="The model with its guidance nodes. Nodes that come after this one count too.",
)


class GuidanceReuse(schema.Node):
    """MODEL → MODEL whose guidances are computed in some steps alone."""

    about = Reuse.about
    inputs = (MODEL_IN, *schema.inputs(Reuse))
    output = io.Model.Output(tooltip="The model. If there are two such nodes in a chain, the last one counts.")

    @classmethod
    def build(cls, model, **values):
        return with_reuse(model, Reuse(**schema.settings(Reuse, values)))


class GuidanceStop(schema.Node):
    """MODEL → MODEL whose guidances end when they no longer matter."""

    about = Stop.about
    inputs = (MODEL_IN, *schema.inputs(Stop))
    output = io.Model.Output(tooltip="The model. If there are two such nodes in a chain, the last one counts.")

    @classmethod
    def build(cls, model, **values):
        return with_stop(model, Stop(**schema.settings(Stop, values)))


NODES = [GuidanceReuse, GuidanceStop]

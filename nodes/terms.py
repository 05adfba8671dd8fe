"""MODEL → MODEL: each node adds one guidance to the model; a chain of them acts together."""

from __future__ import annotations

from ..guiders.classifier_free import SamplerCFG
from ..guiders.host import Term, add_term
from ..guiders.schedule import Schedule
from ..guiders.weak_branch import WeakBranch
from ..patches import PERTURBATIONS
from ..patches.host import select_layers
from . import schema


class CFGInterval(schema.Node):
    about = SamplerCFG.about
    inputs = [schema.MODEL_IN, *schema.window(0.2, 0.9)]
    output = schema.MODEL_OUT

    @classmethod
    def build(cls, model, start_percent, end_percent):
        return add_term(model, Term(SamplerCFG(), Schedule(start_percent, end_percent), cls.about.title))


def perturb(method: type, title: str, model, scale, layers, start_percent, end_percent):
    """MODEL guided away from what it predicts under a perturbation."""
    rule = WeakBranch(scale, method(select_layers(model, layers)))
    return add_term(model, Term(rule, Schedule(start_percent, end_percent), title))


PERTURBATION_INPUTS = [*schema.inputs(WeakBranch), schema.LAYERS, *schema.window()]


def perturbation_node(method: type) -> type[schema.Node]:
    """The term node of a registered perturbation."""

    class Perturbation(schema.Node):
        about = method.about
        inputs = [schema.MODEL_IN, *PERTURBATION_INPUTS]
        output = schema.MODEL_OUT

        @classmethod
        def build(cls, model, **settings):
            return perturb(method, cls.about.title, model, **settings)

    Perturbation.__name__ = Perturbation.__qualname__ = method.about.node_id
    return Perturbation


NODES = [CFGInterval, *(perturbation_node(method) for method in PERTURBATIONS)]

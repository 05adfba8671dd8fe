"""One guidance as the user sees it: the inputs of its node, and how their values become a rule on the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from comfy_api.latest import io
from torch import Tensor

from ..guiders.base import About, strength_of
from ..guiders.host import Term, add_term
from ..guiders.region import Region
from ..guiders.schedule import Schedule
from . import schema
from .values import Written

WINDOW = ("start_percent", "end_percent")


@dataclass(frozen=True)
class Guidance:
    """What the nodes of one guidance are made of: the one that gives a MODEL, and where `about` says so a guider."""

    about: About
    rule: type  # what is put on the model
    own_inputs: Sequence[io.Input]  # those that are not the model and not where in sampling it acts
    make: Callable  # (model, **values of own_inputs) → (the model that the rule goes on, the rule)
    foresee: Callable[[Written], None] = lambda written: None  # raises ValueError for what own_inputs show before a run

    @property
    def inputs(self) -> tuple[io.Input, ...]:
        """All inputs of the node, in the order in which it shows them."""
        required = [given for given in self.own_inputs if not given.optional]
        optional = [given for given in self.own_inputs if given.optional]
        return (
            schema.MODEL_IN,
            *required,
            *schema.window(*self.about.window),
            *optional,
            schema.SCHEDULE_IN,
            schema.REGION_IN,
        )

    @property
    def basics(self) -> frozenset[str]:
        """Inputs that are not advanced: its strength, and where it acts if that is all there is to set."""
        strength = strength_of(self.rule)
        return frozenset([strength.name] if strength else ()) | frozenset(() if self.own_inputs else WINDOW)

    def add(self, title: str, model, start_percent: float, end_percent: float, schedule=None, region=None, **values):
        """A copy of `model` with this guidance on it, under its node's name. Raises ValueError for what cannot work."""
        model, rule = self.make(model, **values)
        return add_term(model, Term(rule, Schedule(start_percent, end_percent, schedule), title, region_of(region)))


def foresee_window(written: Written) -> None:
    """Raise ValueError for an impossible part of sampling."""
    if written.has(WINDOW):
        Schedule(*(written.values[name] for name in WINDOW))


def region_of(mask: Tensor | None) -> Region | None:
    """The region of a mask, [masks, height, width] or one alone, [height, width]. Raises ValueError for no mask."""
    return None if mask is None else Region(mask[None] if mask.ndim == 2 else mask)


def term_node(guidance: Guidance) -> type[schema.Node]:
    """The node MODEL → MODEL of a guidance."""

    class TermNode(schema.Node):
        about, inputs, output = guidance.about, guidance.inputs, schema.MODEL_OUT
        basics = guidance.basics

        @classmethod
        def build(cls, **values):
            return guidance.add(cls.about.name, **values)

        @classmethod
        def foresee(cls, written):
            foresee_window(written)
            guidance.foresee(written)

    TermNode.__name__ = TermNode.__qualname__ = guidance.about.node_id
    return TermNode

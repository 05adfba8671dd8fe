"""Terms on a MODEL, and the host's own guider on such a model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import comfy.samplers
from comfy.patcher_extension import WrappersMP

from ...patches.host import KEY
from ..base import GuidanceRule
from ..classifier_free import SamplerCFG
from ..schedule import Schedule
from .recorder import RECORDERS, Recorder
from .run import SHARING, sample_with_terms


@dataclass(frozen=True)
class Term:
    """One guidance on a model, as the user's node stated it."""

    rule: GuidanceRule | SamplerCFG
    schedule: Schedule
    node: str  # the node's title, for messages


def add_term(model, term: Term):
    """A clone of MODEL that carries `term` after those it has."""
    model = _heard(model)
    model.model_options[KEY] = (*model.model_options.get(KEY, ()), term)
    return model


def with_recorder(model, recorder: Recorder):
    """A clone of MODEL whose runs `recorder` hears, beside those that do so already."""
    model = _heard(model)
    model.model_options[RECORDERS] = (*model.model_options.get(RECORDERS, ()), recorder)
    return model


def _heard(model):
    """A clone of MODEL whose runs begin with ours."""
    model = model.clone()
    if not model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sample_with_terms)
    return model


def with_sharing(model, sharing: str):
    """A clone of MODEL whose terms share what rows have in common ("auto"), or compute all rows whole ("off")."""
    model = model.clone()
    model.model_options[SHARING] = sharing
    return model


def make_guider(model, positive, negative, cfg: float):
    """The host's own CFG guider on MODEL, terms and all. `negative` may be None where `cfg` is 1.

    Raises ValueError where cfg is not finite, or needs a negative and there is none."""
    if not math.isfinite(cfg):
        raise ValueError(f"cfg is {cfg}; it must be a finite number")
    if negative is None and cfg != 1.0:
        raise ValueError(f"cfg is {cfg:g} but no negative is connected; connect one, or set cfg to 1 (no CFG)")
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive} if negative is None else {"positive": positive, "negative": negative})
    guider.set_cfg(cfg)
    return guider

"""What the nodes put on a MODEL, and the host's own guider on such a model."""

from __future__ import annotations

import math

import comfy.samplers
from comfy.patcher_extension import WrappersMP

from ...patches.host import KEY
from ..reuse import Reuse, Stop
from .recorder import RECORDERS, Recorder
from .run import CHECK, PREFIX_SHARING, REUSE, STOP, sample_with_terms
from .term import Term


def add_term(model, term: Term, first: bool = False):
    """A clone of MODEL that carries `term` after those it has, or before them."""
    model = _clone_with_runs(model)
    terms = model.model_options.get(KEY, ())
    model.model_options[KEY] = (term, *terms) if first else (*terms, term)
    return model


def with_recorder(model, recorder: Recorder):
    """A clone of MODEL whose runs `recorder` measures, beside the recorders that it has."""
    model = _clone_with_runs(model)
    model.model_options[RECORDERS] = (*model.model_options.get(RECORDERS, ()), recorder)
    return model


def _clone_with_runs(model):
    """A clone of MODEL whose sampling runs go through `sample_with_terms`."""
    model = model.clone()
    if not model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sample_with_terms)
    return model


def with_options(model, sharing: str = "auto", check: str = "auto"):
    """A clone of MODEL. sharing: its terms compute rows once as long as they are equal ("auto"), or all rows whole ("off").
    check: the table of networks is checked by a probe in the first run with this network ("auto"), or believed ("off")."""
    model = model.clone()
    model.model_options |= {PREFIX_SHARING: sharing, CHECK: check}
    return model


def with_reuse(model, reuse: Reuse):
    """A clone of MODEL whose runs compute the directions of their guidances in some steps alone."""
    model = _clone_with_runs(model)
    model.model_options[REUSE] = reuse
    return model


def with_stop(model, stop: Stop):
    """A clone of MODEL whose runs end the directions of their guidances when they no longer matter."""
    model = _clone_with_runs(model)
    model.model_options[STOP] = stop
    return model


def check_cfg(cfg: float, has_negative: bool) -> None:
    """Raise ValueError where cfg is not finite, or needs a negative and there is none."""
    if not math.isfinite(cfg):
        raise ValueError(f"cfg is {cfg}; it must be a finite number")
    if not has_negative and cfg != 1.0:
        raise ValueError(f"cfg is {cfg:g} but no negative is connected; connect one, or set cfg to 1 (no CFG)")


def make_guider(model, positive, negative, cfg: float):
    """The host's own CFG guider on MODEL, with all its terms. `negative` may be None where `cfg` is 1. Raises ValueError
    as check_cfg."""
    check_cfg(cfg, negative is not None)
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive} if negative is None else {"positive": positive, "negative": negative})
    guider.set_cfg(cfg)
    return guider

"""What the host says nowhere, and has to be read off its objects. Checked on ComfyUI 0.16.3 to 0.33.0.

What it does say, its functions and classes, is listed in patches/host/symbols.py."""

from __future__ import annotations

import dis
import itertools
import types

import comfy.model_sampling
import comfy.samplers


def sampler_name(sampler) -> str:
    """The name of a sampler of the host in its list, such as "euler"; "" for one that has none."""
    function = getattr(sampler, "sampler_function", None)
    return getattr(function, "__name__", "").removeprefix("sample_").removesuffix("_function")


def churns(sampler) -> bool:
    """Whether a sampler raises the noise before a step, so that its σs are not on the schedule."""
    return getattr(sampler, "extra_options", {}).get("s_churn", 0) > 0


def reads_cfg(guider) -> bool:
    """Whether what stands in the guider's `cfg` when a prediction is asked for has a part in it. DualCFG and others of the
    kind have weights of their own beside it. LTXV's stores one of them there at each call, whatever stood there."""
    function = getattr(guider.predict_noise, "__func__", guider.predict_noise)
    return _first_use(function, type(guider)) == "LOAD"


def combines_by_cfg(guider) -> bool:
    """Whether the guider combines its two predictions as the host's own does: D₋ + cfg (D₊ − D₋)."""
    return getattr(guider.predict_noise, "__func__", None) is comfy.samplers.CFGGuider.predict_noise


def _first_use(function, kind: type, above: tuple = ()) -> str:
    """What comes first in a method of `kind`, and in those that it calls on itself: a "LOAD" of its cfg, a "STORE", or ""
    for neither. What is not written in Python may load it. `above`: the methods that are being read already."""
    code = getattr(function, "__code__", None)
    if code is None:
        return "LOAD"
    before = None
    for step in dis.get_instructions(code):
        if "ATTR" in step.opname or "METHOD" in step.opname:
            if step.argval == "cfg":
                return step.opname.partition("_")[0]
            called = _called(step, before, function, kind)
            if called not in (None, function, *above) and (use := _first_use(called, kind, (*above, function))):
                return use
        before = step
    return ""


def _called(step: dis.Instruction, before: dis.Instruction | None, function, kind: type):
    """The method of `kind` that an instruction of `function` gets: one of its own, after `self`, or the one of the same
    name in a class above, as `super()` gives it."""
    name, on = step.argval, before.argval if before else None
    on_itself = (on[-1] if isinstance(on, tuple) else on) in function.__code__.co_varnames[:1]
    if on_itself and "SUPER" not in step.opname:
        return getattr(kind, name, None) if isinstance(getattr(kind, name, None), types.FunctionType) else None
    if name != function.__name__:
        return None
    methods = [vars(home)[name] for home in kind.__mro__ if name in vars(home)]
    return next((later for one, later in itertools.pairwise(methods) if one is function), None)


def is_only_noise(sampling, sigma: float) -> bool:
    """Whether nothing of x₀ is left in x at σ: where a schedule of zero terminal SNR begins. The host stops it short of
    σ = ∞, at 4518."""
    return bool(getattr(sampling, "zsnr", False)) and sigma >= float(sampling.sigma_max)


def mixture(sampling, sigma: float) -> tuple[float, float]:
    """(a, b / σ) of x = a x₀ + b n, by the formula with which the host makes D of x and of what the network says.

    For CogVideoX that is x₀ = a x − b v with a² + b² = 1. The host's noise_scaling there begins from x₀ + σ n instead, and
    its samplers go on so; but ε, and with it all that shows the network another x, is what the network and D say it is."""
    if isinstance(sampling, comfy.model_sampling.CONST):
        return 1 - sigma, getattr(sampling, "noise_scale", 1.0)
    if isinstance(sampling, getattr(comfy.model_sampling, "V_PREDICTION_DDPM", ())):  # not in the oldest hosts
        return ((sigma**2 + 1) ** -0.5,) * 2
    return 1.0, 1.0

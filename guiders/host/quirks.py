"""What the host says nowhere, and has to be read off its objects. Checked on ComfyUI 0.16.3 to 0.30.0."""

from __future__ import annotations

import comfy.model_sampling


def sampler_name(sampler) -> str:
    """The name of a sampler of the host in its list, such as "euler"; "" for one that has none."""
    function = getattr(sampler, "sampler_function", None)
    return getattr(function, "__name__", "").removeprefix("sample_").removesuffix("_function")


def churns(sampler) -> bool:
    """Whether a sampler raises the noise before a step, so that its σs are not on the schedule."""
    return getattr(sampler, "extra_options", {}).get("s_churn", 0) > 0


def reads_cfg(guider) -> bool:
    """Whether anything reads the guider's `cfg`. DualCFG and others of the kind have weights of their own beside it."""
    function = getattr(guider.predict_noise, "__func__", guider.predict_noise)
    return "cfg" in getattr(getattr(function, "__code__", None), "co_names", ("cfg",))


def mixture(sampling, sigma: float) -> tuple[float, float]:
    """(a, b / σ) of x = a x₀ + b n, by the formula with which the host makes D of x and of what the network says.

    For CogVideoX that is x₀ = a x − b v with a² + b² = 1. The host's noise_scaling there begins from x₀ + σ n instead, and
    its samplers go on so; but ε, and with it all that shows the network another x, is what the network and D say it is."""
    if isinstance(sampling, comfy.model_sampling.CONST):
        return 1 - sigma, getattr(sampling, "noise_scale", 1.0)
    if isinstance(sampling, getattr(comfy.model_sampling, "V_PREDICTION_DDPM", ())):  # not in the oldest hosts
        return ((sigma**2 + 1) ** -0.5,) * 2
    return 1.0, 1.0

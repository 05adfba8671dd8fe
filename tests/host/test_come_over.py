"""docs/COME_OVER.md: what this pack's nodes give is what other packs' nodes gave, where that page says so.

Their formulas are written here anew, as functions of the host's sampling, and never their code."""

import asyncio
import math
import re
from pathlib import Path

import comfy.ldm.modules.attention
import comfy.model_patcher
import comfy.model_sampling
import comfy.samplers
import pytest
import torch
import torch.nn.functional as F
from comfy_api.latest import io
from pack.nodes import extension, replacements, stand_ins
from pack.nodes.helpers import GuidanceSchedule
from pack.nodes.replacements import REPLACEMENTS
from pack.nodes.values import check
from pack.patches.host import KEY
from pack.tests.host import networks
from pack.tests.host.harness import TERM_NODES, close, sample, shared_network, sigmas_of
from pack.tests.host.zoo import SPECIMENS

PAGE = (Path(__file__).resolve().parents[2] / "docs/COME_OVER.md").read_text("utf-8")

# -------------------------------------------------------------------------------------------------------- the table


@pytest.fixture(scope="module")
def nodes():
    return {node.about.node_id: node for node in asyncio.run(extension.BeyondCFG().get_node_list())}


@pytest.mark.parametrize("replacement", REPLACEMENTS, ids=lambda replacement: replacement.old)
def test_a_replacement_gives_all_that_a_node_of_ours_needs_and_nothing_that_it_lacks(replacement, nodes):
    assert replacement.old not in nodes
    assert not replacement.inputs.keys() & replacement.values.keys()
    inputs = {given.id: given for given in nodes[replacement.new].inputs}
    given = replacement.inputs.keys() | replacement.values.keys()
    assert {name for name, of in inputs.items() if not of.optional} <= given <= inputs.keys()
    for name, value in replacement.values.items():
        check(inputs[name], value)
    widgets = {theirs for ours, theirs in replacement.inputs.items() if hasattr(inputs[ours], "default")}
    assert widgets == {*replacement.widgets}, "an old widget that is left out is a value that is lost"


def test_each_old_node_stands_there_once_and_the_page_names_it():
    olds = [replacement.old for replacement in REPLACEMENTS]
    assert len(olds) == len({*olds})
    assert {*re.findall(r"^\| `([^`]+)`[^|]*\| \*\*swapped\*\*", PAGE, re.MULTILINE)} == {*olds}


def test_the_host_gets_the_table_as_it_takes_it():
    if not hasattr(io, "NodeReplace"):
        pytest.skip("this host has no io.NodeReplace")
    (found,) = (each.for_host().as_dict() for each in REPLACEMENTS if each.old == "EpsilonScalingPPM")
    assert found == {
        "new_node_id": "BeyondCFGEpsilonScaling",
        "old_node_id": "EpsilonScalingPPM",
        "old_widget_ids": ["scaling_factor"],
        "input_mapping": [
            {"new_id": "model", "old_id": "model"},
            {"new_id": "scaling_factor", "old_id": "scaling_factor"},
            {"new_id": "start_percent", "set_value": 0.0},
            {"new_id": "end_percent", "set_value": 1.0},
        ],
        "output_mapping": [{"new_idx": 0, "old_idx": 0}],
    }


@pytest.mark.parametrize("request_", [{}, {"prompt": None}, {"prompt": [1]}, {"prompt": {"1": None, "2": {}}}])
def test_a_prompt_of_any_form_stays_as_it_is(request_):
    before = repr(request_)
    assert repr(replacements.completed(request_)) == before


def test_an_old_node_alone_gets_what_the_host_needs_to_swap_it():
    old, named, other = ({"class_type": kind, "inputs": {}} for kind in ("EpsilonScalingPPM",) * 2 + ("KSampler",))
    named["_meta"] = {"title": "mine"}
    prompt = replacements.completed({"prompt": {"1": old, "2": named, "3": other}})["prompt"]
    assert prompt["1"]["_meta"] == {} and prompt["2"]["_meta"] == {"title": "mine"} and "_meta" not in prompt["3"]


# ------------------------------------------------------------------------------------------------------- the pictures


def ours(model, *nodes):
    """MODEL through nodes of ours: (id, settings)."""
    for node_id, settings in nodes:
        own = {given.id: given.default for given in TERM_NODES[node_id].inputs if hasattr(given, "default")}
        assert settings.keys() <= {given.id for given in TERM_NODES[node_id].inputs}
        (model,) = TERM_NODES[node_id].execute(
            model=model, **{**own, "start_percent": 0.0, "end_percent": 1.0, **settings}
        )
    return model


def after_cfg(model, function):
    """MODEL whose result goes through `function` after CFG."""
    model = model.clone()
    model.set_model_sampler_post_cfg_function(function)
    return model


def in_place_of_cfg(model, function):
    """MODEL with `function` of (x − D₊, x − D₋, w, all arguments) in place of CFG."""
    model = model.clone()
    model.set_model_sampler_cfg_function(lambda args: function(args["cond"], args["uncond"], args["cond_scale"], args))
    return model


def with_zero_snr(model):
    sampling = type("Sampling", (comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION), {})
    model = model.clone()
    model.add_object_patch("model_sampling", sampling(model.model.model_config, zsnr=True))
    return model


def weak(args, attention, *place):
    """The positive's prediction with `attention` in one block of a UNet."""
    options = comfy.model_patcher.set_model_options_patch_replace(
        args["model_options"].copy(), attention, "attn1", *place
    )
    return comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)[0]


def spread(x):
    return x.std(dim=(1, 2, 3), keepdim=True)


def size(x):
    return torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)


def epsilon_scaling(factor):
    def scaled(args):
        sampling, x = args["model"].model_sampling, args["input"]
        if getattr(sampling, "zsnr", False) and args["sigma"][0] >= sampling.sigma_max:
            return args["denoised"]
        return x - (x - args["denoised"]) / factor

    return scaled


@pytest.mark.some_cases(5)
@pytest.mark.parametrize("factor", [0.5, 0.999, 1.0, 1.005, 1.5])
@pytest.mark.parametrize(
    "scheduler", ["normal", *(pytest.param(name, marks=pytest.mark.slow) for name in ("karras", "simple"))]
)
@pytest.mark.parametrize("kind", ["unet", "zero snr", "sd3", "flux"])
def test_epsilon_scaling_of_comfyui_ppm_is_ours_for_every_value_and_model(kind, scheduler, factor):
    model = with_zero_snr(shared_network("unet", prediction="v")) if kind == "zero snr" else shared_network(kind)
    kind = "unet" if kind == "zero snr" else kind
    (replacement,) = (each for each in REPLACEMENTS if each.old == "EpsilonScalingPPM")
    here = ours(model, (replacement.new, {"scaling_factor": factor, **replacement.values}))
    theirs = after_cfg(model, epsilon_scaling(factor))
    settings = {"sigmas": sigmas_of(model, 5, scheduler), "latent": networks.latent(kind, 2)}
    for cfg, sampler in ((1.0, "euler"), (4.0, "heun")):
        found = sample(here, kind, cfg, sampler=sampler, **settings)
        assert close(found, sample(theirs, kind, cfg, sampler=sampler, **settings)) < 1e-5


def at_zero_snr_without_the_exception(model, factor):
    return after_cfg(model, lambda args: args["input"] - (args["input"] - args["denoised"]) / factor)


def test_at_zero_terminal_snr_scaling_the_first_step_would_leave_noise_in_the_picture():
    model = with_zero_snr(shared_network("unet", prediction="v"))
    here = ours(model, ("BeyondCFGEpsilonScaling", {"scaling_factor": 1.005}))
    plain = sample(model, steps=10)
    assert close(sample(here, steps=10), plain) < 0.1
    assert close(sample(at_zero_snr_without_the_exception(model, 1.005), steps=10), plain) > 0.3


# ------------------------------------------------------------------------------------- what the page says to set by hand


def pag(scale, *place):
    """sd-perturbed-attention, rescale and adaptive_scale 0."""
    return lambda args: (
        args["denoised"] + scale * (args["cond_denoised"] - weak(args, lambda q, k, v, extra, mask=None: v, *place))
    )


def blurred(q, extra, sigma, cut_by=-1):
    """Theirs cuts the kernel to one axis of the picture, and does so on both."""
    rows, columns = extra["original_shape"][-2:]
    width = round(math.sqrt(q.shape[1] * columns / rows))
    picture = q.mT.unflatten(-1, (-1, width))
    if sigma < 0:
        return picture.mean((-2, -1), keepdim=True).expand_as(picture).flatten(2).mT
    reach = min(math.ceil(6 * sigma) | 1, picture.shape[cut_by] | 1) // 2
    kernel = torch.exp(-((torch.arange(-reach, reach + 1) / sigma) ** 2) / 2)
    kernel = torch.outer(kernel, kernel).to(q) / kernel.sum() ** 2
    padded = F.pad(picture, [reach] * 4, mode="reflect")
    return F.conv2d(padded, kernel.expand(q.shape[-1], 1, -1, -1), groups=q.shape[-1]).flatten(2).mT


def seg(scale, sigma, *place):
    """sd-perturbed-attention, rescale 0."""

    def attention(q, k, v, extra, mask=None):
        attend = comfy.ldm.modules.attention.attention_basic
        return attend(blurred(q, extra, sigma), k, v, extra["n_heads"])

    return lambda args: args["denoised"] + scale * (args["cond_denoised"] - weak(args, attention, *place))


def seg_without_the_samplers_cfg(scale, sigma):
    """ComfyUI-SEGAttention: its scale takes the place of the sampler's cfg."""
    add = seg(scale, sigma, "middle", 0)

    def result(args):
        positive, negative = args["cond_denoised"], args["uncond_denoised"]
        return add(args) - args["denoised"] + positive + (scale - 1) * (positive - negative)

    return result


def limiter(high, low):
    """ComfyUI-ppm's Guidance Limiter."""

    def limited(args):
        return args["denoised"] if low < args["sigma"][0] <= high else args["cond_denoised"]

    return limited


def rescale(amount):
    """ComfyUI-ppm's RescaleCFGPost, alt_mode off."""
    return lambda args: (
        args["denoised"] * (amount * spread(args["cond_denoised"]) / spread(args["denoised"]) + 1 - amount)
    )


def renorm(ratio):
    """ComfyUI-ppm's RenormCFGPost."""
    return lambda args: args["denoised"] * (ratio * size(args["cond_denoised"]) / size(args["denoised"])).clamp(max=1)


def tangential(amount):
    """ComfyUI-ppm's TCFGAdvanced."""

    def damped(positive, negative, w, args):
        _, _, directions = torch.linalg.svd(
            torch.stack([negative.flatten(1), positive.flatten(1)], 1), full_matrices=False
        )
        first = directions[:, 0]
        kept = ((negative.flatten(1) * first).sum(1, keepdim=True) * first).reshape(negative.shape)
        negative = amount * kept + (1 - amount) * negative
        return negative + w * (positive - negative)

    return damped


def dynamic_thresholding(mimic, percentile):
    """sd-dynamic-thresholding: separate channels, MEAN, AD, constant scales."""

    def narrowed(positive, negative, w, args):
        x = args["input"]
        result, wanted = (x - (negative + scale * (positive - negative)) for scale in (w, mimic))
        (result, mean), (wanted, _) = ((each - each.mean((2, 3), keepdim=True), each.mean((2, 3), keepdim=True))
                                       for each in (result, wanted))  # fmt: skip
        wanted = wanted.abs().amax((2, 3), keepdim=True)
        reach = torch.quantile(result.abs().flatten(2), percentile, dim=2)[..., None, None].maximum(wanted)
        return x - (result.clamp(-reach, reach) / reach * wanted + mean)

    return narrowed


def projected(momentum, threshold):
    """APG_ImYourCFGNow: eta 1, adaptive_momentum 0, no limiter."""
    average = None

    def guided(positive, negative, w, args):
        nonlocal average
        average = (positive - negative) + (0 if average is None else momentum * average)
        return positive + (w - 1) * average * (threshold / size(average)).clamp(max=1)

    return guided


def zero_star(steps):
    """KJNodes' CFGZeroStarAndInit: it counts from 0."""

    def scaled(positive, negative, w, args):
        sigmas = args["model_options"]["transformer_options"]["sample_sigmas"]
        if (sigmas >= args["sigma"][0]).sum() - 1 <= steps:
            return torch.zeros_like(positive)
        alpha = (positive * negative).sum((1, 2, 3), keepdim=True) / negative.square().sum((1, 2, 3), keepdim=True)
        return alpha * negative + w * (positive - alpha * negative)

    return scaled


def pag_before_cfg(scale):
    """pre_cfg's PAG: what it adds to the positive is multiplied by the sampler's cfg."""

    def before(model):
        def moved(args):
            positive, *others = args["conds_out"]
            given = {**args, "cond": args["conds"][0]}
            return [
                positive + scale * (positive - weak(given, lambda q, k, v, extra, mask=None: v, "middle", 0)),
                *others,
            ]

        model = model.clone()
        model.set_model_sampler_pre_cfg_function(moved)
        return model

    return before


def schedule(points):
    own = {given.id: given.default for given in GuidanceSchedule.inputs if hasattr(given, "default")}
    return GuidanceSchedule.built(**{**own, "curve_type": "points", "points": points, "over": "sigma"})


BETWEEN = "0.28: 0, 0.2801: 1, 5.42: 1, 5.4201: 0"  # as the page writes it
CFG = 4.0
BY_HAND = {  # by our nodes, by theirs
    "PerturbedAttention": ([("BeyondCFGPAG", {"scale": 2.5, "layers": "middle"})], pag(2.5, "middle", 0)),
    "PerturbedAttention, unet_block input": (
        [("BeyondCFGPAG", {"scale": 2.5, "layers": "input.1"})], pag(2.5, "input", 1)),
    "SmoothedEnergyGuidanceAdvanced": ([("BeyondCFGSEG", {"layers": "input.1"})], seg(3.0, -1.0, "input", 1)),
    "SmoothedEnergyGuidanceAdvanced, blur_sigma 1.3": (
        [("BeyondCFGSEG", {"layers": "input.1", "blur_sigma": 1.3, "padding": "reflect"})], seg(3.0, 1.3, "input", 1)),
    "SEGAttention": (
        [("BeyondCFGSEG", {"scale": CFG, "layers": "middle"})], seg_without_the_samplers_cfg(CFG, -1.0)),
    "Guidance Limiter": ([("BeyondCFGInterval", {"schedule": schedule(BETWEEN)})], limiter(5.42, 0.28)),
    "RescaleCFGPost": ([("BeyondCFGRescale", {"amount": 0.6})], rescale(0.6)),
    "RenormCFGPost": ([("BeyondCFGNormCap", {"ratio": 1.02})], renorm(1.02)),
    "TCFGAdvanced": ([("BeyondCFGTangential", {"amount": 0.5})], tangential(0.5)),
    "DynamicThresholdingFull": (
        [("BeyondCFGDynamicThresholding", {"mimic_scale": 1.5, "percentile": 0.97})], dynamic_thresholding(1.5, 0.97)),
    "APG_ImYourCFGNow": (
        [("BeyondCFGAdaptiveProjected", {"eta": 1.0, "norm_threshold": 9.0 * (CFG - 1), "momentum": 0.5})],
        projected(0.5, 9.0)),
    "CFGZeroStarAndInit": ([("BeyondCFGZeroStar", {"zero_init_steps": 2})], zero_star(1)),
    "Pre CFG PAG": ([("BeyondCFGPAG", {"scale": 0.5 * CFG, "layers": "middle"})], pag_before_cfg(0.5)),
}  # fmt: skip
IN_PLACE_OF_CFG = ("TCFGAdvanced", "DynamicThresholdingFull", "APG_ImYourCFGNow", "CFGZeroStarAndInit")


@pytest.mark.some_cases(5)
@pytest.mark.parametrize("name", BY_HAND)
def test_set_by_hand_as_the_page_says_the_picture_is_the_same(name):
    nodes, formula = BY_HAND[name]
    model, settings = shared_network("unet"), {"cfg": CFG, "latent": networks.latent("unet", 1, 16, 24), "steps": 8}
    if name == "Pre CFG PAG":
        theirs = formula(model)
    else:
        theirs = (in_place_of_cfg if name in IN_PLACE_OF_CFG else after_cfg)(model, formula)
    expected = sample(theirs, **settings)
    assert close(sample(ours(model, *nodes), **settings), expected) < 1e-5
    assert close(sample(model, **settings), expected) > 1e-3  # it acts


# ------------------------------------------------------------------------------------- nodes that stand in for others'

STAND_INS = {peer.node: node for peer, node in zip(stand_ins.PEERS, stand_ins.NODES, strict=True)}


def own_defaults(node_id: str) -> dict:
    return {given.id: given.default for given in STAND_INS[node_id].inputs if hasattr(given, "default")}


def standing_in(model, node_id: str, **values):
    """MODEL through the node that stands in for another pack's, with its defaults but for `values`."""
    assert values.keys() <= own_defaults(node_id).keys()
    return STAND_INS[node_id].execute(model=model, **{**own_defaults(node_id), **values})


def within(args, start, end):
    return (start < 0 or args["sigma"][0] <= start) and (end < 0 or args["sigma"][0] > end)


def faded(args, amount):
    return max(0, 1 - amount**4 * (1000 - args["model"].model_sampling.timestep(args["sigma"])[0].item()))


def their_guidance(attention, *places, scale=3.0, start=-1, end=-1, adaptive=0.0, rescale=0.0, mode="full"):
    """sd-perturbed-attention: PAG and SEG."""

    def result(args):
        if not within(args, start, end):
            return args["denoised"]
        options = args["model_options"].copy()
        for place in places:
            options = comfy.model_patcher.set_model_options_patch_replace(options, attention, "attn1", *place)
        worse = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)[0]
        added = scale * faded(args, adaptive) * (args["cond_denoised"] - worse)
        if rescale:
            origin = args["denoised"] if mode == "full" else args["cond_denoised"]
            added = added * (rescale * spread(args["cond_denoised"]) / spread(origin + added) + 1 - rescale)
        return args["denoised"] + added

    return result


def values_alone(q, k, v, extra, mask=None):
    return v


def with_blur(sigma, cut_by=-1):
    def attention(q, k, v, extra, mask=None):
        attend = comfy.ldm.modules.attention.attention_basic
        return attend(blurred(q, extra, sigma, cut_by), k, v, extra["n_heads"])

    return attention


def their_seg_in_place_of_cfg(scale, sigma):
    add = their_guidance(with_blur(sigma, -2), ("middle", 0), scale=scale)

    def result(args):
        positive, negative = args["cond_denoised"], args["uncond_denoised"]
        if scale == 0 or sigma == 0:
            return positive
        cfg = scale - 1 if args["uncond"] is not None else 0
        return add(args) - args["denoised"] + positive + cfg * (positive - negative)

    return result


def limited(function, start, end):
    return lambda args: function(args) if within(args, start, end) else args["denoised"]


def tangential_before_cfg(amount, start, end):
    def before(model):
        def damped(args):
            if args["conds"][1] is None or not within(args, start, end):
                return args["conds_out"]
            positive, negative = args["conds_out"]
            x = args["input"]
            noise = [x - positive, x - negative]
            _, _, directions = torch.linalg.svd(
                torch.stack([n.flatten(1) for n in reversed(noise)], 1), full_matrices=False
            )
            first = directions[:, 0]
            kept = ((noise[1].flatten(1) * first).sum(1, keepdim=True) * first).reshape(x.shape)
            return [positive, amount * (x - kept) + (1 - amount) * negative]

        model = model.clone()
        model.set_model_sampler_pre_cfg_function(damped)
        return model

    return before


def apg(momentum, adaptive, threshold, eta, limiter=False, start=5.42, end=0.28):
    """APG_ImYourCFGNow, in its first run."""
    average = 0

    def guided(args):
        nonlocal average
        positive, negative, w = args["cond"], args["uncond"], args["cond_scale"]  # the noise
        if limiter and not within(args, start, end):
            return positive
        fade = faded(args, adaptive) if torch.is_tensor(average) else 1
        average = (positive - negative) + momentum * fade * average
        delta = average * (threshold / size(average)).clamp(max=1) if threshold else average
        unit = positive / size(positive)
        parallel = (delta * unit).sum((1, 2, 3), keepdim=True) * unit
        return positive + (w - 1) * (delta - parallel + eta * parallel)

    def before(model):
        model = model.clone()
        model.set_model_sampler_cfg_function(guided)
        return model

    return before


def post(function):
    return lambda model: after_cfg(model, function)


MIDDLE, SOME = ("middle", 0), {"sigma_start": 6.0, "sigma_end": 0.7}
ADDED = {"start": 6.0, "end": 0.7}
SWAPPED = {  # node, its values: a function of MODEL that does as it does in its own pack
    "PAG as it comes": ("PerturbedAttention", {}, lambda: post(their_guidance(values_alone, MIDDLE))),
    "PAG in an input block, between noise levels": (
        "PerturbedAttention", {"scale": 2.0, "unet_block": "input", "unet_block_id": 1, **SOME},
        lambda: post(their_guidance(values_alone, ("input", 1), scale=2.0, **ADDED))),
    "PAG, adaptive": (
        "PerturbedAttention", {"adaptive_scale": 0.2},
        lambda: post(their_guidance(values_alone, MIDDLE, adaptive=0.2))),
    "PAG, rescaled": (
        "PerturbedAttention", {"rescale": 0.6}, lambda: post(their_guidance(values_alone, MIDDLE, rescale=0.6))),
    "PAG, rescaled in part, adaptive, between noise levels": (
        "PerturbedAttention", {"rescale": 0.6, "rescale_mode": "partial", "adaptive_scale": 0.17, **SOME},
        lambda: post(their_guidance(values_alone, MIDDLE, rescale=0.6, mode="partial", adaptive=0.17, **ADDED))),
    "PAG, blocks in a list": (
        "PerturbedAttention", {"unet_block_list": "d0, m0.0,u1-2"},
        lambda: post(their_guidance(values_alone, *(("input", 1), ("middle", 0, 0), ("output", 1), ("output", 2))))),
    "SEG as it comes": (
        "SmoothedEnergyGuidanceAdvanced", {}, lambda: post(their_guidance(with_blur(-1.0), MIDDLE))),
    "SEG, blurred less": (
        "SmoothedEnergyGuidanceAdvanced", {"blur_sigma": 0.8, "unet_block": "input", "unet_block_id": 1, **SOME},
        lambda: post(their_guidance(with_blur(0.8), ("input", 1), **ADDED))),
    "SEG, blurred farther than the picture is high, rescaled": (
        "SmoothedEnergyGuidanceAdvanced",
        {"blur_sigma": 4.0, "unet_block": "input", "unet_block_id": 1, "rescale": 0.3},
        lambda: post(their_guidance(with_blur(4.0), ("input", 1), rescale=0.3))),
    "SEGAttention as it comes": ("SEGAttention", {"inf_blur": True}, lambda: post(their_seg_in_place_of_cfg(3.0, -1.0))),
    "SEGAttention, blurred less": (
        "SEGAttention", {"blur": 0.7, "scale": 2.0}, lambda: post(their_seg_in_place_of_cfg(2.0, 0.7))),
    "SEGAttention, off": ("SEGAttention", {"scale": 0.0}, lambda: post(their_seg_in_place_of_cfg(0.0, 10.0))),
    "Guidance Limiter": ("Guidance Limiter", {}, lambda: post(limiter(5.42, 0.28))),
    "Guidance Limiter, no upper limit": (
        "Guidance Limiter", {"sigma_start": -1.0, "sigma_end": 2.0}, lambda: post(limiter(math.inf, 2.0))),
    "RescaleCFGPost": (
        "RescaleCFGPost", {"multiplier": 0.6, **SOME}, lambda: post(limited(rescale(0.6), 6.0, 0.7))),
    "RenormCFGPost": (
        "RenormCFGPost", {"renorm_cfg": 1.0}, lambda: post(renorm(1.0))),
    "TCFGAdvanced": ("TCFGAdvanced", SOME, lambda: tangential_before_cfg(0.5, 6.0, 0.7)),
    "APG_ImYourCFGNow as it comes": ("APG_ImYourCFGNow", {}, lambda: apg(0.5, 0.18, 15.0, 1.0)),
    "APG_ImYourCFGNow": (
        "APG_ImYourCFGNow", {"momentum": -0.7, "adaptive_momentum": 0.15, "norm_threshold": 2.0, "eta": 0.3},
        lambda: apg(-0.7, 0.15, 2.0, 0.3)),
    "APG_ImYourCFGNow, limited": (
        "APG_ImYourCFGNow", {"guidance_limiter": True, "norm_threshold": 0.0, "eta": 0.0},
        lambda: apg(0.5, 0.18, 0.0, 0.0, limiter=True)),
}  # fmt: skip


@pytest.mark.some_cases(8)
@pytest.mark.parametrize("name", SWAPPED)
def test_a_node_that_stands_in_for_anothers_gives_its_picture(name):
    node_id, values, theirs = SWAPPED[name]
    model = shared_network("unet")
    (here,) = standing_in(model, node_id, **values).result
    for cfg, sampler in ((CFG, "heun"), (1.0, "euler")):  # heun looks ahead, beyond a limit too
        settings = {"latent": networks.latent("unet", 2, 8, 12), "sigmas": sigmas_of(model, 5), "sampler": sampler}
        expected = sample(theirs()(model), cfg=cfg, **settings)
        assert close(sample(here, cfg=cfg, **settings), expected) < 1e-5
        if cfg != 1:
            assert close(sample(model, cfg=cfg, **settings), expected) > 1e-3  # it acts


def rules_of(model) -> list:
    return [term.rule for term in model.model_options[KEY]]


@pytest.mark.parametrize(
    ("node_id", "values", "why"),
    [
        ("PerturbedAttention", {"rescale_mode": "snf"}, "rescale_mode is snf; here it must be full or partial"),
        ("PerturbedAttention", {"scale": 101.0}, "scale is 101.0; it must be a number from 0 to 100"),
        ("PerturbedAttention", {"unet_block_id": 1}, "there is no attention in the block middle 1. This model has"),
        (
            "PerturbedAttention",
            {"unet_block_list": "d0, x1"},
            'unet_block_list: cannot read "x1". Write a list such as',
        ),
        ("PerturbedAttention", {"unet_block_list": "d9"}, 'unet_block_list: there is no "d9". This model has'),
        ("PerturbedAttention", {"unet_block_list": "d1-0"}, 'unet_block_list: there is no "d1-0". This model has'),
        ("PerturbedAttention", {"unet_block_list": "m0.7"}, 'unet_block_list: there is no "m0.7". This model has'),
        ("SmoothedEnergyGuidanceAdvanced", {"blur_sigma": 0.0}, "blur_sigma is 0, with which its own pack gives no"),
        ("RescaleCFGPost", {"alt_mode": True}, "alt_mode is on, which this pack does not have"),
        ("RenormCFGPost", {"renorm_cfg": 0.5}, "renorm_cfg is 0.5; here it must be 0, or from 1 to 100"),
    ],
)
def test_a_stand_in_refuses_by_name_what_cannot_be_the_same(node_id, values, why):
    with pytest.raises(ValueError) as error:
        standing_in(shared_network("unet"), node_id, **values)
    assert str(error.value).startswith(f"{node_id}: {why}")
    if "This model" not in why and "Write" not in why:  # it shows before a run
        with pytest.raises(ValueError, match=re.escape(why)):
            STAND_INS[node_id].validate_inputs(model=None, **{**own_defaults(node_id), **values})


@pytest.mark.parametrize("node_id", ["PerturbedAttention", "SmoothedEnergyGuidanceAdvanced", "SEGAttention"])
def test_a_stand_in_for_unets_refuses_other_networks(node_id):
    with pytest.raises(ValueError, match=f"{node_id}: it is for UNets, such as SD 1.5 and SDXL"):
        standing_in(shared_network("sd3"), node_id)


@pytest.mark.parametrize("node_id", ["RescaleCFGPost", "RenormCFGPost", "APG_ImYourCFGNow"])
def test_a_stand_in_refuses_videos_where_its_own_pack_measures_something_else_in_them(node_id):
    with pytest.raises(ValueError, match=f"{node_id}: in its own pack it does something else with a video"):
        standing_in(shared_network("wan"), node_id)


@pytest.mark.parametrize("name", SWAPPED)
def test_what_a_stand_in_can_be_taken_apart_into_does_the_same(name):
    node_id, values, _ = SWAPPED[name]
    model = shared_network("unet")
    output = standing_in(model, node_id, **values)
    apart = [(entry["type"], entry["values"]) for entry in output.ui["nodes"]]
    assert apart or "No single node of this pack does the same" in output.ui["text"][0]
    if apart:
        assert rules_of(ours(model, *apart)) == rules_of(output.result[0])
        assert all(TERM_NODES[kind].about.title in output.ui["text"][0] for kind, _ in apart)


def test_what_acts_before_cfg_or_in_its_place_comes_first_and_only_once():
    model = ours(shared_network("unet"), ("BeyondCFGRescale", {}))
    for node_id in ("TCFGAdvanced", "APG_ImYourCFGNow"):
        output = standing_in(model, node_id)
        assert rules_of(output.result[0])[-1] == rules_of(model)[0] and len(rules_of(output.result[0])) == 2
        assert output.ui["nodes"] == []  # the node of ours would stand behind
    with pytest.raises(
        ValueError, match="TCFGAdvanced: APG_ImYourCFGNow acts in the place of CFG too, and only one can"
    ):
        standing_in(output.result[0], "TCFGAdvanced")


def test_a_stand_in_is_in_no_search_and_all_others_are():
    hidden = {node.about.node_id for node in extension.all_nodes() if node.define_schema().is_deprecated}
    assert hidden == {node.about.node_id for node in stand_ins.NODES}
    assert not hidden & {node.about.node_id for node in extension.nodes()}


def stg(block, scale, amount):
    """ComfyUI-LTXVideo's LTXVApplySTG and STGGuider: of each block that attends to itself, then to the text."""

    def result(args):
        calls = iter(range(1000))

        def attend(function, q, k, v, *others, **options):
            return v if next(calls) == 2 * block else function(q, k, v, *others, **options)

        options = {**args["model_options"]}
        options["transformer_options"] = {**options["transformer_options"], "optimized_attention_override": attend}
        (skipped,) = comfy.samplers.calc_cond_batch(
            args["model"], [args["cond"]], args["input"], args["sigma"], options
        )
        moved = args["denoised"] + scale * (args["cond_denoised"] - skipped)
        return moved * (amount * args["cond_denoised"].std() / moved.std() + 1 - amount)

    return result


def test_stg_on_ltx_video_is_pag_and_then_rescale():
    (specimen,) = (each for each in SPECIMENS if each.name == "LTX-Video")
    model, mask = specimen.build(), {"attention_mask": torch.ones(1, 20, dtype=torch.long)}
    conds = [[[networks.conditioning("unet", seed)[0][0], mask]] for seed in (1, 2)]
    settings = {"cfg": 3.0, "conds": conds, "latent": torch.zeros(1, *specimen.latent)}
    nodes = ("BeyondCFGPAG", {"scale": 1.5, "layers": "1"}), ("BeyondCFGRescale", {"amount": 0.7})
    expected = sample(after_cfg(model, stg(1, 1.5, 0.7)), **settings)
    assert close(sample(ours(model, *nodes), **settings), expected) < 1e-5
    assert close(sample(model, **settings), expected) > 1e-2


def test_the_page_says_same_picture_of_these_nodes_alone_and_writes_the_limits_as_they_are_tried_here():
    said = {name for row in PAGE.splitlines() if "Same picture" in row for name in re.findall("`(.+?)`", row)[:1]}
    tried = {*(name.partition(",")[0] for name in BY_HAND), "LTXVApplySTG", "EpsilonScalingPPM"}
    assert said == tried and BETWEEN in PAGE

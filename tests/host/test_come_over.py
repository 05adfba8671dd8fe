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
from pack.nodes import extension, replacements
from pack.nodes.helpers import GuidanceSchedule
from pack.nodes.replacements import REPLACEMENTS
from pack.nodes.values import check
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
    assert {*re.findall(r"^\| `([^`]+)` \| \*\*swapped\*\*", PAGE, re.MULTILINE)} == {*olds}


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
    assert repr(replacements.with_meta(request_)) == before


def test_an_old_node_alone_gets_what_the_host_needs_to_swap_it():
    old, named, other = ({"class_type": kind, "inputs": {}} for kind in ("EpsilonScalingPPM",) * 2 + ("KSampler",))
    named["_meta"] = {"title": "mine"}
    prompt = replacements.with_meta({"prompt": {"1": old, "2": named, "3": other}})["prompt"]
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


@pytest.mark.parametrize("factor", [0.5, 0.999, 1.0, 1.005, 1.5])
@pytest.mark.parametrize("scheduler", ["normal", "karras", "simple"])
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


def blurred(q, extra, sigma):
    rows, columns = extra["original_shape"][-2:]
    width = round(math.sqrt(q.shape[1] * columns / rows))
    picture = q.mT.unflatten(-1, (-1, width))
    if sigma < 0:
        return picture.mean((-2, -1), keepdim=True).expand_as(picture).flatten(2).mT
    reach = (math.ceil(6 * sigma) | 1) // 2
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

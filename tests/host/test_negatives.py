"""A negative prompt at cfg 1: NAG and its like on a MODEL, through the host's sampling."""

import dataclasses

import comfy.context_windows as windows
import comfy.samplers
import node_helpers
import pytest
import torch
from comfy.ldm.modules import attention as host_attention
from comfy_api.torch_helpers.torch_compile import set_torch_compile_wrapper
from comfy_extras.nodes_custom_sampler import Guider_Basic
from comfy_extras.nodes_nag import NAGuidance
from pack.guiders import host
from pack.guiders.perturbation import PerturbationGuidance
from pack.guiders.schedule import Curve, Schedule
from pack.patches import PROMPT_GUIDANCES, IdentityAttention, NormalizedAttention
from pack.patches.base import AttentionPerturbation, PromptCall
from pack.patches.host import select_layers
from pack.patches.layers import Layer
from pack.tests.host import networks
from pack.tests.host.harness import TERM_NODES, Counter, close, network, pag, prompts, rounding, run, sample
from pack.tests.host.test_with_others import Control, lora_hooks

KINDS = ("unet", "sdxl", "sd3", "flux", "wan")
NODES = [method.about.node_id for method in PROMPT_GUIDANCES]
NAG = "BeyondCFGNAG"


def values_of(node_id: str) -> dict:
    node = TERM_NODES[node_id]
    return {given.id: given.default for given in node.inputs if getattr(given, "default", None) is not None}


def with_negative(model, node_id=NAG, **more):
    node = TERM_NODES[node_id]
    return node.execute(model=model, **{**values_of(node_id), **more}).result[0]


@pytest.mark.parametrize("node_id", NODES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_negative_acts_at_cfg_1_without_a_row_more(kind, node_id):
    counter = Counter(with_negative(network(kind), node_id))
    plain = sample(network(kind), kind, cfg=1.0)
    assert close(sample(counter.model, kind, cfg=1.0), plain) > 1e-3
    assert set(counter.rows) == {1}


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_nothing_is_the_plain_run_bit_for_bit(kind):
    plain = sample(network(kind), kind, cfg=1.0)
    for setting in ({"scale": 1.0}, {"alpha": 0.0}, {"start_percent": 0.01, "end_percent": 0.02}):
        assert torch.equal(sample(with_negative(network(kind), **setting), kind, cfg=1.0), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_the_samplers_negative_is_what_is_used_where_none_is_connected(kind):
    _, negative = prompts(kind)
    own = sample(with_negative(network(kind)), kind, cfg=1.0)
    assert torch.equal(sample(with_negative(network(kind), negative=negative), kind, cfg=1.0), own)
    other = networks.conditioning(kind, 9)
    assert close(sample(with_negative(network(kind), negative=other), kind, cfg=1.0), own) > 1e-4


def test_a_guider_without_a_negative_takes_the_nodes_own():
    positive, negative = prompts("flux")

    def sampled(model):
        guider = Guider_Basic(model)
        guider.set_conds(positive)
        return run(guider, networks.latent("flux"))

    expected = sample(with_negative(network("flux")), "flux", cfg=1.0)
    assert torch.equal(sampled(with_negative(network("flux"), negative=negative)), expected)
    with pytest.raises(ValueError, match=r"NAG: Guider_Basic has no negative prompt\. Connect one to negative here"):
        sampled(with_negative(network("flux")))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_others_are_as_without_it(kind):
    """The negative prediction at cfg 4: D₊ and D₋ taken apart by two weights of the same run."""
    plain, guided = ([], [])
    for model, seen in ((network(kind), plain), (with_negative(network(kind)), guided)):

        def post(args, seen=seen):
            seen.append((args["cond_denoised"], args["uncond_denoised"]))
            return args["denoised"]

        model = model.clone()
        model.set_model_sampler_post_cfg_function(post)
        sample(model, kind, cfg=4.0, steps=1)
    floor = max(10 * rounding(network(kind), kind, steps=1), 1e-6)
    assert close(guided[0][1], plain[0][1]) < floor
    assert close(guided[0][0], plain[0][0]) > 1e-3


@dataclasses.dataclass(frozen=True)
class Unchanged(AttentionPerturbation):
    """Gives what the host gives."""

    layers: tuple[Layer, ...]

    about = IdentityAttention.about

    def attention(self, call):
        return call.attend(call.q, slice(0, call.q.shape[2]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_perturbed_row_has_the_negative_too(kind):
    """A guidance away from a perturbation that changes nothing adds nothing; NAG would be added thrice without it there."""
    model, layer = (
        with_negative(network(kind)),
        {"unet": "middle", "sdxl": "middle", "sd3": "double.1"}.get(kind, "0.5"),
    )
    rule = PerturbationGuidance(3.0, Unchanged(select_layers(model, layer)))
    both = sample(host.add_term(model, host.Term(rule, Schedule(), "PAG")), kind, cfg=1.0)
    floor = max(30 * rounding(network(kind), kind, cfg=1.0), 1e-5)
    assert close(both, sample(model, kind, cfg=1.0)) < floor < 1e-3
    assert close(sample(model, kind, cfg=1.0), sample(network(kind), kind, cfg=1.0)) > 1e-3


@pytest.mark.parametrize("node_id", NODES)
@pytest.mark.parametrize("kind", ["sdxl", "flux", "wan"])
def test_a_sample_alone_equals_itself_in_a_batch(kind, node_id):
    model, latent = with_negative(network(kind), node_id), networks.latent(kind, 2)
    both = sample(model, kind, cfg=1.0, latent=latent, steps=2)
    floor = max(10 * rounding(network(kind), kind, cfg=1.0, steps=2), 2e-6)
    # The second sample has noise of its own, so only the first can be sampled alone.
    assert close(sample(model, kind, cfg=1.0, latent=latent[:1], steps=2), both[:1]) < floor


def test_the_function_is_the_hosts_own():
    """Of one attention, [negative, positive] in the host's order; its node acts on both rows."""
    positive, negative = torch.randn(2, 1, 6, 12, generator=torch.Generator().manual_seed(0)).double()
    patched = NAGuidance.execute(network("flux"), 4.0, 0.5, 1.5).result[0]
    (patch,) = patched.model_options["transformer_options"]["patches"]["attn1_output_patch"]
    theirs = patch(torch.cat([negative, positive]), {"cond_or_uncond": [1, 0]})[1:]
    heads = [part.unflatten(2, (3, 4)).transpose(1, 2) for part in (positive, negative)]
    ours = NormalizedAttention((), 4.0, 1.5, 0.5).attention(PromptCall(lambda: heads[0], lambda: heads[1], None))
    assert close(ours.transpose(1, 2).flatten(2), theirs) < 1e-12


def test_in_fluxs_first_block_it_is_the_hosts_node():
    """There the pictures of both rows are still the same. Further on the host's negative has a picture of its own."""
    model = network("flux")
    theirs = NAGuidance.execute(model, 4.0, 0.5, 1.5).result[0]
    patches = theirs.model_options["transformer_options"]["patches"]
    (patch,) = patches["attn1_output_patch"]

    def in_first(out, extra):
        first = extra["block_type"] == "double" and extra["block_index"] == 0
        return patch(out, extra) if first else out

    patches["attn1_output_patch"] = [in_first]
    ours = with_negative(model, scale=4.0, alpha=0.5, tau=1.5, layers="double.0")
    positive, negative = prompts("flux")
    negative[0][1]["pooled_output"] = positive[0][1]["pooled_output"]
    seen = []
    for one in (theirs, ours, model):
        one = one.clone()
        one.set_model_sampler_post_cfg_function(lambda args: seen.append(args["cond_denoised"]) or args["denoised"])
        sample(one, "flux", cfg=4.0, steps=1, conds=(positive, negative))
    assert close(seen[1], seen[0]) < 1e-5 < 1e-3 < close(seen[2], seen[0])


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_a_region_in_the_last_block_is_whole_inside_and_nothing_outside(kind):
    """After it no token sees another."""
    last, latent = {"sd3": "double.2", "flux": "single.2"}[kind], networks.latent(kind, 1, 8, 8)
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1.0

    def sampled(**given):
        return sample(with_negative(network(kind), layers=last, **given), kind, cfg=1.0, latent=latent, steps=1)

    plain, whole, masked = sampled(scale=1.0), sampled(), sampled(region=mask)
    assert close(masked[..., :4, :], whole[..., :4, :]) < 1e-5 > close(masked[..., 4:, :], plain[..., 4:, :])
    assert close(whole, plain) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_of_a_half_is_half_of_alpha(kind):
    half = Curve(((0.0, 0.5), (1.0, 0.5)))
    scheduled = sample(with_negative(network(kind), alpha=0.5, schedule=half), kind, cfg=1.0, steps=2)
    assert close(scheduled, sample(with_negative(network(kind), alpha=0.25), kind, cfg=1.0, steps=2)) < 1e-5


def timed(conditioning, start: float, end: float):
    return node_helpers.conditioning_set_values(conditioning, {"start_percent": start, "end_percent": end})


def test_a_negative_acts_within_its_own_range_of_time():
    (positive, negative), other = prompts("flux"), networks.conditioning("flux", 9)

    def sampled(*parts):
        joined = [one for part in parts for one in part]
        return sample(with_negative(network("flux")), "flux", cfg=1.0, conds=(positive, joined), steps=4)

    early, late = timed(negative, 0.0, 0.4), timed(other, 0.5, 1.0)
    assert close(sampled(early, late), sampled(early)) > 1e-4 < close(sampled(early, late), sampled(late))
    with pytest.raises(ValueError, match="NAG: the negative joins 2 prompts, and only one can act in the attention"):
        sampled(negative, other)
    placed = node_helpers.conditioning_set_values(negative, {"area": (4, 4, 0, 0)})
    with pytest.raises(ValueError, match=r"NAG: the negative has a place \(area\)\. Give this node a region instead"):
        sampled(placed)


def test_each_of_several_positives_has_it():
    _, negative = prompts("unet")
    texts = [networks.conditioning("unet", at) for at in (0, 1)]
    areas = [{"area": (16, 8, 0, 8 * at), "strength": 1.0} for at in (0, 1)]
    placed = [node_helpers.conditioning_set_values(*pair) for pair in zip(texts, areas, strict=True)]
    conds = ([*placed[0], *placed[1]], negative)
    plain = sample(network("unet"), conds=conds, cfg=1.0, steps=1)
    change = (sample(with_negative(network("unet")), conds=conds, cfg=1.0, steps=1) - plain).abs()
    assert change[..., :8].max() > 1e-3 < change[..., 8:].max()
    with pytest.raises(RuntimeError, match="such as an area or a window, and a region is of the whole"):
        sample(with_negative(network("unet"), region=torch.ones(1, 128, 128)), conds=conds, cfg=1.0, steps=1)


def test_a_negative_of_another_length_acts_by_its_tokens():
    """Each token twice is the same attention, and no other."""
    (text, values) = networks.conditioning("wan", 2)[0]
    once, twice = ([[given, values]] for given in (text[:, :3], torch.cat([text[:, :3]] * 2, 1)))
    one, two = (sample(with_negative(network("wan"), negative=given), "wan", cfg=1.0) for given in (once, twice))
    assert close(one, two) < 1e-5


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_an_attention_patch_of_others_sees_the_rows_that_it_gets(cfg):
    """IPAdapter's idiom: (for the positive, for the negative)[i] for i in cond_or_uncond."""
    seen = set()

    def ip_adapter(q, k, v, extra):
        roles = extra["cond_or_uncond"]
        seen.add((tuple(roles), k.shape[1]))
        size = q.shape[0] // len(roles)
        shift = torch.cat([torch.full((size, 1, 1), (0.3, -0.2)[role], dtype=q.dtype) for role in roles])
        return host_attention.optimized_attention(q, k, v, extra["n_heads"]) + shift

    model = network("unet")
    model.set_model_attn2_replace(ip_adapter, "middle", 0)
    tokens = prompts("unet")[0][0][0].shape[1]
    plain = sample(model, cfg=cfg)
    seen.clear()
    assert close(sample(with_negative(model), cfg=cfg), plain) > 1e-3
    assert seen == {((0,), tokens)} | ({((1,), tokens)} if cfg != 1 else set())
    with pytest.raises(RuntimeError, match="another node attends to the prompt here, which cannot take flipped values"):
        sample(with_negative(model, "BeyondCFGVSF"), cfg=cfg)


def test_two_at_once_are_refused_with_both_titles():
    both = with_negative(with_negative(network("sd3")), "BeyondCFGVSF")
    with pytest.raises(ValueError, match=r"NAG, VSF: only one negative prompt can act in the attention\. Take out all"):
        sample(both, "sd3", cfg=1.0)
    apart = with_negative(with_negative(network("sd3"), end_percent=0.5), "BeyondCFGVSF", start_percent=0.5)
    assert sample(apart, "sd3", cfg=1.0).isfinite().all()


def test_what_evaluates_the_prompts_in_a_way_of_its_own_is_named():
    model = with_negative(network("sd3"))
    model.model_options["sampler_calc_cond_batch_function"] = lambda args: comfy.samplers.calc_cond_batch(
        args["model"], args["conds"], args["input"], args["sigma"], {}
    )
    with pytest.raises(ValueError, match="NAG: another node evaluates the prompts in a way of its own"):
        sample(model, "sd3", cfg=1.0)


def test_a_wrapper_that_cuts_the_batch_is_fine_where_all_of_it_is_the_positives():
    def halves(apply_model, args):
        x = torch.cat(args["input"].chunk(2, dim=-1))
        c = {key: torch.cat([value] * 2) if torch.is_tensor(value) else value for key, value in args["c"].items()}
        out = apply_model(x, torch.cat([args["timestep"]] * 2), **c)
        return torch.cat(out.chunk(2), dim=-1)

    model = network("unet")
    model.set_model_unet_function_wrapper(halves)
    assert close(sample(with_negative(model), cfg=1.0), sample(model, cfg=1.0)) > 1e-3
    with pytest.raises(RuntimeError, match="NAG: another node cuts the batch in a way of its own"):
        sample(with_negative(model), cfg=4.0)


def test_an_encoding_of_another_model_is_refused():
    other = [[torch.zeros(1, 7, networks.CONTEXT + 1), {}]]
    with pytest.raises(ValueError, match="NAG: its texts have 33 numbers where the positive has 32"):
        sample(with_negative(network("wan"), negative=other), "wan", cfg=1.0)


def test_layers_choose_where_it_acts_and_heads_are_refused():
    assert (
        close(
            sample(with_negative(network("flux"), layers="single.1"), "flux", cfg=1.0),
            sample(with_negative(network("flux")), "flux", cfg=1.0),
        )
        > 1e-4
    )
    with pytest.raises(ValueError, match=r"NAG: layers .* blocks are taken whole"):
        with_negative(network("flux"), layers="single.1:h0")


@pytest.mark.parametrize("kind", ["unet", "flux"])
def test_rows_that_are_shared_give_what_whole_rows_give(kind):
    model = pag(with_negative(network(kind)))
    shared, whole = sample(model, kind, cfg=1.0), sample(host.with_options(model, sharing="off"), kind, cfg=1.0)
    assert close(shared, whole) < max(10 * rounding(network(kind), kind, cfg=1.0), 2e-6)


@pytest.mark.parametrize("kind", ["unet", "sd3", "flux"])
def test_a_compiled_network_gives_the_same_and_is_compiled_once(kind):
    """With PyTorch's attention, which the host takes on a GPU; its CPU kernels break graphs by themselves."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    def pytorch_attention(func, *args, **kwargs):
        return host_attention.attention_pytorch(*args, **kwargs)

    model = network(kind)
    model.model_options["transformer_options"]["optimized_attention_override"] = pytorch_attention
    model = with_negative(model)
    torch._dynamo.reset()
    eager = sample(model, kind, cfg=1.0, steps=3)
    model = model.clone()
    set_torch_compile_wrapper(model, backend=backend)
    for is_new in (True, False):
        compiled.clear()
        assert close(sample(model, kind, cfg=1.0, steps=3), eager) < 1e-6
        assert bool(compiled) == is_new


def test_a_region_of_each_picture_of_a_batch_holds_for_each():
    masks = torch.zeros(2, 64, 64)
    masks[0] = 1.0
    model, latent = network("sd3"), networks.latent("sd3", 2, 8, 8)
    guided = pag(with_negative(model, region=masks, layers="double.2"), layers="double.2")
    both, plain = (
        sample(one, "sd3", cfg=1.0, latent=latent, steps=1) for one in (guided, pag(model, layers="double.2"))
    )
    assert close(both[1:], plain[1:]) < 1e-6 < 1e-4 < close(both[:1], plain[:1])


def test_a_control_and_a_lora_hook_of_the_positive_hold():
    """Each acts beside NAG as it does without: both change the picture, and neither is lost."""
    model, (positive, negative) = network("unet"), prompts("unet")
    controlled = node_helpers.conditioning_set_values(
        positive, {"control": Control(), "control_apply_to_uncond": False}
    )
    hooked = node_helpers.conditioning_set_values(positive, {"hooks": lora_hooks()})
    plain = sample(with_negative(model), cfg=1.0)
    for given in (controlled, hooked):
        guided = sample(with_negative(model), conds=(given, negative), cfg=1.0)
        assert close(guided, plain) > 1e-3 < close(guided, sample(model, conds=(given, negative), cfg=1.0))
    assert torch.equal(sample(with_negative(model), cfg=1.0), plain)


def test_windows_of_frames_have_it_too():
    """A window as long as the video is the video."""
    model, latent = network("wan"), networks.latent("wan", 1, 8, 8)
    latent = latent[:, :, :1].repeat(1, 1, 6, 1, 1)

    def sampled(one, frames: int):
        one = one.clone()
        one.model_options["context_handler"] = windows.IndexListContextHandler(
            context_schedule=windows.get_matching_context_schedule("standard_static"),
            fuse_method=windows.get_matching_fuse_method("pyramid"),
            context_length=frames,
            context_overlap=1,
            dim=2,
        )
        return sample(one, "wan", cfg=1.0, latent=latent, steps=2)

    whole = sample(with_negative(model), "wan", cfg=1.0, latent=latent, steps=2)
    assert close(sampled(with_negative(model), 6), whole) < 1e-5
    assert close(sampled(with_negative(model), 3), sampled(model, 3)) > 1e-3

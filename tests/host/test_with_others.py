"""Other packs' and the host's own guiders, hooks, caches and conditionings act as they do without us, plus our term."""

import math

import comfy.context_windows
import comfy.controlnet
import comfy.hooks
import comfy.patcher_extension
import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom
import node_helpers
import pytest
import torch
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import Guider_PerpNeg
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_sd3 import SkipLayerGuidanceSD3
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT, SkipLayerGuidanceDiTSimple
from pack.guiders import host
from pack.guiders.base import POSITIVE, Branch, GuidanceRule
from pack.guiders.schedule import Schedule
from pack.tests.host import networks
from pack.tests.host.harness import Counter, close, guider_of, network, pag, prompts, rounding, run, sample, sigmas_of
from pack.tests.host.reference import LAYERS, with_reference_pag


def patch(node, model, *args, **kwargs):
    """One host node, V1 or V3, applied to a model."""
    return (node.execute if hasattr(node, "execute") else node().patch)(model, *args, **kwargs)[0]


def nag(model):
    from comfy_extras.nodes_nag import NAGuidance  # not in the oldest host

    return patch(NAGuidance, model, 5.0, 0.5, 1.5)


HOOKS = {
    "host PAG": ("unet", lambda m: patch(PerturbedAttentionGuidance, m, 1.5)),
    "SAG": ("unet", lambda m: patch(SelfAttentionGuidance, m, 0.5, 2.0)),
    "RescaleCFG": ("unet", lambda m: patch(RescaleCFG, m, 0.7)),
    "APG": ("unet", lambda m: patch(APG, m, 0.5, 5.0, 0.3)),
    "NAG, UNet": ("unet", nag),
    "NAG, Flux": ("flux", nag),
    "SLG SD3": ("sd3", lambda m: patch(SkipLayerGuidanceSD3, m, "0, 2", 2.0, 0.0, 1.0)),
    "SLG DiT": ("flux", lambda m: patch(SkipLayerGuidanceDiT, m, 2.0, 0.0, 1.0, "1", "2")),
    "SLG DiT Simple": ("flux", lambda m: patch(SkipLayerGuidanceDiTSimple, m, 0.0, 1.0, "1", "2")),
}


def mine(model, kind, scale=3.0):
    return pag(model, scale, LAYERS[kind])


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_of_the_host_gives_what_it_gives_alone_plus_our_term(hook, cfg):
    kind, add = HOOKS[hook]
    model = network(kind)
    expected = sample(with_reference_pag(add(model), kind), kind, cfg, steps=3)
    floor = rounding(add(mine(model, kind)), kind, cfg, steps=3)
    for chained in (add(mine(model, kind)), mine(add(model), kind)):
        assert close(sample(chained, kind, cfg, steps=3), expected) < 2e-6 + 4 * floor
    if cfg != 1:  # where there is no CFG some of them have nothing to do
        assert close(sample(add(model), kind, cfg, steps=3), expected) > 1e-3
        assert close(sample(mine(model, kind), kind, cfg, steps=3), expected) > 1e-3


GUIDERS = {
    "PerpNeg": lambda m, a, b, c: _guider(Guider_PerpNeg, m, (a, b, c), (4.0, 0.7)),
    "DualCFG regular": lambda m, a, b, c: _guider(custom.Guider_DualCFG, m, (a, b, c), (3.0, 2.0, False)),
    "DualCFG nested": lambda m, a, b, c: _guider(custom.Guider_DualCFG, m, (a, b, c), (3.0, 2.0, True)),
    "Basic": lambda m, a, b, c: _guider(custom.Guider_Basic, m, (a,), (1.0,)),
    "DualModel": lambda m, a, b, c: _guider(
        lambda m: custom.Guider_DualModel(m, network("unet", seed=5)), m, (a, b), (3.0,)
    ),
}


def _guider(kind, model, conds, weights):
    guider = kind(model)
    guider.set_conds(*conds)
    guider.set_cfg(*weights)
    return guider


@pytest.mark.parametrize("name", GUIDERS)
def test_another_guider_gives_its_own_result_plus_our_term_with_no_forward_more(name):
    if name == "DualModel" and not hasattr(custom, "Guider_DualModel"):
        pytest.skip("this host has no DualModelGuider")
    model, latent = network("unet"), networks.latent("unet", 2)
    conds = [networks.conditioning("unet", seed) for seed in (1, 2, 3)]
    alone, patched = Counter(model), Counter(pag(model))
    without = run(GUIDERS[name](alone.model, *conds), latent)
    with_term = run(GUIDERS[name](patched.model, *conds), latent)
    expected = run(GUIDERS[name](with_reference_pag(model, "unet"), *conds), latent)
    assert close(with_term, expected) < 2e-6 and close(without, expected) > 1e-2
    assert len(patched.rows) == len(alone.rows)
    assert sum(patched.rows) == sum(alone.rows) + 4


@pytest.mark.skipif(not hasattr(custom, "CFGOverride"), reason="this host has no CFGOverride")
def test_cfg_override_acts_before_and_after_our_node():
    model = network("unet")
    override = lambda m: custom.CFGOverride.execute(m, 1.0, 0.0, 0.5)[0]  # noqa: E731
    before, after = Counter(pag(override(model))), Counter(override(pag(model)))
    assert torch.equal(sample(before.model, steps=6), sample(after.model, steps=6))
    assert before.rows == after.rows and set(before.rows) == {2, 3}


class RealForwards:
    """Counts how often the network really ran, below every cache."""

    def __init__(self, model):
        self.count = 0
        first = model.model.diffusion_model.time_embed
        self._handle = first.register_forward_hook(lambda *_: setattr(self, "count", self.count + 1))

    def steps_of(self, model, **kwargs) -> list[bool]:
        """Whether the network ran, step by step."""
        ran, before = [], 0

        def callback(step, *_):
            nonlocal before
            ran.append(self.count > before)
            before = self.count

        self.count = 0
        sample(model, callback=callback, **kwargs)
        return ran


CACHES = {
    "EasyCache": lambda m: EasyCacheNode.execute(m, 0.6, 0.1, 0.95, False)[0],
    "LazyCache": lambda m: LazyCacheNode.execute(m, 0.6, 0.1, 0.95, False)[0],
}


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("end", [1.0, 0.5])
def test_a_cache_makes_the_decisions_it_makes_without_us(cache, end):
    """At a strength that hardly moves the samples, so that only the rows themselves could change its mind."""
    model = network("unet")
    add, real = CACHES[cache], RealForwards(model)
    alone = real.steps_of(add(model), steps=20)
    assert 3 < sum(alone) < 18  # it does skip
    assert real.steps_of(add(pag(model, 1e-5, end=end)), steps=20) == alone
    assert real.steps_of(pag(add(model), 1e-5, end=end), steps=20) == alone


def test_on_steps_that_easycache_skips_our_direction_stays_in_its_range():
    """The cache goes by uuid: a perturbed row under the positive's would get, and spoil, the positive's cache."""
    sizes = []

    class Spy(GuidanceRule):
        def branches(self):
            return (weak,)

        def begin(self):
            def apply(denoised, predictions, step):
                sizes.append((predictions[POSITIVE] - predictions[weak]).norm().item())
                return denoised

            return apply

    model = network("unet")
    (term,) = pag(model).model_options[host.KEY]
    (weak,) = term.rule.branches()
    real = RealForwards(model)
    spied = host.add_term(CACHES["EasyCache"](model), host.Term(Spy(), Schedule(), "spy"))
    ran = real.steps_of(spied, steps=20)
    on, off = ([size for size, did in zip(sizes, ran, strict=True) if did is which] for which in (True, False))
    assert len(off) >= 3 and min(on) * 0.5 < min(off) and max(off) < max(on) * 1.5


def in_area(conditioning, area, strength=1.0):
    return node_helpers.conditioning_set_values(conditioning, {"area": area, "strength": strength})


def in_range(conditioning, start, end):
    return node_helpers.conditioning_set_values(conditioning, {"start_percent": start, "end_percent": end})


def in_mask(conditioning):
    mask = torch.zeros(1, 16, 16)
    mask[:, :, 4:12] = 1
    return node_helpers.conditioning_set_values(
        conditioning, {"mask": mask, "set_area_to_bounds": False, "mask_strength": 0.8}
    )


def regional(case):
    a, b, c = (networks.conditioning("unet", seed) for seed in (1, 2, 3))
    return {
        "area and base": (in_area(a, (8, 16, 0, 0), 0.8) + b, c),
        "area only": (in_area(a, (8, 8, 4, 4)), c),
        "mask": (in_mask(a) + b, c),
        "two prompts": (a + b, c),
        "timed halves": (in_range(a, 0.0, 0.5) + in_range(b, 0.5, 1.0), c),
        "negative with an area": (a, in_area(b, (8, 8, 0, 0)) + c),
        "longer text": (networks.conditioning("unet", 1, tokens=40), c),
    }[case]


REGIONAL = ["area and base", "area only", "mask", "two prompts", "timed halves", "negative with an area", "longer text"]


@pytest.mark.parametrize("case", REGIONAL)
def test_conditionings_with_areas_masks_and_times_hold_for_our_rows(case):
    model, conds = network("unet"), regional(case)
    expected = sample(with_reference_pag(model, "unet"), conds=conds)
    assert close(sample(pag(model), conds=conds), expected) < 2e-6
    assert close(sample(model, conds=conds), expected) > 1e-3


def test_where_the_positive_is_outside_its_range_our_terms_are_off():
    model = network("unet")
    conds = (in_range(networks.conditioning("unet", 1), 0.0, 0.5), networks.conditioning("unet", 2))
    late = sigmas_of(model, 8)[-4:]  # the positive's prediction is all zeros here, and no direction of guidance
    assert torch.equal(sample(pag(model), conds=conds, sigmas=late), sample(model, conds=conds, sigmas=late))


def lora_hooks():
    """As the host's nodes put them on a conditioning: a LoRA in a UNet's middle."""
    key, generator = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_v", torch.Generator().manual_seed(0)
    up, down = (torch.randn(shape, generator=generator) for shape in ((64, 2), (2, 64)))
    lora = {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
    loaded = comfy.hooks.HookGroup()
    for hook in comfy.hooks.create_hook_lora(lora, 1.0, 0.0).hooks:
        loaded.add(hook)
    return loaded


def test_a_lora_hook_on_the_positive_holds_for_our_row():
    model = network("unet")

    def conds():
        positive, negative = prompts("unet")
        return node_helpers.conditioning_set_values(positive, {"hooks": lora_hooks()}), negative

    plain = sample(pag(model))
    expected = sample(with_reference_pag(model, "unet"), conds=conds())
    assert close(sample(pag(model), conds=conds()), expected) < 2e-6
    assert close(plain, expected) > 1e-3  # the hook acts
    assert torch.equal(sample(pag(model)), plain)  # and is gone afterwards


class Control(comfy.controlnet.ControlBase):
    """What a ControlNet gives: residuals for the network's middle, depending on nothing but the rows' roles."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def get_control(self, x, t, cond, batched_number, transformer_options):
        roles = transformer_options["cond_or_uncond"]
        assert cond["transformer_options"]["cond_or_uncond"] == roles
        self.seen.append(tuple(roles))
        size = x.shape[0] // batched_number
        residual = torch.cat([torch.full((size, 64, 8, 8), (0.5, -0.5)[role], dtype=torch.float64) for role in roles])
        return {"input": [], "middle": [residual], "output": []}

    def get_models(self):
        return []


@pytest.mark.parametrize("on", ["both", "positive", "apply to uncond"])
def test_a_control_sees_roles_and_its_rows_share_one_batch(on):
    model, (positive, negative) = network("unet"), prompts("unet")
    control = Control()
    values = {"control": control, "control_apply_to_uncond": on == "apply to uncond"}
    positive = node_helpers.conditioning_set_values(positive, values)
    if on == "both":
        negative = node_helpers.conditioning_set_values(negative, values)
    expected = sample(with_reference_pag(model, "unet"), conds=(positive, negative))
    control.seen.clear()
    assert close(sample(pag(model), conds=(positive, negative)), expected) < 2e-6
    assert close(sample(pag(model)), expected) > 1e-3
    assert set(control.seen) == ({(0, 0)} if on == "positive" else {(1, 0, 0)})


def test_an_attention_patch_that_knows_two_roles_only_works_with_our_third_row():
    """IPAdapter's idiom: (for the positive, for the negative)[i] for i in cond_or_uncond."""
    seen = set()

    def ip_adapter(q, k, v, extra):
        roles = extra["cond_or_uncond"]
        seen.add(tuple(roles))
        size = q.shape[0] // len(roles)
        shift = torch.cat([torch.full((size, 1, 1), (0.3, -0.2)[role], dtype=q.dtype) for role in roles])
        run = comfy.ldm.modules.attention.optimized_attention
        return run(q, k, v, extra["n_heads"]) + shift

    def add(model):
        model = model.clone()
        model.set_model_attn2_replace(ip_adapter, "middle", 0)
        return model

    model = network("unet")
    expected = sample(with_reference_pag(add(model), "unet"))
    seen.clear()
    assert close(sample(add(pag(model))), expected) < 2e-6 and close(sample(pag(model)), expected) > 1e-3
    assert seen == {(1, 0, 0)}


def stacked_tiles(apply_model, args):
    """Halves of every row, all first halves before all second halves: no row is where cond_or_uncond says."""
    x, t, c = args["input"], args["timestep"], args["c"]
    c = {key: value.repeat(2, 1, 1) if key == "c_crossattn" else value for key, value in c.items()}
    tiles = torch.cat(x.chunk(2, dim=-1))
    return torch.cat(apply_model(tiles, t.repeat(2), **c).chunk(2), dim=-1)


def one_row_at_a_time(apply_model, args):
    x, t, c = args["input"], args["timestep"], args["c"]
    outs = [
        apply_model(x[i : i + 1], t[i : i + 1], **{**c, "c_crossattn": c["c_crossattn"][i : i + 1]})
        for i in range(x.shape[0])
    ]
    return torch.cat(outs)


@pytest.mark.parametrize("tiler", [stacked_tiles, one_row_at_a_time])
def test_a_tiler_that_reorders_rows_does_not_move_the_perturbation_to_others(tiler):
    def add(model):
        model = model.clone()
        model.set_model_unet_function_wrapper(tiler)
        return model

    model = network("unet")
    expected = sample(with_reference_pag(add(model), "unet"))
    assert close(sample(add(pag(model))), expected) < 2e-6 and close(sample(add(model)), expected) > 1e-3


def test_another_attention_override_is_called_for_every_row_but_the_identitys_own():
    calls = []

    def override(func, *args, **kwargs):
        calls.append(args[0].shape[0])
        return func(*args, **kwargs)

    def add(model):
        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = override
        return model

    for kind in ("unet", "sd3", "flux"):
        model = network(kind)
        calls.clear()
        with_override = sample(add(mine(model, kind)), kind, steps=1)
        shared = sample(mine(model, kind), kind, steps=1)  # rows before the perturbed layer are computed once there
        assert close(with_override, shared) < 1e-6 + 4 * rounding(mine(model, kind), kind, steps=1)
        assert 3 in calls and 2 in calls  # all rows in other layers; the clean rows, and no more, in the perturbed one


def test_rows_that_cannot_share_the_positives_batch_come_after_the_guiders_own():
    """EasyCache takes the first row of the first forward for its reference."""
    (term,) = pag(network("unet")).model_options[host.KEY]
    (weak,) = term.rule.branches()

    class AwayFromPerturbedNegative(GuidanceRule):
        def branches(self):
            return (Branch("negative", weak.perturbation),)

        def begin(self):
            return lambda denoised, predictions, step: denoised

    def forwards(tokens):
        model = host.add_term(network("unet"), host.Term(AwayFromPerturbedNegative(), Schedule(), "test"))
        conds = networks.conditioning("unet", 1), networks.conditioning("unet", 2, tokens=tokens)
        with host.trace() as trace:
            sample(model, conds=conds, steps=1)
        return [forward.roles for forward in trace]

    assert forwards(20) == [(1, 0, 1)]  # the host runs the last list first
    assert forwards(21) == [(0,), (1, 1)]


def test_hooks_run_once_and_in_the_hosts_order():
    order = []

    def add(model):
        model = model.clone()
        model.set_model_sampler_pre_cfg_function(lambda args: order.append("pre") or args["conds_out"])
        model.set_model_sampler_cfg_function(lambda args: order.append("cfg") or args["cond"])
        model.set_model_sampler_post_cfg_function(lambda args: order.append("post 1") or args["denoised"])
        model.set_model_sampler_post_cfg_function(lambda args: order.append("post 2") or args["denoised"])
        return model

    sample(add(pag(network("unet"))), steps=2)
    assert order == ["pre", "cfg", "post 1", "post 2"] * 2


def test_our_strength_does_not_depend_on_what_a_hook_makes_of_the_positive():
    """Raw D₊: with APG before it, PAG moves the result by as much as without."""
    model = network("unet")
    moved = {}
    for name, base in {"alone": model, "APG": HOOKS["APG"][1](model)}.items():
        moved[name] = sample(pag(base), cfg=7.0, steps=1) - sample(base, cfg=7.0, steps=1)
    assert close(moved["APG"], moved["alone"]) < 1e-4


def test_cfg_plus_plus_samplers_get_the_true_negative():
    model = network("unet")
    for sampler in ("euler_cfg_pp", "dpmpp_2s_ancestral_cfg_pp"):
        expected = sample(with_reference_pag(model, "unet"), sampler=sampler)
        assert close(sample(pag(model), sampler=sampler), expected) < 2e-6
        assert math.isfinite(expected.abs().max())


def windowed(model):
    """The host's context windows, over the rows of an image: half of it at a time, with overlap."""
    windows = comfy.context_windows
    model = model.clone()
    model.model_options["context_handler"] = windows.IndexListContextHandler(
        windows.get_matching_context_schedule(windows.ContextSchedules.STATIC_STANDARD),
        windows.get_matching_fuse_method(windows.ContextFuseMethods.PYRAMID),
        context_length=8,
        context_overlap=2,
        dim=2,
    )
    return model


@pytest.mark.parametrize("guider", ["CFG", "PerpNeg"])
def test_context_windows_hold_for_our_rows(guider):
    """Under a guider of its own kind they lie above our place in the call, which costs one call more there."""
    model, latent = network("unet"), networks.latent("unet")
    conds = [networks.conditioning("unet", seed) for seed in (1, 2, 3)]

    def result(model):
        if guider == "CFG":
            return run(guider_of(model, *conds[:2]), latent)
        return run(GUIDERS["PerpNeg"](model, *conds), latent)

    expected = result(with_reference_pag(windowed(model), "unet"))
    ours = Counter(windowed(pag(model)))
    assert close(result(ours.model), expected) < 2e-6
    assert close(result(pag(model)), expected) > 1e-3  # windows do something
    alone = Counter(windowed(model))
    result(alone.model)
    assert len(ours.rows) == len(alone.rows) * (1 if guider == "CFG" else 2)

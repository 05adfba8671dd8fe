"""SWG on the host: against a loop over windows that calls the host's model for each, and what is refused."""

import comfy.conds
import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom
import node_helpers
import pytest
import torch
from pack.guiders import SlidingWindowGuidance, host
from pack.guiders.host.windowed import NOWHERE, why_not_windowed, windowed
from pack.guiders.schedule import Schedule
from pack.guiders.windows import Windows
from pack.tests.host import networks
from pack.tests.host.harness import SHARED, TERM_NODES, Counter, close, guider_of, network, prompts, run, sample
from pack.tests.host.test_forwards_of_others import by_roles, halves
from pack.tests.host.test_with_others import (
    CACHES,
    GUIDERS,
    Control,
    RealForwards,
    regional,
)
from pack.tests.host.test_with_others import (
    windowed as in_context,
)
from pack.tests.host.zoo import SPECIMENS
from pack.tests.host.zoo.specimen import has

KINDS = ("unet", "sdxl", "sd3", "flux", "wan")
WINDOWS = Windows(0.75, 0.33)
SCALE = 2.0


def swg(model, scale=SCALE, **settings):
    given = {"window": 0.75, "overlap": 0.33, "masked": False, "start_percent": 0.0, "end_percent": 1.0}
    return TERM_NODES["BeyondCFGSlidingWindow"].execute(model=model, scale=scale, **given | settings)[0]


def seen_alone(model, entries, x, sigma, options, windows=WINDOWS):
    """What the host's model predicts for windows of x, one after the other, put together."""
    crops = []
    for window in windows.of(*x.shape[-2:]):
        own = [{**e, "mask": window.of(e["mask"])} if "mask" in e else e for e in entries]
        own = [{**e, "model_conds": {k: cut(c, window) for k, c in e["model_conds"].items()}} for e in own]
        crops += comfy.samplers.calc_cond_batch(model, [own], window.of(x).contiguous(), sigma, options)
    return windows.stitched(crops, *x.shape[-2:])


def cut(cond, window):
    return type(cond)(window.of(cond.cond)) if isinstance(cond, comfy.conds.CONDNoiseShape) else cond


def by_hand(model, windows=WINDOWS, scale=SCALE):
    model = model.clone()

    def post_cfg(args):
        weak = seen_alone(args["model"], args["cond"], args["input"], args["sigma"], args["model_options"], windows)
        return args["denoised"] + scale * (args["cond_denoised"] - weak)

    model.set_model_sampler_post_cfg_function(post_cfg)
    return model


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("kind", KINDS)
def test_it_moves_away_from_windows_that_the_hosts_model_sees_alone(kind, cfg):
    model, latent = network(kind), networks.latent(kind, 2, 12, 16)
    expected = sample(by_hand(model), kind, cfg, latent=latent, steps=2)
    counter = Counter(swg(model))
    assert close(sample(counter.model, kind, cfg, latent=latent, steps=2), expected) < 1e-5
    assert close(sample(model, kind, cfg, latent=latent, steps=2), expected) > 1e-3
    own = [[1, 0] if cfg != 1 else [0]]
    assert [roles for _, roles in counter.forwards] == [*own, [0] * 4] * 2  # one forward more, of all windows


@pytest.mark.parametrize("settings", [{"window": 0.5, "overlap": 0.0}, {"window": 0.5, "overlap": 0.5}])
def test_size_and_overlap_say_which_windows(settings):
    model, windows = network("unet"), Windows(settings["window"], settings["overlap"])
    counter = Counter(swg(model, **settings))
    assert close(sample(counter.model, steps=2), sample(by_hand(model, windows), steps=2)) < 1e-6
    assert counter.rows == [2, len(windows.of(16, 16))] * 2 and len(windows.of(16, 16)) in (4, 9)


def test_off_and_outside_its_interval_it_costs_nothing():
    model = network("unet")
    counter = Counter(swg(model, scale=0.0))
    assert torch.equal(sample(counter.model), sample(model)) and counter.rows == [2] * 4
    counter = Counter(swg(model, end_percent=0.5))
    sample(counter.model, steps=4)
    assert counter.rows[:2] == [2, 4] and counter.rows[-2:] == [2, 2]


@pytest.mark.parametrize("kind", ["unet", "sd3"])
def test_a_picture_does_not_depend_on_its_neighbours(kind):
    model, latent = swg(network(kind)), networks.latent(kind, 3)
    together = sample(model, kind, latent=latent, steps=2)
    assert close(sample(model, kind, latent=latent[:1], steps=2), together[:1]) < 1e-6


def test_masked_is_the_same_where_windows_overlap_and_nothing_elsewhere():
    model, latent = network("unet"), networks.latent("unet")
    plain, whole, masked = (sample(m, latent=latent, steps=1) for m in (model, swg(model), swg(model, masked=True)))
    overlaps = WINDOWS.counts(16, 16) > 1
    assert close(masked, torch.where(overlaps, whole, plain)) < 1e-6 and close(whole, masked) > 1e-3


@pytest.mark.parametrize("case", ["mask", "two prompts", "timed halves", "longer text"])
def test_conditionings_with_masks_and_times_hold_in_windows(case):
    model, conds = network("unet"), regional(case)
    expected = sample(by_hand(model), conds=conds)
    assert close(sample(swg(model), conds=conds), expected) < 1e-5
    assert close(sample(model, conds=conds), expected) > 1e-3


def inpainting():
    """A UNet that sees a mask and the masked picture beside x."""
    model = network("unet")
    first = model.model.diffusion_model.input_blocks[0][0]
    more = torch.randn(first.weight.shape[0], 5, 3, 3, generator=torch.Generator().manual_seed(3)).to(first.weight)
    first.weight = torch.nn.Parameter(torch.cat([first.weight, 0.2 * more], 1), requires_grad=False)
    model.model.set_inpaint()
    return model


def test_what_an_inpainting_model_sees_beside_x_is_cut_with_it():
    model = inpainting()
    picture = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 3:12, 5:] = 1
    values = {"concat_latent_image": picture, "concat_mask": mask}
    conds = tuple(node_helpers.conditioning_set_values(one, values) for one in prompts("unet"))
    expected = sample(by_hand(model), conds=conds, steps=2)
    assert close(sample(swg(model), conds=conds, steps=2), expected) < 1e-6
    assert close(sample(model, conds=conds, steps=2), expected) > 1e-3


def test_where_memory_is_short_windows_go_one_after_the_other(monkeypatch):
    model = network("unet")
    expected = sample(by_hand(model), steps=2)
    whole = type(model.model).memory_required
    monkeypatch.setattr(
        type(model.model),
        "memory_required",
        lambda self, shape, **kwargs: whole(self, shape, **kwargs) if shape[0] == 1 else 2**60,
    )
    counter = Counter(swg(model))
    assert close(sample(counter.model, steps=2), expected) < 1e-6 and counter.rows == [1] * 12


@pytest.mark.parametrize("name", GUIDERS)
def test_another_guider_gives_its_own_result_plus_the_term(name):
    model, latent = network("unet"), networks.latent("unet", 2)
    if name == "DualModel" and not hasattr(custom, "Guider_DualModel"):
        pytest.skip("this host has no DualModelGuider")
    conds = [networks.conditioning("unet", seed) for seed in (1, 2, 3)]
    without = run(GUIDERS[name](model, *conds), latent, steps=1)
    guided = run(GUIDERS[name](swg(model), *conds), latent, steps=1)
    positive = run(guider_of(model, *prompts("unet"), 1.0), latent, steps=1)
    added = run(guider_of(by_hand(model), *prompts("unet"), 1.0), latent, steps=1) - positive
    assert close(guided - without, added) < 1e-4


def test_the_hosts_cache_of_steps_makes_the_decisions_it_makes_without_us():
    model = network("unet")
    add, real = CACHES["LazyCache"], RealForwards(model)
    alone = real.steps_of(add(model), steps=20)
    for guided in (add(swg(model, 1e-5)), swg(add(model), 1e-5)):
        assert real.steps_of(guided, steps=20) == alone and 3 < sum(alone) < 18


def test_the_hosts_cache_of_forwards_leaves_no_step_out_and_says_so(caplog):
    """It begins anew where a forward is of another size than the one before. So it saves nothing, and spoils nothing."""
    model = network("unet")
    add, real = CACHES["EasyCache"], RealForwards(model)
    assert all(real.steps_of(add(swg(model)), steps=20)) and not all(real.steps_of(add(model), steps=20))
    assert "EasyCache - Tensor shape, dtype or device changed" in caplog.text
    assert close(sample(add(swg(model))), sample(swg(model))) < 1e-6


@pytest.mark.parametrize("add", [halves, by_roles])
def test_where_another_pack_has_replaced_a_forward_windows_are_a_call_of_their_own(add):
    model = add(network("unet"))
    counter = Counter(swg(model))
    assert sample(counter.model, steps=2).isfinite().all() and counter.rows == [2, 4] * 2


def zoo(specimen):
    """An entry as the host makes it of a specimen's conditionings."""
    x, conds = specimen.inputs([1])
    kinds = {"c_concat": comfy.conds.CONDNoiseShape, "c_crossattn": comfy.conds.CONDRegular}
    made = {}
    for name, value in conds.items():
        kind = kinds.get(name, comfy.conds.CONDRegular)
        if isinstance(value, list):
            kind = comfy.conds.CONDList
        elif not torch.is_tensor(value):
            kind = comfy.conds.CONDConstant
        made[name] = kind(value)
    return x, {"model_conds": made, "uuid": 1}


@pytest.mark.parametrize("specimen", SPECIMENS, ids=str)
def test_every_network_of_the_table_sees_windows_as_pictures_of_their_size_or_is_refused(specimen):
    """As the pack asks the host for them, and each window of x and of all that lies over it by itself."""
    if specimen.since and not has(specimen.since):
        pytest.skip(f"this host has no {specimen.since}")
    x, entry = zoo(specimen)
    why = why_not_windowed([entry], WINDOWS, x, (), {}, None)
    if x.ndim not in (4, 5) or not NOWHERE | {"c_concat"} >= entry["model_conds"].keys():
        assert why
        return
    assert not why
    if specimen.row == "PixArt":
        x = x.repeat(1, 1, 6, 1)  # the host has no positions for a picture as small as a window of this one
    model = SHARED.get(specimen.name, specimen.build)
    model.model.current_patcher = model
    sigma = torch.tensor([float(model.get_model_object("model_sampling").percent_to_sigma(0.4))])
    options = {"transformer_options": {}}
    entries = [{**own, "uuid": at} for at, (own, _) in enumerate(windowed([entry], WINDOWS, x))]
    (stitched,) = comfy.samplers.calc_cond_batch(model.model, [entries], x, sigma, options)
    assert close(stitched, seen_alone(model.model, [entry], x, sigma, options)) < 1e-4
    (whole,) = comfy.samplers.calc_cond_batch(model.model, [[entry]], x, sigma, options)
    assert close(stitched, whole) > 1e-6


def with_values(**values):
    positive, negative = prompts("unet")
    return node_helpers.conditioning_set_values(positive, values), negative


REFUSED = {
    "area": (lambda: with_values(area=(8, 8, 0, 0), strength=1.0), "the positive has an area, "),
    "the negative's area": (
        lambda: regional("negative with an area"),
        "the positive has an area, of its own or for one",
    ),
    "mask with bounds": (
        lambda: with_values(mask=torch.ones(1, 16, 16), set_area_to_bounds=True, mask_strength=1.0),
        "the positive has an area, ",
    ),
    "ControlNet": (
        lambda: with_values(control=Control(), control_apply_to_uncond=False),
        "the positive has a ControlNet",
    ),
    "GLIGEN": (lambda: with_values(gligen=("position", network("unet"), [])), "the positive has GLIGEN boxes"),
    "default": (lambda: with_values(default=True), "the positive has a default conditioning"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_belongs_to_places_of_the_picture_is_refused_by_name(case):
    make, what = REFUSED[case]
    with pytest.raises(ValueError) as error:
        sample(swg(network("unet")), conds=make(), steps=1)
    text = str(error.value)
    assert text.startswith(f"SWG: {what}") and text.endswith("Use PAG or SEG, or take that out.")


def test_reference_latents_are_refused_by_name():
    positive, negative = prompts("flux")
    positive = node_helpers.conditioning_set_values(positive, {"reference_latents": [torch.zeros(1, 16, 16, 16)]})
    with pytest.raises(ValueError, match=r"^SWG: the positive has reference latents, and no window can have its part"):
        sample(swg(network("flux")), "flux", conds=(positive, negative), steps=1)


def test_a_cond_that_nobody_here_knows_is_refused_by_its_name(monkeypatch):
    model = network("unet")
    own = model.model.extra_conds
    monkeypatch.setattr(
        model.model,
        "extra_conds",
        lambda **kw: {**own(**kw), "depth_map": comfy.conds.CONDRegular(torch.zeros(1, 1, 16, 16))},
    )
    with pytest.raises(
        ValueError, match=r"^SWG: the positive has depth_map, which may lie over the picture, and no window"
    ):
        sample(swg(model), steps=1)


def test_context_windows_are_refused_by_name():
    with pytest.raises(ValueError, match=r"^SWG: context windows cut the frames already"):
        sample(in_context(swg(network("unet"))), latent=networks.latent("unet", 4), steps=1)


def test_a_picture_of_one_cell_is_refused_with_the_windows_size():
    latent = networks.latent("unet", 1, 1, 1)
    with pytest.raises(ValueError, match=r"^SWG: window is 0.75, and no part of this picture of 1 x 1 cells"):
        sample(swg(network("unet")), latent=latent, steps=1)


def test_a_network_whose_forwards_share_a_cache_is_refused_by_name(monkeypatch):
    from pack.patches import architectures

    monkeypatch.setattr(architectures, "refused", lambda network: "it keeps a cache")
    with pytest.raises(ValueError, match=r"^SWG: UNetModel cannot be shown windows: it keeps a cache"):
        sample(swg(network("unet")), steps=1)


def test_windows_that_two_nodes_have_in_common_are_evaluated_once():
    model = network("unet")
    counter = Counter(swg(swg(model, 1.0), 1.0))
    assert close(sample(counter.model, steps=2), sample(swg(model, 2.0), steps=2)) < 1e-6
    assert counter.rows == [2, 4] * 2


def test_a_rule_without_a_node_runs_the_same():
    model = network("unet")
    term = host.Term(SlidingWindowGuidance(SCALE), Schedule(), "SWG")
    assert torch.equal(sample(host.add_term(model, term), steps=2), sample(swg(model), steps=2))

"""A region of a term, on the host: picture, batch, video and packed latents; CFG by region; what is refused, and said."""

import pytest
import torch
from pack.guiders import host
from pack.guiders.classifier_free import SamplerCFG
from pack.guiders.region import Region
from pack.guiders.schedule import Schedule
from pack.nodes.guiders import CFGGuider
from pack.tests.host import networks
from pack.tests.host.harness import TERM_NODES, Counter, close, network, prompts, run, sample

NODES = ("BeyondCFGPAG", "BeyondCFGTSG", "BeyondCFGRescale", "BeyondCFGInterval", "BeyondCFGSAG")


def guided(node: str, model, mask=None, **values):
    inputs = TERM_NODES[node].inputs
    given = {one.id: one.default for one in inputs if hasattr(one, "default")}
    return (
        TERM_NODES[node]
        .execute(**given | {"start_percent": 0.0, "end_percent": 1.0, "model": model, "region": mask} | values)
        .result[0]
    )


def half(rows: int, columns: int, value: float = 1.0) -> torch.Tensor:
    """The upper half of a picture."""
    mask = torch.zeros(1, rows, columns)
    mask[:, : rows // 2] = value
    return mask


@pytest.mark.parametrize("node", NODES)
def test_in_one_step_the_guidance_is_whole_inside_and_none_outside(node):
    model, latent = network("unet"), networks.latent("unet", 2, 8, 8)
    plain, whole, masked = (
        sample(one, "unet", latent=latent, steps=1)
        for one in (model, guided(node, model), guided(node, model, half(64, 64)))
    )
    if node == "BeyondCFGInterval":
        plain, whole = sample(model, "unet", cfg=1.0, latent=latent, steps=1), plain
    inside, outside = masked[..., :4, :], masked[..., 4:, :]
    assert close(inside, whole[..., :4, :]) < 1e-6 and close(outside, plain[..., 4:, :]) < 1e-6
    assert close(whole, plain) > 1e-4


def test_a_mask_of_ones_changes_no_bit_and_one_of_zeros_costs_nothing(caplog):
    model, latent = network("sd3"), networks.latent("sd3", 1, 8, 8)
    whole = sample(guided("BeyondCFGPAG", model), "sd3", latent=latent, steps=2)
    assert torch.equal(
        sample(guided("BeyondCFGPAG", model, torch.ones(1, 64, 64)), "sd3", latent=latent, steps=2), whole
    )
    counter = Counter(guided("BeyondCFGPAG", model, torch.zeros(1, 64, 64)))
    nothing = sample(counter.model, "sd3", latent=latent, steps=2)
    assert torch.equal(nothing, sample(model, "sd3", latent=latent, steps=2)) and counter.rows == [2, 2]
    assert "PAG had no effect: its region is empty" in caplog.text


def test_cfg_under_a_mask_of_zeros_is_no_cfg_and_its_negative_is_not_evaluated():
    counter = Counter(guided("BeyondCFGInterval", network("unet"), torch.zeros(1, 64, 64)))
    latent = networks.latent("unet", 1, 8, 8)
    found = sample(counter.model, "unet", latent=latent, steps=2)
    assert torch.equal(found, sample(network("unet"), "unet", cfg=1.0, latent=latent, steps=2)) and counter.rows == [
        1,
        1,
    ]


def test_cfg_by_region_is_kept_apart_from_the_guidances_around_it():
    """PAG before or after it in the chain acts everywhere."""
    model, latent = network("unet"), networks.latent("unet", 1, 8, 8)
    pag, cfg = (lambda m: guided("BeyondCFGPAG", m)), (lambda m: guided("BeyondCFGInterval", m, half(64, 64)))
    one, other = (sample(m, "unet", latent=latent, steps=1) for m in (cfg(pag(model)), pag(cfg(model))))
    assert close(one, other) < 1e-6
    without = sample(pag(model), "unet", cfg=1.0, latent=latent, steps=1)
    assert close(one[..., 4:, :], without[..., 4:, :]) < 1e-5


def test_a_video_has_a_mask_for_each_frame():
    model, latent = network("wan"), networks.latent("wan", 1, 8, 8)
    frames = latent.shape[2]
    mask = torch.zeros(frames, 64, 64)
    mask[0] = 1
    plain, whole, masked = (
        sample(one, "wan", latent=latent, steps=1)
        for one in (model, guided("BeyondCFGPAG", model), guided("BeyondCFGPAG", model, mask))
    )
    assert frames > 1 and close(masked[:, :, :1], whole[:, :, :1]) < 1e-6
    assert close(masked[:, :, 1:], plain[:, :, 1:]) < 1e-6


def test_a_batch_has_a_mask_for_each_picture():
    model, latent = network("unet"), networks.latent("unet", 2, 8, 8)
    mask = torch.cat([torch.ones(1, 64, 64), torch.zeros(1, 64, 64)])
    plain, whole, masked = (
        sample(one, "unet", latent=latent, steps=1)
        for one in (model, guided("BeyondCFGPAG", model), guided("BeyondCFGPAG", model, mask))
    )
    assert close(masked[0], whole[0]) < 1e-6 and close(masked[1], plain[1]) < 1e-6


def test_a_mask_of_another_aspect_is_an_error_at_its_node():
    for node in ("BeyondCFGPAG", "BeyondCFGInterval"):
        title = TERM_NODES[node].about.name
        with pytest.raises(
            ValueError, match=f"{title}: region is 64 × 32, and the latent is 8 × 8, which is another aspect"
        ):
            sample(
                guided(node, network("unet"), half(32, 64)), "unet", latent=networks.latent("unet", 1, 8, 8), steps=1
            )


@pytest.mark.parametrize(
    "bad", [torch.full((1, 8, 8), float("nan")), torch.ones(1, 8, 8, 3), torch.ones(8, 8) * 2, "white"], ids=str
)
def test_what_is_no_mask_is_refused_before_sampling(bad):
    with pytest.raises(ValueError, match=r"PAG: region is .*; it must be a mask"):
        guided("BeyondCFGPAG", network("unet"), bad)


def test_the_cfg_guider_has_a_mask_too():
    model, latent = network("unet"), networks.latent("unet", 1, 8, 8)
    positive, negative = prompts("unet")
    (guider,) = CFGGuider.execute(
        model=model,
        positive=positive,
        negative=negative,
        cfg=4.0,
        start_percent=0.0,
        end_percent=1.0,
        region=half(64, 64)[0],
    ).result
    term = host.Term(SamplerCFG(), Schedule(), "CFG Interval Guider", Region(half(64, 64)))
    expected = sample(host.add_term(model, term), "unet", latent=latent, steps=2)
    assert torch.equal(run(guider, latent, steps=2), expected)

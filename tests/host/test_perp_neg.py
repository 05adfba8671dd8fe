"""Perp-Neg as a node on a model, beside the host's guider of the same name."""

import pytest
import torch
from comfy_extras.nodes_perpneg import Guider_PerpNeg
from pack.tests.host import networks
from pack.tests.host.harness import TERM_NODES, Counter, close, network, prompts, run, sample

NODE = TERM_NODES["BeyondCFGPerpNeg"]


def perp_neg(model, empty, **values):
    given = {"neg_scale": 1.0, "amount": 1.0, "start_percent": 0.0, "end_percent": 1.0} | values
    return NODE.execute(model=model, empty_conditioning=empty, **given).result[0]


def theirs(model, kind: str, empty, latent, neg_scale: float) -> torch.Tensor:
    guider = Guider_PerpNeg(model)
    guider.set_conds(*prompts(kind), empty)
    guider.set_cfg(4.0, neg_scale)
    return run(guider, latent, steps=2)


@pytest.mark.parametrize("neg_scale", [0.5, 2.0])
@pytest.mark.parametrize("kind", ["unet", "sd3", "flux", "wan"])
def test_of_one_picture_it_is_the_hosts_guider(kind, neg_scale):
    model, latent, empty = network(kind), networks.latent(kind, 1, 8, 8), networks.conditioning(kind, 3)
    counter = Counter(perp_neg(model, empty, neg_scale=neg_scale))
    found = sample(counter.model, kind, cfg=4.0, latent=latent, steps=2)
    assert close(found, theirs(model, kind, empty, latent, neg_scale)) < 1e-4 and counter.rows == [3, 3]
    assert close(found, sample(model, kind, cfg=4.0, latent=latent, steps=2)) > 1e-3


def test_a_picture_does_not_depend_on_its_neighbours_as_the_hosts_does():
    model, empty = network("unet"), networks.conditioning("unet", 3)
    latent = networks.latent("unet", 2, 8, 8)
    latent[1] *= 3
    ours = [sample(perp_neg(model, empty), "unet", latent=part, steps=2)[:1] for part in (latent, latent[:1])]
    others = [theirs(model, "unet", empty, part, 1.0)[:1] for part in (latent, latent[:1])]
    assert close(*ours) < 1e-6 < close(*others)


def test_on_the_hosts_guider_it_has_no_effect_and_says_so(caplog):
    model, latent, empty = network("unet"), networks.latent("unet", 1, 8, 8), networks.conditioning("unet", 3)
    assert torch.equal(
        theirs(perp_neg(model, empty), "unet", empty, latent, 1.0), theirs(model, "unet", empty, latent, 1.0)
    )
    assert "Perp-Neg had no effect: Guider_PerpNeg combines its predictions in a way of its own" in caplog.text


def test_a_third_prompt_that_is_missing_or_several_is_refused():
    model, empty = network("unet"), networks.conditioning("unet", 3)
    with pytest.raises(ValueError, match="Perp-Neg: empty_conditioning is empty; it must be a conditioning"):
        perp_neg(model, None)
    with pytest.raises(ValueError, match="Perp-Neg: empty_conditioning joins 2 prompts; it must be one"):
        perp_neg(model, [*empty, *empty])

"""CFG away from a worse negative, on the host: as its own nodes do it, for the price of its own negative."""

import pytest
import torch
from comfy_extras.nodes_slg import SkipLayerGuidanceDiTSimple
from pack.guiders.host import make_guider
from pack.tests.host import networks
from pack.tests.host.harness import TERM_NODES, Counter, close, network, prompts, run, sample

PERTURBED, BY_MODEL = TERM_NODES["BeyondCFGPerturbedNegative"], TERM_NODES["BeyondCFGNegativeModel"]


def perturbed(model, perturbation="Skip Layer", amount=1.0, layers="auto", start=0.0, end=1.0, **more):
    values = {
        "perturbation": perturbation,
        "amount": amount,
        "layers": layers,
        "start_percent": start,
        "end_percent": end,
    }
    return PERTURBED.execute(model=model, **values, **more).result[0]


def by_model(model, other, amount=1.0):
    given = {"negative_model": other, "amount": amount, "start_percent": 0.0, "end_percent": 1.0}
    return BY_MODEL.execute(model=model, **given).result[0]


def test_skipped_layers_of_the_negative_are_the_hosts_simple_form():
    model, latent = network("sd3"), networks.latent("sd3", 2, 8, 8)
    (theirs,) = SkipLayerGuidanceDiTSimple.execute(model, 0.0, 1.0, "1", "").result
    found = sample(perturbed(model, layers="1"), "sd3", latent=latent, steps=3)
    assert close(found, sample(theirs, "sd3", latent=latent, steps=3)) < 1e-9
    assert close(found, sample(model, "sd3", latent=latent, steps=3)) > 1e-4


@pytest.mark.parametrize(
    ("kind", "perturbation"), [("unet", "PAG"), ("sd3", "SEG"), ("flux", "PAG"), ("wan", "Skip Layer")]
)
def test_it_costs_no_row_and_no_forward(kind, perturbation):
    counter = Counter(perturbed(network(kind), perturbation))
    assert sample(counter.model, kind, latent=networks.latent(kind, 1, 8, 8), steps=2).isfinite().all()
    assert counter.rows == [2, 2]


def test_a_part_of_it_needs_the_negative_too_and_none_is_not_there():
    model, latent = network("sd3"), networks.latent("sd3", 1, 8, 8)
    plain, whole = sample(model, "sd3", latent=latent, steps=1), sample(perturbed(model), "sd3", latent=latent, steps=1)
    counter = Counter(perturbed(model, amount=0.5))
    half = sample(counter.model, "sd3", latent=latent, steps=1)
    assert close(half, (plain + whole) / 2) < 1e-6 and counter.rows == [3]
    assert torch.equal(sample(perturbed(model, amount=0.0), "sd3", latent=latent, steps=1), plain)


def test_at_cfg_1_it_is_left_out_and_the_log_says_so(caplog):
    model, latent = network("sd3"), networks.latent("sd3", 1, 8, 8)
    counter = Counter(perturbed(model))
    found = sample(counter.model, "sd3", cfg=1.0, latent=latent, steps=2)
    assert torch.equal(found, sample(model, "sd3", cfg=1.0, latent=latent, steps=2)) and counter.rows == [1, 1]
    assert "Perturbed Negative had no effect: CFGGuider ran at cfg 1, which is no CFG" in caplog.text


@pytest.mark.parametrize("kind", ["unet", "sd3", "flux", "wan"])
def test_another_models_negative_takes_the_negatives_place(kind):
    """One Euler step from full noise to 0 gives D itself."""
    model, other, latent = network(kind), network(kind, seed=5), networks.latent(kind, 2, 8, 8)
    positive, negative = prompts(kind)
    counter = Counter(by_model(model, other))
    found = sample(counter.model, kind, cfg=4.0, latent=latent, steps=1)
    mine = run(make_guider(model, positive, None, 1.0), latent, steps=1)
    theirs = run(make_guider(other, negative, None, 1.0), latent, steps=1)
    assert close(found, theirs + 4 * (mine - theirs)) < 1e-5 and counter.rows == [1]


def test_the_main_model_as_its_own_negative_model_changes_nothing():
    model, latent = network("unet"), networks.latent("unet", 1, 8, 8)
    found = sample(by_model(model, model), "unet", latent=latent, steps=2)
    assert close(found, sample(model, "unet", latent=latent, steps=2)) < 1e-9


def test_what_other_guidances_add_is_the_same():
    model, latent = network("sd3"), networks.latent("sd3", 1, 8, 8)
    pag = TERM_NODES["BeyondCFGPAG"]

    def with_pag(model):
        given = {"scale": 2.0, "layers": "auto", "start_percent": 0.0, "end_percent": 1.0}
        return pag.execute(model=model, **given).result[0]

    plain, worse = (sample(one, "sd3", latent=latent, steps=1) for one in (model, perturbed(model)))
    both = [
        sample(one, "sd3", latent=latent, steps=1) for one in (with_pag(perturbed(model)), perturbed(with_pag(model)))
    ]
    added = sample(with_pag(model), "sd3", latent=latent, steps=1) - plain
    assert all(close(one - worse, added) < 1e-5 for one in both)


def test_the_negative_is_replaced_for_a_cfg_function_of_another_pack_too():
    """It makes the result from what the host hands it."""
    model, latent = network("sd3"), networks.latent("sd3", 1, 8, 8)
    theirs = perturbed(model).clone()
    theirs.set_model_sampler_cfg_function(
        lambda args: args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])
    )
    expected = sample(perturbed(model), "sd3", latent=latent, steps=2)
    assert close(sample(theirs, "sd3", latent=latent, steps=2), expected) < 1e-6

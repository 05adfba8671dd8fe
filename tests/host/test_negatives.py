"""A negative prompt at cfg 1: NAG and its like on a MODEL, through the host's sampling."""

import pytest
import torch
from comfy_extras.nodes_custom_sampler import Guider_Basic
from pack.patches import PROMPT_GUIDANCES
from pack.tests.host import networks
from pack.tests.host.harness import (
    TERM_NODES,
    Counter,
    close,
    network,
    pag,
    prompts,
    rounding,
    run,
    sample,
)

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


@pytest.mark.parametrize("kind", KINDS)
def test_a_perturbed_row_has_the_negative_too(kind):
    """PAG's weak prediction: with the perturbation that changes nothing PAG adds nothing, with NAG as without."""
    layers = {"unet": "middle", "sdxl": "middle", "sd3": "double.1", "flux": "single.0", "wan": "block.1"}[kind]
    nag = sample(with_negative(network(kind)), kind, cfg=1.0)
    both = sample(pag(with_negative(network(kind)), layers=layers), kind, cfg=1.0)
    turned = sample(with_negative(pag(network(kind), layers=layers)), kind, cfg=1.0)
    assert torch.equal(both, turned)
    assert close(both, nag) > 1e-4

"""The host's own node for another attention, Model Attention Backend, beside ours."""

import logging

import comfy.model_patcher
import pytest
from comfy.ldm.modules.attention import attention_pytorch, attention_split, attention_sub_quad
from pack.guiders import host
from pack.tests.host.harness import close, network, pag, rounding, sample
from pack.tests.host.reference import LAYERS, with_reference_pag

if not hasattr(comfy.model_patcher.ModelPatcher, "set_model_optimized_attention"):
    pytest.skip("this host has no Model Attention Backend", allow_module_level=True)
BACKENDS = [attention_pytorch, attention_split, attention_sub_quad]
KINDS = pytest.mark.parametrize("kind", LAYERS)


def with_backend(model, attention):
    """As the node does."""
    model = model.clone()
    model.set_model_optimized_attention(attention)
    return model


def mine(model, kind):
    return pag(model, layers=LAYERS[kind])


@KINDS
def test_the_chosen_attention_does_all_but_what_is_perturbed(kind):
    calls = []

    def attention(*args, **kwargs):
        calls.append(args[0].shape[0])
        return attention_sub_quad(*args, **kwargs)

    model = network(kind)
    expected = sample(with_reference_pag(with_backend(model, attention), kind), kind, steps=2)
    floor = 2e-6 + 4 * rounding(mine(model, kind), kind, steps=2)
    for ours in (with_backend(mine(model, kind), attention), mine(with_backend(model, attention), kind)):
        calls.clear()
        assert close(sample(ours, kind, steps=2), expected) < floor
        assert 3 in calls and 2 in calls  # all rows elsewhere; the clean rows, and no more, in the perturbed layer


@pytest.mark.parametrize("attention", BACKENDS, ids=lambda attention: attention.__name__)
@KINDS
def test_rows_agree_so_that_those_that_are_equal_are_computed_once(kind, attention, caplog):
    model = with_backend(mine(network(kind), kind), attention)
    with caplog.at_level(logging.INFO, "beyond_cfg"):
        shared = sample(model, kind, steps=2)
    assert "computed once with the row that is perturbed: PAG" in caplog.text and "whole" not in caplog.text
    whole = sample(host.with_options(model, sharing="off"), kind, steps=2)
    assert close(shared, whole) < 2e-6 + 4 * rounding(model, kind, steps=2)


def test_with_an_attention_of_which_nobody_knows_that_all_rows_are_computed_whole(caplog):
    model = with_backend(mine(network("flux"), "flux"), lambda *args, **kwargs: attention_pytorch(*args, **kwargs))
    with caplog.at_level(logging.INFO, "beyond_cfg"):
        sample(model, "flux", steps=1)
    assert "all rows are computed whole, since ModelPatcher of comfy.model_patcher has replaced the attention" in (
        caplog.text
    )

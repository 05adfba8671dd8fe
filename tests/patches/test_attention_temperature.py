"""ERG: the logits of the picture's tokens multiplied by τ."""

import pytest
import torch
from pack.patches import AttentionTemperature, IdentityAttention
from pack.tests.patches.test_perturbations import BIASES, LAYERS, PLACES, attention, dense


def entropy(logits: torch.Tensor) -> torch.Tensor:
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


@pytest.mark.parametrize(("before", "after"), PLACES)
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("tau", [0.0, 0.01, 0.5, 3.0])
def test_the_queries_of_the_picture_have_their_logits_multiplied_and_what_is_added_to_them_stays(
    before, after, bias, tau
):
    call = attention(before, after, bias)
    logits = call.q @ call.k.mT * call.scale
    logits[:, :, call.image] *= tau
    expected = (logits if call.bias is None else logits + call.bias).softmax(-1) @ call.v
    torch.testing.assert_close(AttentionTemperature(LAYERS, tau).attention(call), expected, rtol=0, atol=1e-13)


def test_below_one_the_entropy_grows_and_above_one_it_falls():
    call = attention()
    logits = call.q @ call.k.mT * call.scale
    means = [entropy(tau * logits).mean() for tau in (0.0, 0.01, 0.5, 1.0, 3.0)]
    assert means == sorted(means, reverse=True)
    even = AttentionTemperature(LAYERS, 0.01).attention(call)
    assert (even - call.v.mean(2, keepdim=True)).abs().max() < 0.05 * call.v.abs().max()


def test_at_nothing_it_is_pags_uniform_map():
    call = attention(4, 3)
    uniform = IdentityAttention(LAYERS, 1.0, "uniform").attention(call)
    torch.testing.assert_close(AttentionTemperature(LAYERS, 0.0).attention(call), uniform, rtol=0, atol=1e-14)


def test_at_one_it_is_neutral_and_the_hosts_attention():
    call = attention(4)
    assert AttentionTemperature(LAYERS, 1.0).neutral and not AttentionTemperature(LAYERS).neutral
    assert torch.equal(AttentionTemperature(LAYERS, 1.0).attention(call), dense(call.q, call.k, call.v, call.scale))


@pytest.mark.parametrize("tau", [-0.1, 10.1, float("nan")])
def test_a_tau_out_of_range_is_refused_by_name(tau):
    with pytest.raises(ValueError, match="tau is"):
        AttentionTemperature(LAYERS, tau)

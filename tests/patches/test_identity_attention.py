"""SoftPAG: PAG's map mixed with the network's own, and the other maps of that paper. PAG itself: test_perturbations.py."""

import dataclasses

import pytest
import torch
from pack.patches import IdentityAttention
from pack.patches.base import attend_to_self
from pack.tests.patches.test_perturbations import BIASES, JOINT, LAYERS, PLACES, SIZE, attention
from torch import Tensor

TARGETS = ("identity", "identity without text", "uniform")
EVERY_TARGET = pytest.mark.parametrize("target", TARGETS)


def own_map(call) -> Tensor:
    logits = call.q @ call.k.mT * call.scale
    return (logits if call.bias is None else logits + call.bias).softmax(-1)


def authors(call, target: str, u: float) -> Tensor:
    """(1 - u) A + u A' on whole maps, as the authors' code makes them after the softmax; rows of text stay."""
    own, tokens = own_map(call), call.q.shape[2]
    other = torch.eye(tokens, dtype=own.dtype).expand_as(own)  # attention_identity
    if target == "uniform":
        other = torch.ones_like(own) / tokens
    if target == "identity":  # their II_identity of logits
        picture = torch.zeros(tokens, dtype=torch.bool)
        picture[call.image] = True
        hidden = picture[:, None] & picture[None, :] & ~torch.eye(tokens, dtype=torch.bool)
        logits = call.q @ call.k.mT * call.scale + (0.0 if call.bias is None else call.bias)
        other = logits.masked_fill(hidden, -torch.inf).softmax(-1)
    mixed = own.clone()
    mixed[:, :, call.image] = (1 - u) * own[:, :, call.image] + u * other[:, :, call.image]
    return mixed @ call.v


@EVERY_TARGET
@pytest.mark.parametrize(("before", "after"), PLACES)
@pytest.mark.parametrize("u", [0.0, 0.3, 0.5, 1.0])
def test_the_attention_is_that_of_the_authors_mixed_maps(target, before, after, u):
    call = attention(before, after)
    out = IdentityAttention(LAYERS, u, target).attention(call)
    torch.testing.assert_close(out, authors(call, target, u), rtol=0, atol=1e-13)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("target", TARGETS[:2])
def test_what_is_added_to_the_logits_counts_in_both_maps(target, bias):
    call = attention(4, 3, bias)
    torch.testing.assert_close(
        IdentityAttention(LAYERS, 0.4, target).attention(call), authors(call, target, 0.4), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("bias", [torch.zeros(1, 1, 1, 4 + SIZE), torch.zeros(2, 1, 4 + SIZE, 4 + SIZE)])
def test_the_uniform_map_is_over_the_keys_that_are_not_masked(bias):
    bias = bias.double()
    bias[..., 1:3] = -torch.inf
    call = attention(before=4)
    masked = dataclasses.replace(
        call, bias=bias, attend=lambda q, at: (q @ call.k.mT * call.scale + bias[..., :1, :]).softmax(-1) @ call.v
    )
    seen = torch.cat([call.v[:, :, :1], call.v[:, :, 3:]], 2).mean(2, keepdim=True)
    out = IdentityAttention(LAYERS, 1.0, "uniform").attention(masked)[:, :, 4:]
    torch.testing.assert_close(out, seen.expand_as(out), rtol=0, atol=1e-14)


@JOINT
@pytest.mark.parametrize("bias", BIASES)
def test_the_defaults_are_pag_bit_for_bit(before, after, bias):
    call = attention(before, after, bias)
    assert torch.equal(IdentityAttention(LAYERS).attention(call), attend_to_self(call))
    assert IdentityAttention(LAYERS) == IdentityAttention(LAYERS, 1.0, "identity")


def test_a_blend_of_nothing_is_the_hosts_attention_and_neutral():
    call = attention(4)
    for target in TARGETS:
        off = IdentityAttention(LAYERS, 0.0, target)
        assert off.neutral and not IdentityAttention(LAYERS, 0.01, target).neutral
        assert torch.equal(off.attention(call), call.attend(call.q, slice(0, call.q.shape[2])))


def test_without_text_the_two_identities_are_one():
    call = attention()
    one, other = (IdentityAttention(LAYERS, 0.7, target).attention(call) for target in TARGETS[:2])
    assert torch.equal(one, other)


@EVERY_TARGET
def test_half_precision_stays_finite_and_near(target):
    call = attention(4, dtype=torch.float16)
    exact = dataclasses.replace(call, q=call.q.double(), k=call.k.double(), v=call.v.double())
    out = IdentityAttention(LAYERS, 0.5, target).attention(call)[:, :, call.image]
    own = own_map(exact)[:, :, call.image] @ exact.v
    assert out.dtype == torch.float16 and out.isfinite().all()
    full = authors(exact, target, 1.0)[:, :, call.image]
    assert (out.double() - (own + full) / 2).abs().max() < 8 * torch.finfo(torch.float16).eps


@pytest.mark.parametrize(("blend", "target"), [(-0.1, "identity"), (1.1, "identity"), (float("nan"), "identity")])
def test_a_blend_out_of_range_is_refused_by_name(blend, target):
    with pytest.raises(ValueError, match="blend is"):
        IdentityAttention(LAYERS, blend, target)


def test_a_target_that_there_is_not_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match='target is "all"; it must be one of identity, identity without text, uniform'):
        IdentityAttention(LAYERS, 1.0, "all")

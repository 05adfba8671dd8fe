"""Laws of every registered perturbation, on attention that is exact, and what the papers say of each."""

import dataclasses

import pytest
import torch
from pack.patches import PERTURBATIONS, AttentionTemperature, BlurredQuery, IdentityAttention, MaskedAttention, base
from pack.patches.base import About, AttentionCall, AttentionPerturbation, Moment, Perturbation
from pack.patches.layers import Layer
from pack.tests.contracts import faults_of_perturbation
from torch import Tensor

LAYERS = (Layer("middle", 0),)
GRID = (3, 5)
SIZE = 15  # tokens of the picture
COMPLETE = [method for method in PERTURBATIONS if not faults_of_perturbation(method)]
SETTINGS = [method(LAYERS) for method in COMPLETE if issubclass(method, AttentionPerturbation)]
SETTINGS += [
    IdentityAttention(LAYERS, 0.5),
    IdentityAttention(LAYERS, 1.0, "identity without text"),
    IdentityAttention(LAYERS, 1.0, "uniform"),
    IdentityAttention(LAYERS, 0.3, "uniform"),
    AttentionTemperature(LAYERS, 0.0),
    AttentionTemperature(LAYERS, 10.0),
    BlurredQuery(LAYERS, 2.0),
    BlurredQuery(LAYERS, 2.0, "reflect"),
    MaskedAttention(LAYERS, 0.5),
    MaskedAttention(LAYERS, 0.5, keep_diagonal=False),
    MaskedAttention(LAYERS, 1.0, keep_diagonal=False),
]


def name_of(setting) -> str:
    changed = [getattr(setting, f.name) for f in dataclasses.fields(setting) if getattr(setting, f.name) != f.default]
    return " ".join([setting.about.name, *map(str, changed[1:])])


EVERY = pytest.mark.parametrize("perturbation", SETTINGS, ids=name_of)


def dense(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | float = 0.0) -> Tensor:
    return (q @ k.mT * scale + bias).softmax(-1) @ v


def attention(before=0, after=0, bias=None, rows=2, heads=3, dim=8, dtype=torch.float64, size=SIZE, **tensors):
    """A self-attention of `before` text, a picture, and `after` text, on random tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens = before + size + after
    q, k, v, noise = (
        torch.randn(rows, heads, tokens, width, generator=generator, dtype=torch.float64).to(dtype)
        for width in (dim, dim, dim, tokens)
    )
    q, k, v = (tensors.get(name, value) for name, value in zip("qkv", (q, k, v), strict=True))
    if bias is not None:
        bias = {
            "every pair": noise,
            "a mask of keys": noise[:1, :1, :1],
            "one for all rows": noise[:1],
            "one for all heads": noise[:, :1],
        }[bias]
    return call_of(q, k, v, before, bias, size)


def call_of(q, k, v, before=0, bias=None, size=SIZE) -> AttentionCall:
    scale = q.shape[-1] ** -0.5

    def attend(queries: Tensor, tokens: slice) -> Tensor:
        part = 0.0 if bias is None else bias.expand(*bias.shape[:-2], q.shape[2], k.shape[2])[..., tokens, :]
        return dense(queries, k, v, scale, part)

    grid = GRID if size == SIZE else (1, size)
    return AttentionCall(q, k, v, slice(before, before + size), grid, scale, bias, attend, "layer", Moment())


def tensors(call: AttentionCall) -> list[Tensor]:
    return [value for value in (call.q, call.k, call.v, call.bias) if value is not None]


PLACES = [(0, 0), (4, 0), (0, 4), (4, 3)]  # text before and after the picture
BIASES = [None, "every pair", "a mask of keys", "one for all rows", "one for all heads"]
JOINT = pytest.mark.parametrize(("before", "after"), PLACES[1:], ids=["text first", "text last", "text on both sides"])


# -------------------------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("method", PERTURBATIONS, ids=lambda method: method.__name__)
def test_a_perturbation_is_of_one_kind_and_has_the_functions_of_that_kind_and_no_others(method):
    assert not faults_of_perturbation(method)


def test_every_perturbation_is_a_hashable_setting_with_an_introduction_of_its_own():
    for method in COMPLETE:
        setting = method(LAYERS)
        assert isinstance(setting, Perturbation) and isinstance(setting.about, About)
        assert setting == method(LAYERS) and hash(setting) == hash(method(LAYERS))
        assert setting != method((*LAYERS, Layer("output", 3)))
        with pytest.raises(dataclasses.FrozenInstanceError):
            setting.layers = ()
        assert setting.about.paper
    for name in ("node_id", "title", "summary"):
        told = [getattr(method.about, name) for method in PERTURBATIONS]
        assert all(told) and len(set(told)) == len(told)


@EVERY
@pytest.mark.parametrize(("before", "after"), PLACES)
@pytest.mark.parametrize("bias", BIASES)
def test_shape_and_dtype_are_kept_and_nothing_that_was_given_is_changed(perturbation, before, after, bias):
    call = attention(before, after, bias)
    copies = [value.clone() for value in tensors(call)]
    out = perturbation.attention(call)
    assert (out.shape, out.dtype) == (call.v.shape, call.v.dtype)
    assert all(torch.equal(value, copy) for value, copy in zip(tensors(call), copies, strict=True))


@EVERY
@pytest.mark.parametrize(("before", "after"), PLACES)
def test_it_acts(perturbation, before, after):
    call = attention(before, after)
    assert not torch.allclose(perturbation.attention(call), dense(call.q, call.k, call.v, call.scale), atol=1e-2)


@EVERY
@pytest.mark.parametrize(("before", "after"), PLACES)
def test_a_row_alone_is_that_row_among_others(perturbation, before, after):
    call = attention(before, after, rows=3)
    together = perturbation.attention(call)
    for row in range(1 if perturbation.random else 3):  # draws belong to a sample's place
        q, k, v = (part[row : row + 1] for part in (call.q, call.k, call.v))
        alone = perturbation.attention(call_of(q, k, v, before))
        torch.testing.assert_close(alone, together[row : row + 1], rtol=0, atol=1e-14)


@EVERY
@pytest.mark.parametrize(("before", "after"), PLACES)
def test_two_runs_are_equal(perturbation, before, after):
    one, other = (perturbation.attention(attention(before, after)) for _ in range(2))
    assert torch.equal(one, other)


@EVERY
@JOINT
@pytest.mark.parametrize("bias", BIASES)
def test_tokens_that_are_not_the_picture_get_the_hosts_own_attention(perturbation, before, after, bias):
    call = attention(before, after, bias)
    out = perturbation.attention(call)
    for tokens in call.others:
        assert torch.equal(out[:, :, tokens], call.attend(call.q[:, :, tokens], tokens))


@EVERY
@pytest.mark.parametrize(("before", "after"), PLACES)
@pytest.mark.parametrize("bias", BIASES)
def test_in_some_heads_it_is_what_it_is_where_there_are_no_others(perturbation, before, after, bias):
    call, heads = attention(before, after, bias), (0, 2)
    at = list(heads)
    q, k, v = (part[:, at] for part in (call.q, call.k, call.v))
    cut = call.bias if call.bias is None or call.bias.shape[1] == 1 else call.bias[:, at]
    alone = perturbation.attention(call_of(q, k, v, before, cut))
    torch.testing.assert_close(perturbation.attention(call.only(heads)), alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("before", "after"), PLACES)
def test_the_others_are_all_tokens_but_the_picture(before, after):
    call = attention(before, after)
    covered = [i for tokens in (*call.others, call.image) for i in range(*tokens.indices(call.q.shape[2]))]
    assert sorted(covered) == list(range(before + SIZE + after))
    assert len(call.others) == (before > 0) + (after > 0)


# --------------------------------------------------------------------------------------------------------------- PAG

PAG = IdentityAttention(LAYERS)


def masked(call: AttentionCall) -> Tensor:
    """Dense attention in which a token of the picture sees no other token of the picture."""
    tokens = call.q.shape[2]
    picture = torch.zeros(tokens, dtype=torch.bool)
    picture[call.image] = True
    hidden = picture[:, None] & picture[None, :] & ~torch.eye(tokens, dtype=torch.bool)
    bias = torch.zeros(tokens, tokens, dtype=call.q.dtype).masked_fill(hidden, -torch.inf)
    return dense(call.q, call.k, call.v, call.scale, bias if call.bias is None else bias + call.bias)


@pytest.mark.parametrize("bias", BIASES)
def test_pag_on_a_picture_alone_is_its_values_exactly(bias):
    call = attention(bias=bias)
    assert torch.equal(PAG.attention(call), call.v)


def test_pag_on_one_token_is_the_attention_itself():
    call = attention(size=1)
    torch.testing.assert_close(PAG.attention(call), dense(call.q, call.k, call.v, call.scale), rtol=1e-14, atol=0)


def test_pag_on_values_that_are_the_same_everywhere_is_the_attention_itself():
    v = attention().v[:, :, :1].expand(-1, -1, SIZE, -1)
    call = attention(v=v)
    torch.testing.assert_close(PAG.attention(call), dense(call.q, call.k, call.v, call.scale), rtol=0, atol=1e-14)


@JOINT
@pytest.mark.parametrize("bias", BIASES)
def test_pag_in_a_joint_attention_is_dense_attention_where_the_picture_sees_text_and_itself(before, after, bias):
    call = attention(before, after, bias)
    torch.testing.assert_close(PAG.attention(call), masked(call), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("before", "after"), PLACES)
def test_pag_on_permuted_tokens_of_the_picture_is_permuted(before, after):
    call = attention(before, after)
    order = torch.arange(call.q.shape[2])
    order[call.image] = before + torch.randperm(SIZE, generator=torch.Generator().manual_seed(1))
    permuted = call_of(*(part[:, :, order] for part in (call.q, call.k, call.v)), before)
    torch.testing.assert_close(PAG.attention(permuted), PAG.attention(call)[:, :, order], rtol=0, atol=1e-14)


def test_pag_is_the_limit_of_more_and_more_weight_on_the_diagonal():
    call = attention()
    errors = []
    for strength in (10.0, 20.0, 40.0):
        soft = dense(call.q, call.k, call.v, call.scale, strength * torch.eye(SIZE, dtype=torch.float64))
        errors.append((soft - PAG.attention(call)).abs().max().item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] / errors[0] == pytest.approx(torch.e**-10, rel=0.05)  # what is left to the others falls as e^-λ
    assert errors[2] < 1e-13


@JOINT
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("elements", [1, 100, 200, 2**24])
def test_pag_does_not_depend_on_how_many_tokens_are_handled_at_once(monkeypatch, before, after, bias, elements):
    call = attention(before, after, bias)
    whole = PAG.attention(call)
    monkeypatch.setattr(base, "CHUNK_ELEMENTS", elements)
    torch.testing.assert_close(PAG.attention(call), whole, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("elements", "most"), [(1, 1), (2 * 3 * 5 * 4, 4), (2**24, SIZE)])
def test_pag_holds_no_more_logits_at_once_than_it_may(monkeypatch, elements, most):
    sizes = []
    handle = base._self_and_others
    monkeypatch.setattr(base, "CHUNK_ELEMENTS", elements)
    monkeypatch.setattr(
        base,
        "_self_and_others",
        lambda call, tokens, *others: sizes.append(tokens.stop - tokens.start) or handle(call, tokens, *others),
    )
    PAG.attention(attention(before=4))  # 2 rows, 3 heads, 4 + 1 logits for each token
    assert sum(sizes) == SIZE and max(sizes) == most


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1.0, 80.0])
def test_pag_in_half_precision_stays_near_the_exact_result_also_where_queries_and_keys_are_large(dtype, size):
    """q·k before it is scaled may lie beyond float16; fused attention kernels never form it there."""
    call = attention(before=4, dim=64, dtype=dtype)
    large = call_of(call.q * size, call.k * size, call.v, before=4)
    exact = PAG.attention(call_of(large.q.double(), large.k.double(), call.v.double(), before=4))
    out = PAG.attention(large)[:, :, 4:]
    assert out.isfinite().all()
    if size == 1.0:
        assert (out.double() - exact[:, :, 4:]).abs().max() < 8 * torch.finfo(dtype).eps

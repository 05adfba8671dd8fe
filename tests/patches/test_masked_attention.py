"""PAG's ablations: identity, off-diagonal and random mask are one operator with two settings."""

import dataclasses

import pytest
import torch
from pack.patches import IdentityAttention, MaskedAttention, base
from pack.patches.base import AttentionCall, Moment
from pack.patches.layers import Layer
from torch import Tensor

LAYERS = (Layer("middle", 0),)
SIZE = 35
PLACES = [(0, 0), (4, 0), (0, 4), (3, 2)]  # text before and after the picture
in_places = pytest.mark.parametrize(("before", "after"), PLACES)


def call_of(before=0, after=0, rows=2, heads=3, size=SIZE, dim=8, dtype=torch.float64, bias=False, **changes):
    tokens = before + size + after
    q, k, v, noise = (
        torch.randn(4, heads, tokens, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed, width in enumerate((dim, dim, dim, tokens))
    )
    q, k, v, noise = (part[:rows].to(dtype) for part in (q, k, v, noise))  # the same rows in batches of any size
    scale, bias = dim**-0.5, noise if bias else None

    def attend(queries: Tensor, which: slice) -> Tensor:
        return (queries @ k.mT * scale + (0 if bias is None else bias[..., which, :])).softmax(-1) @ v

    image = slice(before, before + size)
    call = AttentionCall(q, k, v, image, (size, 1), scale, bias, attend, "middle", Moment(seed=5, step=2))
    return dataclasses.replace(call, **changes)


def seen_by(setting: MaskedAttention, **kwargs) -> Tensor:
    """Which token each of the picture sees, [rows, heads, picture, tokens], read off values that are one-hot."""
    call = call_of(**kwargs)
    rows, heads, tokens, _ = call.k.shape
    v = torch.eye(tokens, dtype=call.v.dtype).expand(rows, heads, -1, -1)
    call = dataclasses.replace(call, q=0 * call.q, v=v, attend=lambda queries, which: v[:, :, which])
    return setting.attention(call)[:, :, call.image] > 0


# ------------------------------------------------------------------------------------------------------------ its ends


@in_places
@pytest.mark.parametrize("bias", [False, True])
def test_hiding_all_but_the_diagonal_is_pag(before, after, bias):
    call = call_of(before, after, bias=bias)
    assert torch.equal(MaskedAttention(LAYERS).attention(call), IdentityAttention(LAYERS).attention(call))


@in_places
@pytest.mark.parametrize("bias", [False, True])
def test_hiding_nearly_all_but_the_diagonal_is_pag_by_the_other_way(monkeypatch, before, after, bias):
    call = call_of(before, after, bias=bias)
    monkeypatch.setattr(torch, "rand", lambda shape, **kwargs: torch.zeros(shape))  # every draw hides
    out = MaskedAttention(LAYERS, 0.5).attention(call)
    torch.testing.assert_close(out, IdentityAttention(LAYERS).attention(call), rtol=0, atol=1e-14)


@in_places
@pytest.mark.parametrize("keep_diagonal", [True, False])
def test_hiding_nothing_is_the_attention_itself(before, after, keep_diagonal):
    call = call_of(before, after)
    plain = call.attend(call.q, slice(0, call.q.shape[2]))
    assert torch.equal(MaskedAttention(LAYERS, 0.0, keep_diagonal).attention(call), plain)
    rarely = MaskedAttention(LAYERS, 1e-12, keep_diagonal).attention(call)  # the written-out attention
    torch.testing.assert_close(rarely, plain, rtol=0, atol=1e-13)


def test_hiding_all_leaves_a_token_its_own_value_where_there_is_no_text():
    call = call_of()
    assert torch.equal(MaskedAttention(LAYERS, 1.0, keep_diagonal=False).attention(call), call.v)


@in_places
def test_hiding_all_leaves_the_picture_the_text_alone(before, after):
    call = call_of(before, after)
    out = MaskedAttention(LAYERS, 1.0, keep_diagonal=False).attention(call)
    assert out.isfinite().all()
    if call.others:
        k, v = (torch.cat([part[:, :, tokens] for tokens in call.others], 2) for part in (call.k, call.v))
        expected = (call.q[:, :, call.image] @ k.mT * call.scale).softmax(-1) @ v
        torch.testing.assert_close(out[:, :, call.image], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("ratio", [0.25, 0.9, 1.0])
@pytest.mark.parametrize("before", [0, 2])
def test_a_picture_of_few_tokens_is_never_without_a_number(size, ratio, before):
    for seed in range(20):
        setting = MaskedAttention(LAYERS, ratio, keep_diagonal=False, seed=seed)
        assert setting.attention(call_of(before, size=size)).isfinite().all()


def test_a_token_that_sees_nothing_gives_its_own_value_and_the_others_are_not_touched_by_it():
    setting = MaskedAttention(LAYERS, 0.9, keep_diagonal=False)
    call = call_of(size=4)
    drawn = seen_drawn(setting, call)
    nothing = ~drawn.any(-1)
    assert nothing.any() and not nothing.all()
    logits = (call.q @ call.k.mT * call.scale).masked_fill(~drawn, -torch.inf)
    expected = torch.where(nothing[..., None], call.v, logits.softmax(-1) @ call.v)
    torch.testing.assert_close(setting.attention(call), expected, rtol=0, atol=1e-14)


def seen_drawn(setting: MaskedAttention, call: AttentionCall) -> Tensor:
    """What `setting` draws for `call`, [rows, heads, picture, picture]."""
    generators = call.moment.generators(call.q.shape[0], call.q.device, f"{setting.seed} {call.layer}")
    return torch.stack([~setting._hidden(call, call.image, generator) for generator in generators])


# ------------------------------------------------------------------------------------------------------------ the draw


@in_places
@pytest.mark.parametrize("keep_diagonal", [True, False])
def test_it_is_dense_attention_with_what_was_drawn_hidden(before, after, keep_diagonal):
    setting = MaskedAttention(LAYERS, 0.5, keep_diagonal)
    call = call_of(before, after, bias=True)
    hidden = torch.zeros(call.bias.shape, dtype=torch.bool)
    hidden[:, :, call.image, call.image] = ~seen_drawn(setting, call)
    logits = (call.q @ call.k.mT * call.scale + call.bias).masked_fill(hidden, -torch.inf)
    torch.testing.assert_close(setting.attention(call), logits.softmax(-1) @ call.v, rtol=0, atol=1e-13)


@pytest.mark.parametrize("ratio", [0.05, 0.25, 0.7, 0.95])
@pytest.mark.parametrize("keep_diagonal", [True, False])
def test_it_hides_as_much_as_it_says_off_the_diagonal_and_on_it(ratio, keep_diagonal):
    seen = seen_by(MaskedAttention(LAYERS, ratio, keep_diagonal), before=3, rows=4, size=200)
    assert seen[..., :3].all()  # text
    diagonal = torch.eye(200, dtype=torch.bool).expand(4, 3, -1, -1)
    seen = seen[..., 3:]

    def check(part: Tensor):
        deviation = (ratio * (1 - ratio) / part.numel()) ** 0.5
        assert abs((~part).double().mean().item() - ratio) < 5 * deviation

    check(seen[~diagonal])
    if keep_diagonal:
        assert seen[diagonal].all()
    else:
        check(seen[diagonal])


def test_heads_queries_keys_rows_steps_seeds_and_layers_draw_independently():
    setting = MaskedAttention(LAYERS, 0.5)
    call = call_of(rows=2, size=200)

    def drawn(setting=setting, **changes) -> Tensor:
        return seen_drawn(setting, dataclasses.replace(call, **changes)).double() - 0.5

    first = drawn()
    pairs = {
        "rows": (first[0], first[1]),
        "heads": (first[:, 0], first[:, 1]),
        "queries": (first[:, :, 1:], first[:, :, :-1]),
        "keys": (first[..., 1:], first[..., :-1]),
        "transposed": (first, first.mT),
        "step": (first, drawn(moment=Moment(seed=5, step=3))),
        "sampling seed": (first, drawn(moment=Moment(seed=6, step=2))),
        "seed": (first, drawn(dataclasses.replace(setting, seed=1))),
        "layer": (first, drawn(layer="output.3")),
    }
    for name, (one, other) in pairs.items():
        correlation = 4 * (one * other).mean().item()
        assert abs(correlation) < 0.02, name
    assert torch.equal(first, drawn())


def test_of_the_same_draw_a_higher_ratio_hides_more():
    less, more = (seen_by(MaskedAttention(LAYERS, ratio)) for ratio in (0.3, 0.6))
    assert (less | ~more).all() and (less & ~more).any()


@in_places
@pytest.mark.parametrize("elements", [1, 500, 2**24])
def test_a_row_does_not_depend_on_how_many_are_in_the_batch(monkeypatch, before, after, elements):
    monkeypatch.setattr(base, "CHUNK_ELEMENTS", elements)
    setting = MaskedAttention(LAYERS, 0.5)
    together = setting.attention(call_of(before, after, rows=4))
    for rows in (1, 2, 3):
        torch.testing.assert_close(
            setting.attention(call_of(before, after, rows=rows)), together[:rows], rtol=0, atol=1e-14
        )


@in_places
@pytest.mark.parametrize("keep_diagonal", [True, False])
@pytest.mark.parametrize("elements", [1, 500, 1000])
def test_it_does_not_depend_on_how_many_tokens_are_handled_at_once(monkeypatch, before, after, keep_diagonal, elements):
    setting, call = MaskedAttention(LAYERS, 0.5, keep_diagonal), call_of(before, after, bias=True)
    whole = setting.attention(call)
    monkeypatch.setattr(base, "CHUNK_ELEMENTS", elements)
    torch.testing.assert_close(setting.attention(call), whole, rtol=0, atol=1e-14)


def test_it_holds_no_more_logits_at_once_than_it_may(monkeypatch):
    sizes, masked = [], MaskedAttention._masked

    def counting(self, call, row, tokens, generator):
        sizes.append(tokens.stop - tokens.start)
        return masked(self, call, row, tokens, generator)

    monkeypatch.setattr(MaskedAttention, "_masked", counting)
    monkeypatch.setattr(base, "CHUNK_ELEMENTS", 3 * 39 * 10)  # heads · keys · queries
    MaskedAttention(LAYERS, 0.5).attention(call_of(before=4))
    assert max(sizes) == 10 and sum(sizes) == 2 * SIZE


def test_the_global_draws_are_left_alone():
    state = torch.random.get_rng_state()
    MaskedAttention(LAYERS, 0.5).attention(call_of(before=4))
    assert torch.equal(torch.random.get_rng_state(), state)


# ------------------------------------------------------------------------------------------------ numbers and settings


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1.0, 80.0])
def test_half_precision_stays_near_the_exact_result_also_where_queries_and_keys_are_large(dtype, size):
    call = call_of(before=4, dim=64, dtype=dtype)
    large = dataclasses.replace(call, q=call.q * size, k=call.k * size)
    setting = MaskedAttention(LAYERS, 0.5)
    out = setting.attention(large)[:, :, 4:]
    assert out.dtype == dtype and out.isfinite().all()
    if size == 1.0:
        exact = {name: getattr(large, name).double() for name in "qkv"}
        exact = setting.attention(dataclasses.replace(large, attend=lambda queries, which: queries, **exact))[:, :, 4:]
        assert (out.double() - exact).abs().max() < 8 * torch.finfo(dtype).eps


def test_settings_out_of_range_are_refused():
    for ratio in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"ratio is .*; it must be a number from 0 to 1"):
            MaskedAttention(LAYERS, ratio)
    with pytest.raises(ValueError, match="seed is -1"):
        MaskedAttention(LAYERS, seed=-1)

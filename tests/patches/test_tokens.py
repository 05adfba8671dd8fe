"""TPG and SSG: which tokens change places, on tokens that are counted by hand."""

import pytest
import torch
from pack.patches import ShuffledTokens, SwappedTokens, swapped_tokens
from pack.patches.base import Moment, TokenCall
from pack.patches.layers import Layer
from pack.patches.swapped_tokens import least_alike

LAYERS = (Layer("middle", 0),)


def call_of(tokens: torch.Tensor, layer="middle", **moment) -> TokenCall:
    return TokenCall(tokens, layer, Moment(**moment))


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def numbered(rows: int, count: int) -> torch.Tensor:
    """Tokens that tell their place."""
    return torch.arange(count, dtype=torch.float64)[None, :, None].expand(rows, count, 2).clone()


# -------------------------------------------------------------------------------------------------------------- TPG


def shuffled(tokens: torch.Tensor, layer="middle", **moment) -> torch.Tensor:
    return ShuffledTokens(LAYERS).tokens(call_of(tokens, layer, **moment))


def test_every_token_is_there_once_and_almost_all_have_moved():
    found = shuffled(numbered(3, 64))[..., 0]
    assert torch.equal(found.sort(1).values, numbered(3, 64)[..., 0])
    assert (found != numbered(3, 64)[..., 0]).sum(1).min() > 50


def test_the_places_belong_to_seed_step_sample_and_layer_and_to_nothing_else():
    tokens = numbered(3, 64)
    found = shuffled(tokens, seed=1, step=2)
    assert torch.equal(shuffled(tokens, seed=1, step=2), found)
    assert torch.equal(shuffled(tokens[:1], seed=1, step=2), found[:1])  # alone in its batch
    for other in (shuffled(tokens, seed=2, step=2), shuffled(tokens, seed=1, step=3)):
        assert not torch.equal(other, found)
    assert not torch.equal(shuffled(tokens, "input.4", seed=1, step=2), found)
    assert not torch.equal(found[0], found[1])


# -------------------------------------------------------------------------------------------------------------- SSG


def by_the_authors(tokens: torch.Tensor, share: float) -> torch.Tensor:
    """Self-Swap as written: all pairs at once, and two scatters in which the last write holds."""
    rows, count, _ = tokens.shape
    unit = torch.nn.functional.normalize(tokens.float(), dim=2)
    i, j = torch.triu_indices(count, count, offset=1)
    _, least = (unit @ unit.mT)[:, i, j].topk(int(count * share), dim=1, largest=False)
    out = []
    for row in range(rows):
        places = list(range(count))
        for pair in least[row].tolist():
            places[i[pair]] = int(j[pair])
        for pair in least[row].tolist():
            places[j[pair]] = int(i[pair])
        out.append(tokens[row, places])
    return torch.stack(out)


@pytest.mark.parametrize("share", [0.1, 0.3, 1.0])
def test_it_is_the_authors_swap_of_tokens_and_then_of_channels(share):
    tokens = random(3, 40, 24)
    expected = by_the_authors(by_the_authors(tokens, share).mT, share).mT
    assert torch.equal(SwappedTokens(LAYERS, share).tokens(call_of(tokens)), expected)


def test_pairs_found_piece_by_piece_are_those_found_at_once(monkeypatch):
    vectors = random(37, 8)
    whole = least_alike(vectors, 30)
    monkeypatch.setattr(swapped_tokens, "CHUNK_ELEMENTS", 5 * 37)
    for found, expected in zip(least_alike(vectors, 30), whole, strict=True):
        assert torch.equal(found, expected)


def test_a_token_that_points_the_other_way_changes_places_with_what_it_is_least_like():
    tokens = torch.ones(1, 10, 6, dtype=torch.float64) + 0.01 * random(1, 10, 6)
    tokens[0, 7] = -tokens[0, 2]
    found = SwappedTokens(LAYERS, 0.1).tokens(call_of(tokens))
    moved = [
        token
        for token in range(10)
        if not torch.allclose(found[0, token].sort().values, tokens[0, token].sort().values)
    ]
    assert moved == [2, 7]


def test_no_share_is_neutral_and_a_small_one_of_few_tokens_swaps_none():
    assert SwappedTokens(LAYERS, 0.0).neutral and not SwappedTokens(LAYERS).neutral
    tokens = random(2, 5, 6)
    assert torch.equal(SwappedTokens(LAYERS, 0.1).tokens(call_of(tokens)), tokens)


def test_a_sample_alone_is_that_sample_in_a_batch():
    tokens = random(3, 40, 24)
    together = SwappedTokens(LAYERS, 0.2).tokens(call_of(tokens))
    for row in range(3):
        assert torch.equal(SwappedTokens(LAYERS, 0.2).tokens(call_of(tokens[row : row + 1])), together[row : row + 1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_dtype_stays_and_zeros_make_no_nan(dtype):
    zeros = torch.zeros(2, 30, 20, dtype=dtype)
    for method in (ShuffledTokens(LAYERS), SwappedTokens(LAYERS)):
        found = method.tokens(call_of(zeros))
        assert found.dtype == dtype and torch.equal(found, zeros)

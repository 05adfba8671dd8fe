"""What the paper of SEG says of the blur, where it is exact, and where the authors' own border breaks it."""

import dataclasses
import itertools
import math

import pytest
import torch
from pack.patches import BlurredQuery
from pack.patches.base import AttentionCall
from pack.patches.blurred_query import blur_matrix
from pack.patches.layers import Layer
from torch import Tensor

LAYERS = (Layer("middle", 0),)
GRIDS = [(64, 32), (32, 64), (13, 19), (24, 38), (1, 7), (1, 1), (2, 2), (3, 5, 4)]
PADDINGS = ("symmetric", "reflect")
SIGMAS = (0.3, 1.0, 3.0, 10.0, 100.0)

on_grids = pytest.mark.parametrize("grid", GRIDS, ids=str)
on_paddings = pytest.mark.parametrize("padding", PADDINGS)
at_sigmas = pytest.mark.parametrize("sigma", SIGMAS)


def random(*shape, seed=0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def call_of(grid, before=0, after=0, bias=None, dtype=torch.float64, q=None, asked=None, heads=2, dim=4):
    """A self-attention of `before` text, a picture, and `after` text. `asked` gets the queries that are attended with."""
    tokens = before + math.prod(grid) + after
    q, k, v = (random(2, heads, tokens, dim, seed=seed).to(dtype) if seed or q is None else q for seed in range(3))
    scale = dim**-0.5

    def attend(queries: Tensor, which: slice) -> Tensor:
        if asked is not None:
            asked.append(queries.shape[2])
        part = 0 if bias is None else bias.expand(*bias.shape[:-2], tokens, tokens)[..., which, :]
        return (queries @ k.mT * scale + part).softmax(-1) @ v

    image = slice(before, tokens - after)
    return AttentionCall(q, k, v, image, grid, scale, bias, attend, "middle", None)


def blur(q: Tensor, grid, sigma: float, padding="symmetric") -> Tensor:
    call = call_of(grid, q=q, dtype=q.dtype, dim=q.shape[-1])
    return BlurredQuery(LAYERS, sigma, padding)._blurred(q, call)


def everywhere(grid, sigma, padding="symmetric") -> Tensor:
    """The whole blur as one matrix [tokens, tokens]."""
    matrices = [blur_matrix(n, sigma, padding, torch.float64, torch.device("cpu")) for n in grid]
    whole = torch.ones(1, 1, dtype=torch.float64)
    for matrix in matrices:
        whole = torch.kron(whole, matrix)
    return whole


# -------------------------------------------------------------------------------------------------------- the equation


@on_grids
@on_paddings
@at_sigmas
def test_blurred_queries_give_the_blurred_logits(grid, padding, sigma):
    q, k = random(1, 2, math.prod(grid), 4), random(1, 2, 20, 4, seed=1)
    of_logits = everywhere(grid, sigma, padding) @ (q @ k.mT)
    torch.testing.assert_close(blur(q, grid, sigma, padding) @ k.mT, of_logits, rtol=0, atol=1e-12)


@on_paddings
@pytest.mark.parametrize("sigma", [1.0, 100.0])
def test_so_do_those_of_a_large_wide_picture(padding, sigma):
    grid = (96, 152)
    q, k = random(1, 1, 96 * 152, 4), random(1, 1, 10, 4, seed=1)
    down, across = (blur_matrix(n, sigma, padding, torch.float64, torch.device("cpu")) for n in grid)
    logits = torch.tensordot(down, (q @ k.mT).reshape(96, 152, 10), ([1], [0]))
    of_logits = torch.tensordot(across, logits, ([1], [1])).transpose(0, 1).reshape(1, 1, -1, 10)
    torch.testing.assert_close(blur(q, grid, sigma, padding) @ k.mT, of_logits, rtol=0, atol=1e-12)


@on_paddings
@pytest.mark.parametrize(("before", "after"), [(0, 0), (4, 0), (0, 4), (3, 2)])
def test_only_the_logits_of_the_pictures_queries_are_blurred(padding, before, after):
    grid = (5, 7)
    call = call_of(grid, before, after)
    logits = call.q @ call.k.mT * call.scale
    logits[:, :, call.image] = everywhere(grid, 2.0, padding) @ logits[:, :, call.image]
    out = BlurredQuery(LAYERS, 2.0, padding).attention(call)
    torch.testing.assert_close(out, logits.softmax(-1) @ call.v, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [None, "of keys", "of pairs"])
@pytest.mark.parametrize("sigma", [-1.0, 2.0])
def test_a_bias_of_the_host_is_added_to_the_blurred_logits(bias, sigma):
    grid, before = (3, 5), 4
    bias = {None: None, "of keys": random(1, 1, 1, 19, seed=5), "of pairs": random(2, 1, 19, 19, seed=5)}[bias]
    call = call_of(grid, before, bias=bias)
    whole = torch.full((15, 15), 1 / 15, dtype=torch.float64) if sigma < 0 else everywhere(grid, sigma)
    q = call.q.clone()
    q[:, :, before:] = whole @ q[:, :, before:]
    expected = (q @ call.k.mT * call.scale + (0 if bias is None else bias)).softmax(-1) @ call.v
    torch.testing.assert_close(BlurredQuery(LAYERS, sigma).attention(call), expected, rtol=0, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------- the limits


@pytest.mark.parametrize("before", [0, 4])
def test_without_blur_it_is_the_attention_itself(before):
    call = call_of((5, 7), before)
    plain = call.attend(call.q, slice(0, call.q.shape[2]))
    assert torch.equal(BlurredQuery(LAYERS, 0.0).attention(call), plain)
    assert torch.equal(BlurredQuery(LAYERS, 0.0).attention(dataclasses.replace(call, grid=None)), plain)


@on_grids
@on_paddings
@pytest.mark.parametrize("sigma", [1e-300, 0.02, 0.1])
def test_a_narrow_enough_blur_is_none(grid, padding, sigma):
    q = random(2, 2, math.prod(grid), 4)
    torch.testing.assert_close(blur(q, grid, sigma, padding), q, rtol=0, atol=1e-14)


@on_grids
@pytest.mark.parametrize("sigma", [1000.0, 9999.0])
def test_a_wide_symmetric_blur_is_the_infinite_one(grid, sigma):
    call = call_of(grid, before=3)
    wide, infinite = (BlurredQuery(LAYERS, s).attention(call) for s in (sigma, -1.0))
    torch.testing.assert_close(wide, infinite, rtol=0, atol=1e-14)


def test_a_wide_reflecting_blur_is_not_the_infinite_one_and_stops_widening():
    q = random(1, 1, 256, 64)
    wide, wider = (blur(q, (16, 16), sigma, "reflect") for sigma in (1000.0, 9999.0))
    torch.testing.assert_close(wide, wider, rtol=0, atol=1e-4)
    assert 0.05 < (wide - q.mean(2, keepdim=True)).std() < 0.07


@pytest.mark.parametrize("before", [0, 4])
def test_an_infinite_blur_asks_once_for_all_tokens_of_the_picture(before):
    asked = []
    call = call_of((5, 7), before, asked=asked)
    out = BlurredQuery(LAYERS).attention(call)[:, :, before:]
    assert asked == ([before] if before else []) + [1]
    assert torch.equal(out, out[:, :, :1].expand_as(out))


@pytest.mark.parametrize(("tokens", "queries"), [(1, 1), (39, 35)], ids=["one for all queries", "for each query"])
def test_a_bias_that_differs_between_queries_is_given_to_each_of_them(tokens, queries):
    asked = []
    call = call_of((5, 7), before=4, bias=random(1, 1, tokens, 39), asked=asked)
    BlurredQuery(LAYERS).attention(call)
    assert asked == [4, queries]


def test_an_infinite_blur_needs_no_grid_and_a_finite_one_says_that_it_does():
    call = call_of((5, 7))
    without = dataclasses.replace(call, grid=None)
    assert torch.equal(BlurredQuery(LAYERS).attention(without), BlurredQuery(LAYERS).attention(call))
    with pytest.raises(ValueError, match=r"SEG: the tokens of middle are no picture.*blur_sigma to -1"):
        BlurredQuery(LAYERS, 2.0).attention(without)


# ------------------------------------------------------------------------------------------------------------ the blur


@pytest.mark.parametrize("grid", [*GRIDS, (96, 152)], ids=str)
@pytest.mark.parametrize("sigma", [*SIGMAS, 9999.0])
def test_the_symmetric_blur_keeps_the_mean(grid, sigma):
    for n in grid:
        matrix = blur_matrix(n, sigma, "symmetric", torch.float64, torch.device("cpu"))
        for axis in (0, 1):  # what each token gives, what each is made of
            assert (matrix.sum(axis) - 1).abs().max() < 1e-15
        torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=2e-16)
    q = random(1, 1, math.prod(grid), 4)
    change = (blur(q, grid, sigma).sum(2) - q.sum(2)).abs().max().item()
    assert change < 4e-15 * math.prod(grid)  # a few roundings of each token, two products' among them


def test_the_reflecting_blur_does_not_keep_the_mean():
    q = random(1, 1, 256, 64)
    for sigma in (1.0, 10.0, 100.0):
        assert (blur(q, (16, 16), sigma, "reflect").mean(2) - q.mean(2)).abs().max() > 1e-2


@on_grids
@on_paddings
@pytest.mark.parametrize("sigma", [*SIGMAS, 9999.0])
def test_what_is_the_same_everywhere_stays(grid, padding, sigma):
    q = random(2, 2, 1, 4).expand(-1, -1, math.prod(grid), -1)
    torch.testing.assert_close(blur(q, grid, sigma, padding), q, rtol=0, atol=1e-14)


@pytest.mark.parametrize("grid", [(64, 32), (13, 19), (3, 5, 4)], ids=str)
def test_the_wider_the_symmetric_blur_the_less_is_left_of_every_pattern(grid):
    """In the blur's own basis, the cosines that are even about both edges, every pattern but the mean fades with σ."""
    fades = [torch.linalg.eigvalsh(everywhere_on(grid[0], sigma)) for sigma in (0.3, 0.5, 1.0, 2.0, 4.0, 8.0)]
    for less, more in itertools.pairwise(fades):
        assert (more <= less + 1e-14).all() and more.min() > -1e-14
    q = random(1, 1, math.prod(grid), 16)
    left = [blur(q, grid, sigma).var(2).mean().item() for sigma in (0.3, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)]
    assert left == sorted(left, reverse=True) and left[0] < q.var(2).mean() and len(set(left)) == len(left)


def everywhere_on(n: int, sigma: float) -> Tensor:
    return blur_matrix(n, sigma, "symmetric", torch.float64, torch.device("cpu"))


@on_paddings
@at_sigmas
@pytest.mark.parametrize("grid", [(64, 32), (13, 19)], ids=str)
def test_the_transposed_picture_is_blurred_to_the_transposed_one(grid, padding, sigma):
    q = random(1, 2, *grid, 4)
    across = blur(q.transpose(2, 3).flatten(2, 3), grid[::-1], sigma, padding)
    along = blur(q.flatten(2, 3), grid, sigma, padding)
    torch.testing.assert_close(across.unflatten(2, grid[::-1]).transpose(2, 3).flatten(2, 3), along, rtol=0, atol=1e-14)


@on_paddings
@pytest.mark.parametrize("axis", [2, 3, 4])
def test_the_mirrored_picture_is_blurred_to_the_mirrored_one_in_time_and_space(padding, axis):
    grid = (3, 5, 4)
    q = random(1, 2, *grid, 4)
    mirrored = blur(q.flip(axis).flatten(2, 4), grid, 1.5, padding).unflatten(2, grid).flip(axis)
    torch.testing.assert_close(mirrored.flatten(2, 4), blur(q.flatten(2, 4), grid, 1.5, padding), rtol=0, atol=1e-14)


def padded_and_convolved(x: Tensor, sigma: float, size: int, mode: str) -> Tensor:
    """One axis, [batch, 1, n], with the border laid around it."""
    reach = size // 2
    kernel = torch.exp(-((torch.arange(-reach, reach + 1).double() / sigma) ** 2) / 2)
    padded = torch.nn.functional.pad(x, (reach, reach), mode=mode) if mode == "reflect" else tiled(x, reach)
    return torch.nn.functional.conv1d(padded, (kernel / kernel.sum())[None, None])


def tiled(x: Tensor, reach: int) -> Tensor:
    """x and its mirror images, as often as it takes to reach so far on both sides."""
    n = x.shape[-1]
    times = -(-reach // (2 * n))
    row = torch.cat([x, x.flip(-1)] * (2 * times + 1), -1)
    return row[..., 2 * n * times - reach : 2 * n * times + n + reach]


@pytest.mark.parametrize(
    ("n", "sigma", "size"), [(16, 1.0, 7), (16, 10.0, 17), (13, 100.0, 13), (13, 2.0, 13), (8, 0.1, 1)]
)
def test_reflect_is_the_convolution_with_the_authors_kernel_and_border(n, sigma, size):
    x = random(5, 1, n)
    ours = blur(x[:, :, :, None], (1, n), sigma, "reflect")[..., 0]
    torch.testing.assert_close(ours, padded_and_convolved(x, sigma, size, "reflect"), rtol=0, atol=1e-14)


@pytest.mark.parametrize("n", [1, 2, 7, 16])
@at_sigmas
def test_symmetric_is_the_convolution_with_a_kernel_that_is_never_cut_off(n, sigma):
    x = random(5, 1, n)
    ours = blur(x[:, :, :, None], (1, n), sigma)[..., 0]
    size = 2 * math.ceil(9 * sigma) + 1
    torch.testing.assert_close(ours, padded_and_convolved(x, sigma, size, "symmetric"), rtol=0, atol=1e-13)


# ------------------------------------------------------------------------------------------------ numbers and settings


@on_paddings
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sigma", [1.0, 10.0, 100.0])
def test_half_queries_are_rounded_once_and_do_not_shrink(padding, dtype, sigma):
    q = (random(1, 2, 96 * 40, 8) + 3).to(dtype)
    exact = blur(q.double(), (96, 40), sigma, padding)
    torch.testing.assert_close(blur(q, (96, 40), sigma, padding), exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_mean_of_many_large_half_queries_is_exact(dtype):
    call = call_of((64, 64), dtype=dtype, q=(random(2, 2, 4096, 4) + 100).to(dtype), heads=2)
    seen = []
    attend = lambda queries, which: seen.append(queries) or call.attend(queries, which)  # noqa: E731
    BlurredQuery(LAYERS).attention(dataclasses.replace(call, attend=attend))
    assert torch.equal(seen[0], call.q.double().mean(2, keepdim=True).to(dtype))


def test_a_matrix_made_under_inference_can_be_used_where_gradients_are_wanted():
    blur_matrix.cache_clear()
    with torch.inference_mode():
        blur(random(1, 1, 35, 4), (5, 7), 1.25)
    q = random(1, 1, 35, 4).requires_grad_()
    blur(q, (5, 7), 1.25).sum().backward()
    torch.testing.assert_close(q.grad, torch.ones_like(q), rtol=0, atol=1e-14)  # the mean is kept


def test_a_matrix_is_made_once():
    blur_matrix.cache_clear()
    for _ in range(3):
        blur(random(1, 1, 35, 4), (5, 7), 2.0)
    assert (blur_matrix.cache_info().misses, blur_matrix.cache_info().hits) == (2, 4)


@pytest.mark.parametrize("sigma", [-2.0, -0.5, -1.0001, 10000.0, math.nan, math.inf, -math.inf])
def test_a_blur_that_means_nothing_is_refused(sigma):
    with pytest.raises(ValueError, match=r"blur_sigma is .*; it must be a number from"):
        BlurredQuery(LAYERS, sigma)


def test_settings_that_mean_something_are_taken_and_a_border_that_is_not_known_is_refused():
    for sigma in (-1, -1.0, 0, -0.0, 0.5, 9999):
        BlurredQuery(LAYERS, sigma)
    with pytest.raises(ValueError, match='padding is "circular"; it must be one of symmetric, reflect'):
        BlurredQuery(LAYERS, 1.0, "circular")
    with pytest.raises(ValueError, match=r"blur_sigma is -2.0; it must be a number from 0 to 9999, or -1 for infinite"):
        BlurredQuery(LAYERS, -2.0)

"""What is reduced stays inside one sample and one modality, whatever the rank, and is a number for any numbers."""

import math

import pytest
import torch
from pack.guiders.linalg import dot, in_shape, norm, per_sample, project, std

REDUCTIONS = pytest.mark.parametrize(
    "reduce",
    [
        lambda x, y, shapes=(): std(x, shapes=shapes),
        lambda x, y, shapes=(): norm(x, shapes=shapes),
        lambda x, y, shapes=(): dot(x, y, shapes=shapes),
        lambda x, y, shapes=(): project(x, y, shapes)[0],
        lambda x, y, shapes=(): project(x, y, shapes)[1],
    ],
    ids=["std", "norm", "dot", "parallel", "orthogonal"],
)
SPATIAL = pytest.mark.parametrize("spatial", [(), (7,), (6, 5), (3, 4, 5)], ids=lambda spatial: f"{len(spatial)}-D")
PICTURE, SOUND = (1, 8, 2, 3, 4), (1, 4, 9)  # a packed latent's shapes, as the host gives them
SHAPES = (PICTURE, SOUND)


def latents(*shape: int, dtype=torch.float64, count: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def pack(*parts: torch.Tensor) -> torch.Tensor:
    """As the host does: [batch, 1, n]."""
    return torch.cat([part.reshape(len(part), 1, -1) for part in parts], -1)


# ---------------------------------------------------------------------------------------------------- what they are


@SPATIAL
def test_they_are_those_of_each_samples_numbers_as_one_vector(spatial):
    x, y = latents(3, 4, *spatial)
    axes = (slice(None), *(None,) * (x.ndim - 1))
    a, b = x.flatten(1), y.flatten(1)
    expected = {std: a.std(-1, correction=0), norm: a.norm(dim=-1)}
    for reduce, value in expected.items():
        torch.testing.assert_close(reduce(x), value[axes], rtol=1e-14, atol=0)
    torch.testing.assert_close(dot(x, y), (a * b).sum(-1)[axes], rtol=0, atol=1e-13)
    assert per_sample(x) == tuple(range(1, x.ndim))


@SPATIAL
def test_a_vector_is_the_sum_of_a_part_along_another_and_a_part_at_right_angles_to_it(spatial):
    direction, onto = latents(3, 4, *spatial)
    parallel, orthogonal = project(direction, onto)
    torch.testing.assert_close(parallel + orthogonal, direction, rtol=0, atol=1e-15)
    torch.testing.assert_close(parallel, dot(direction, onto) / norm(onto) ** 2 * onto, rtol=0, atol=1e-14)
    assert (dot(orthogonal, onto) / norm(direction) / norm(onto)).abs().max() < 1e-15
    torch.testing.assert_close(norm(parallel) ** 2 + norm(orthogonal) ** 2, norm(direction) ** 2, rtol=1e-14, atol=0)


def test_what_looks_at_neighbours_gets_each_modality_in_its_own_shape():
    picture, sound = latents(2, *PICTURE[1:], count=1)[0], latents(2, *SOUND[1:], count=1)[0]
    shown = []

    def flipped(x, y):
        shown.append(x.shape)
        return x.flip(-1) + y

    packed = pack(picture, sound)
    found = in_shape(flipped, packed, packed, shapes=SHAPES)
    assert shown == [picture.shape, sound.shape]
    assert torch.equal(found, pack(picture.flip(-1) + picture, sound.flip(-1) + sound))
    assert torch.equal(in_shape(flipped, picture, picture), picture.flip(-1) + picture)


def test_a_projection_knows_the_others_direction_and_not_its_length():
    direction, onto = latents(3, 4, 6, 5)
    for factor in (-1.0, 2.0**-100, 2.0**100):
        assert torch.equal(project(direction, factor * onto)[0], project(direction, onto)[0])


def test_a_projection_of_a_projection_is_itself_and_what_is_parallel_has_no_other_part():
    direction, onto = latents(3, 4, 6, 5)
    parallel, orthogonal = project(direction, onto)
    torch.testing.assert_close(project(parallel, onto)[0], parallel, rtol=0, atol=1e-15)
    torch.testing.assert_close(project(orthogonal, onto)[0], torch.zeros_like(onto), rtol=0, atol=1e-15)


# ----------------------------------------------------------------------------------------- samples and modalities


@REDUCTIONS
@SPATIAL
def test_a_sample_alone_is_that_sample_in_a_batch(reduce, spatial):
    x, y = latents(3, 4, *spatial)
    for row in range(3):
        assert torch.equal(reduce(x[row : row + 1], y[row : row + 1]), reduce(x, y)[row : row + 1])


@REDUCTIONS
@SPATIAL
def test_another_sample_changes_no_bit_of_ones_own(reduce, spatial):
    x, y = latents(3, 4, *spatial)
    before = reduce(x, y)
    x, y = x.clone(), y.clone()
    x[1], y[1] = 1e6 * x[1], math.nan
    assert torch.equal(reduce(x, y)[[0, 2]], before[[0, 2]])


@REDUCTIONS
@pytest.mark.parametrize("batch", [1, 3])
def test_a_packed_latent_is_reduced_as_its_parts_are_alone(reduce, batch):
    (a, c), (b, d) = latents(batch, *PICTURE[1:]), latents(batch, *SOUND[1:])
    result = reduce(pack(a, 100 * b), pack(c, d), SHAPES)
    assert result.shape == (batch, 1, 8 * 2 * 3 * 4 + 4 * 9)
    alone = [reduce(a, c).expand_as(a), reduce(100 * b, d).expand_as(b)]
    torch.testing.assert_close(result, pack(*alone), rtol=1e-14, atol=1e-14)


@REDUCTIONS
def test_another_modality_changes_no_bit_of_ones_own(reduce):
    (a, c), (b, d) = latents(2, *PICTURE[1:]), latents(2, *SOUND[1:])
    before, cut = reduce(pack(a, b), pack(c, d), SHAPES), math.prod(PICTURE)
    after = reduce(pack(a, b * math.nan), pack(c, 1e6 * d), SHAPES)
    assert torch.equal(after[..., :cut], before[..., :cut])
    after = reduce(pack(1e6 * a, b), pack(c * math.nan, d), SHAPES)
    assert torch.equal(after[..., cut:], before[..., cut:])


@REDUCTIONS
@pytest.mark.parametrize("shapes", [(), ((1, 4, 6, 5),), ((3, 4, 6, 5),)], ids=["none", "one", "batch"])
def test_no_shape_and_one_shape_are_a_latent_that_is_not_packed(reduce, shapes):
    x, y = latents(3, 4, 6, 5)
    assert torch.equal(reduce(x, y, shapes), reduce(x, y))


# -------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_numbers_are_float32_at_least_and_vectors_of_the_dtype_that_came(dtype):
    x, y = latents(2, 4, 6, 5, dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    assert {std(x).dtype, norm(x).dtype, dot(x, y).dtype} == {wide}
    assert {part.dtype for part in project(x, y)} == {dtype}
    torch.testing.assert_close(norm(x), norm(x.double()).to(wide), rtol=1e-6, atol=0)
    torch.testing.assert_close(std(x), std(x.double()).to(wide), rtol=1e-6, atol=0)
    for part, expected in zip(project(x, y), project(x.double(), y.double()), strict=True):
        torch.testing.assert_close(part, expected.to(dtype), rtol=0, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("size", ["huge", "tiny"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_huge_and_tiny_numbers_are_numbers_like_others(dtype, size):
    x, y = latents(2, 4, 6, 5, dtype=dtype)
    info = torch.finfo(dtype)
    scale = 2.0 ** (math.frexp(info.max)[1] - 8 if size == "huge" else math.frexp(info.tiny / info.eps)[1])
    assert torch.equal(norm(x * scale) / scale, norm(x))
    assert torch.equal(std(x * scale) / scale, std(x))
    for part, expected in zip(project(x * scale, y * scale), project(x, y), strict=True):
        torch.testing.assert_close(part / scale, expected, rtol=0, atol=info.eps**2)  # what subnormal numbers leave


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_a_zero_vector_gives_zeros(dtype):
    x, zero = latents(2, 4, 6, 5, dtype=dtype)[0], torch.zeros(2, 4, 6, 5, dtype=dtype)
    for value in (std(zero), norm(zero), dot(x, zero), dot(zero, x), *project(zero, x), project(x, zero)[0]):
        assert torch.equal(value, torch.zeros_like(value))
    assert torch.equal(project(x, zero)[1], x)
    packed = pack(zero, x)
    assert torch.equal(project(packed, packed, ((1, 4, 6, 5),) * 2)[0][..., :120], pack(zero))


@pytest.mark.parametrize("value", [0.1, -1e30, 1e-30])
def test_equal_numbers_have_no_spread_at_all(value):
    assert torch.equal(std(torch.full((2, 4, 7, 9), value)), torch.zeros(2, 1, 1, 1))
    assert torch.equal(std(torch.full((2, 1), value)), torch.zeros(2, 1))  # one number: not a NaN


def test_what_was_given_is_not_changed():
    x, y = latents(2, 4, 6, 5)
    copies = x.clone(), y.clone()
    std(x), norm(x), dot(x, y), project(x, y)
    assert torch.equal(x, copies[0]) and torch.equal(y, copies[1])

"""What is concluded from probes, on networks of a few lines that need no host: a token is a patch of the latent."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from pack.patches.discovery import Change, NotProven, Probe, SeenAttention, discover, pictures_at_a_glance
from torch.nn.functional import pad


class Toy(torch.nn.Module):
    """Blocks whose queries, keys and values are [beside, patches of the latent, beside]."""

    def __init__(self, patch, before=0, after=0, across=0, blocks=3, wraps=False, transposed=False, prefix=0):
        super().__init__()
        self.patch, self.before, self.after, self.across, self.prefix = patch, before, after, across, prefix
        self.wraps, self.transposed = wraps, transposed
        self.blocks = torch.nn.ModuleList(torch.nn.Identity() for _ in range(blocks))

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, channels, *spatial] → [rows, tokens, channels]"""
        channels, x = x.shape[1], x.flatten(0, 1)
        for axis, size in enumerate(self.patch, 1):
            if missing := -x.shape[axis] % size:
                more = x.narrow(axis, 0, missing)
                x = torch.cat([x, more if self.wraps else torch.zeros_like(more)], axis)
        for axis, size in enumerate(self.patch, 1):
            x = x.unflatten(axis, (-1, size)).movedim(axis + 1, -1)
        x = x.flatten(1 + len(self.patch)) @ torch.arange(1.0, 1 + math.prod(self.patch))  # [rows, *grid]
        x = x.mT if self.transposed else x
        x = pad(x, (0, self.across), value=7.0).flatten(1)  # tokens of another picture after each line
        return pad(x, (self.before, self.after), value=3.0).unflatten(0, (-1, channels)).mT

    def run(self, spatial: tuple[int, ...], mixed: float = 0.0):
        """discovery.Run of this network. mixed: how much of each row gets into the others."""
        x, other = (torch.randn(4, *spatial, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))

        def probe(change: Change) -> Probe:
            changed = x if change.cells is None else torch.where(change.cells, other, x)
            changed = changed.roll(1, -1) if change.rolled else changed
            rows = torch.stack([x] if change.alone else [x, changed])
            q = self.tokens(rows + mixed * rows.mean(0))
            k = pad(q, (0, 0, self.prefix, 0), value=5.0)
            names = [f"blocks.{at}" for at in range(len(self.blocks))]
            return Probe([SeenAttention(("", name), (name,), len(rows), q, k, k) for name in names])

        return probe


def found(toy: Toy, *spatial: int):
    return discover(toy, spatial, toy.run(spatial))


@pytest.mark.parametrize(("patch", "spatial"), [
    ((1, 1), (5, 7)), ((2, 2), (6, 10)), ((2, 2), (7, 9)), ((4, 4), (18, 30)), ((16, 16), (64, 80)),
    ((1, 2, 2), (3, 8, 12)), ((2, 2, 2), (5, 8, 12)), ((4, 1, 1), (9, 5, 6)), ((1,), (40,)), ((4,), (50,)),
])  # fmt: skip
@pytest.mark.parametrize("wraps", [False, True])
def test_the_grid_is_that_of_the_networks_patches(patch, spatial, wraps):
    one, *_ = found(Toy(patch, wraps=wraps), *spatial).found.values()
    assert one.grid == tuple(-(-side // size) for side, size in zip(spatial, patch, strict=True))
    assert set(one.calls.values()) == {0}


@pytest.mark.parametrize(("before", "after", "across", "prefix"), itertools.product((0, 5), (0, 3), (0, 4), (0, 6)))
def test_the_picture_is_where_the_network_has_it(before, after, across, prefix):
    layer, *_ = (network := found(Toy((2, 2), before, after, across, prefix=prefix), 12, 20)).found
    one, tokens = network.found[layer], 6 * (10 + across) + before + after
    assert (one.grid, one.across, one.prefix) == ((6, 10), across, prefix)
    assert one.calls == {(tokens, tokens + prefix): before}
    layout = network.layout(None, None, None, layer)
    image = layout.image(tokens, tokens + prefix, 0)
    order = layout.order(image, tokens, torch.device("cpu"))
    order = torch.arange(tokens) if order is None else order
    lines = [before + line * (10 + across) + column for line in range(6) for column in range(10)]
    assert order[image].tolist() == lines and sorted(order.tolist()) == [*range(tokens)]
    with pytest.raises(LookupError, match=f"^{tokens + 1} queries and {tokens + 1} keys were not seen"):
        layout.image(tokens + 1, tokens + 1, 0)


@pytest.mark.parametrize(("toy", "spatial", "step"), [
    (Toy((2, 2), transposed=True), (12, 20), "grid"),
    (Toy((3, 3)), (12, 18), "grid"),
    (Toy((2, 4)), (12, 24), "grid"),
])  # fmt: skip
def test_a_grid_that_nobody_foretells_is_refused(toy, spatial, step):
    with pytest.raises(NotProven) as error:
        found(toy, *spatial)
    assert error.value.step == step


def test_a_square_of_tokens_in_columns_is_not_taken_for_one_in_lines():
    assert found(Toy((2, 2)), 16, 16).found
    with pytest.raises(NotProven, match="no grid foretells"):
        found(Toy((2, 2), transposed=True), 16, 16)


@pytest.mark.parametrize("mixed", [1e-4, 1e-2, 0.5])
def test_rows_that_depend_on_one_another_are_refused_where_it_is_more_than_rounding(mixed):
    toy = Toy((2, 2))
    with pytest.raises(NotProven) as error:
        discover(toy, (12, 20), toy.run((12, 20), mixed))
    assert error.value.step == "rows"


def test_one_probe_shows_where_the_picture_is():
    toy = Toy((2, 2), before=5, after=3)
    seen = pictures_at_a_glance(toy, (12, 20), toy.run((12, 20)))
    assert [tokens for _, tokens in seen] == [[*range(5, 65)]] * 3


def test_tokens_in_one_row_are_a_set_where_a_move_of_the_latent_moves_them():
    assert found(Toy((1,)), 40).is_set
    assert not found(Toy((4,)), 40).is_set


@pytest.mark.parametrize(("count", "auto"), [(1, "blocks.0"), (4, "blocks.2"), (5, "blocks.2")])
def test_auto_is_half_way(count, auto):
    network = found(Toy((2, 2), blocks=count), 12, 20)
    assert [str(layer) for layer in network.select("auto", None)] == [auto]
    assert [str(layer) for layer in network.select("blocks.0", None)] == ["blocks.0"]
    with pytest.raises(ValueError, match="no layer of Toy \\(discovered\\) can be skipped"):
        network.select("auto", None, skip=True)  # no probe of it has seen what its blocks give

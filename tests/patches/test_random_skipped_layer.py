"""The draws of S². What leaving a block out does in each network: tests/host/test_architectures.py."""

import pytest
import torch
from pack.patches import RandomSkippedLayer
from pack.patches.base import Moment
from pack.patches.layers import Layer, with_auto

LAYERS = tuple(Layer("double", index) for index in range(3, 23))


def draw(share: float, samples: int = 1, seed: int = 5, step: int = 2, layers=LAYERS) -> torch.Tensor:
    """[samples, layers]"""
    skip = RandomSkippedLayer(layers, share)
    return torch.stack([skip.left_out(layer, samples, Moment(seed, step)) for layer in layers], 1)


@pytest.mark.parametrize(
    ("share", "layers", "count"), [(0.1, 20, 2), (0.1, 24, 2), (0.1, 3, 1), (0.01, 20, 1), (0.5, 20, 10), (1.0, 5, 5)]
)
def test_every_sample_leaves_out_its_share_of_the_layers_and_at_least_one(share, layers, count):
    for step in range(20):
        drawn = draw(share, 4, step=step, layers=tuple(Layer("x", at) for at in range(layers)))
        assert drawn.dtype == torch.bool and (drawn.sum(1) == count).all()


def test_a_draw_belongs_to_its_seed_step_and_sample_and_to_nothing_else():
    assert torch.equal(draw(0.1, 4), draw(0.1, 4))
    assert torch.equal(draw(0.1, 4)[:2], draw(0.1, 2))
    assert not torch.equal(draw(0.1, 4), draw(0.1, 4, seed=6))
    assert not torch.equal(draw(0.1, 4), draw(0.1, 4, step=3))
    assert len({tuple(row.tolist()) for row in draw(0.1, 8)}) > 1
    state = torch.random.get_rng_state()
    draw(0.1, 4)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_time_of_a_moment_does_not_count_so_all_evaluations_of_a_step_leave_out_the_same():
    skip = RandomSkippedLayer(LAYERS, 0.1)
    for layer in LAYERS:
        early, late = (skip.left_out(layer, 3, Moment(5, 2, time)) for time in (0.9, 0.85))
        assert torch.equal(early, late)


def test_all_layers_are_drawn_equally_often():
    steps, share = 2000, 0.1
    counts = sum(draw(share, step=step)[0].double() for step in range(steps))
    deviation = (steps * share * (1 - share)) ** 0.5
    assert ((counts - steps * share).abs() < 5 * deviation).all()


@pytest.mark.parametrize("share", [0.0, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused_by_name(share):
    with pytest.raises(ValueError, match="share is"):
        RandomSkippedLayer(LAYERS, share)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("auto", "0.1-0.9"),
        (" Auto ,double.3", "0.1-0.9,double.3"),
        ("all", "all"),
        ("automatic", "automatic"),
        ("", ""),
    ],
)
def test_a_methods_own_choice_of_layers_stands_where_auto_does(text, read):
    assert with_auto(text, "0.1-0.9") == read

"""Perp-Neg: what the two prompts share is left alone; one sample's picture is its own."""

import math

import pytest
import torch
from pack.guiders import ClassifierFreeGuidance, PerpNeg
from pack.guiders.base import NEGATIVE, POSITIVE, Branch, Step
from pack.guiders.compose import GuidanceRun
from pack.guiders.independent_condition import Pool
from pack.guiders.linalg import dot
from pack.guiders.schedule import Interval
from pack.tests.toy import Gaussian, Mixture, Toy

ALWAYS, CFG, SIGMA = Interval(), 6.0, 1.5
EMPTY = Branch(Pool())
DENOISERS = {
    POSITIVE: Gaussian(1.0, 0.5),
    NEGATIVE: Mixture((-1.0, 0.5), 0.7),
    EMPTY: Mixture((0.2, 0.9), 0.4),
}


def x_of(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def folded(rules, x: torch.Tensor, denoisers=None, cfg=CFG, shapes=()) -> torch.Tensor:
    run = GuidanceRun((rule, ALWAYS) for rule in (*rules, ClassifierFreeGuidance(cfg)))
    return run(Step(x, SIGMA, SIGMA, cfg=cfg, shapes=shapes), Toy(denoisers or DENOISERS))


def perp_neg(neg_scale=1.0, amount=1.0) -> PerpNeg:
    return PerpNeg(neg_scale, amount, EMPTY.conditioning)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("cfg", [0.5, 1.25, 6.0])
def test_it_is_the_papers_formula_sample_by_sample(scale, cfg):
    x = x_of(3, 4, 6, 5)
    positive, negative, empty = (DENOISERS[branch](x, SIGMA).flatten(1) for branch in (POSITIVE, NEGATIVE, EMPTY))
    towards, away = positive - empty, negative - empty
    away = away - (towards * away).sum(1, keepdim=True) / (towards * towards).sum(1, keepdim=True) * towards
    expected = (empty + cfg * (towards - scale * away)).view_as(x)
    torch.testing.assert_close(folded([perp_neg(scale)], x, cfg=cfg), expected, rtol=0, atol=1e-12)


def test_a_negative_that_asks_for_the_same_takes_nothing_away():
    x = x_of(2, 4, 6, 5)
    same = DENOISERS | {NEGATIVE: DENOISERS[POSITIVE]}
    found = folded([perp_neg()], x, same)
    without = folded([perp_neg(0.0)], x, same)
    torch.testing.assert_close(found, without, rtol=0, atol=1e-13)


def test_what_it_takes_away_is_at_right_angles_to_what_the_positive_adds():
    x = x_of(2, 4, 6, 5)
    taken = folded([perp_neg(0.0)], x) - folded([perp_neg()], x)
    towards = DENOISERS[POSITIVE](x, SIGMA) - DENOISERS[EMPTY](x, SIGMA)
    assert dot(taken, taken).min() > 1e-3 and dot(taken, towards).abs().max() < 1e-12


def test_an_empty_prompt_that_is_the_negative_makes_it_plain_cfg():
    x = x_of(2, 4, 6, 5)
    same = DENOISERS | {EMPTY: DENOISERS[NEGATIVE]}
    torch.testing.assert_close(folded([perp_neg()], x, same), folded([], x), rtol=0, atol=1e-13)


def test_a_positive_that_is_the_empty_prompt_has_no_direction_and_gives_no_nan():
    x = x_of(2, 4, 6, 5)
    same = DENOISERS | {POSITIVE: DENOISERS[EMPTY]}
    empty, negative = same[EMPTY](x, SIGMA), same[NEGATIVE](x, SIGMA)
    torch.testing.assert_close(folded([perp_neg()], x, same), empty - CFG * (negative - empty), rtol=0, atol=1e-12)


def test_a_neighbour_in_the_batch_changes_no_bit():
    x = x_of(3, 4, 6, 5)
    found = folded([perp_neg()], x)
    x[1] *= 1e3
    assert torch.equal(folded([perp_neg()], x)[[0, 2]], found[[0, 2]])


def test_each_modality_of_a_packed_latent_is_by_itself():
    shapes = ((1, 8, 2, 3, 4), (1, 4, 9))
    cut = math.prod(shapes[0])
    x = x_of(2, 1, cut + 36)
    found = folded([perp_neg()], x, shapes=shapes)
    for part in (slice(None, cut), slice(cut, None)):
        torch.testing.assert_close(found[..., part], folded([perp_neg()], x[..., part]), rtol=0, atol=1e-12)

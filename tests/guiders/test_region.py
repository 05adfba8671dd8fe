"""A region: the mean over what each number of the latent stands for, and a guidance that acts there alone."""

import math

import pytest
import torch
from pack.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance, PerturbationGuidance
from pack.guiders.base import NEGATIVE, POSITIVE, Branch, Step
from pack.guiders.classifier_free import PositiveAlone
from pack.guiders.compose import GuidanceRun
from pack.guiders.region import Region
from pack.guiders.schedule import Curve, Interval
from pack.tests.toy import Gaussian, Mixture, Toy, Worse

ALWAYS = Interval()
PAG = PerturbationGuidance(2.0, Worse("a"))
DENOISERS = {
    POSITIVE: Gaussian(1.0, 0.5),
    NEGATIVE: Mixture((-1.0, 0.5), 0.7),
    Branch(perturbation=Worse("a")): Mixture((0.2, 0.9), 0.4),
}


def random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def step_of(x: torch.Tensor, cfg: float = 1.0, shapes=()) -> Step:
    return Step(x, 1.5, 1.5, cfg=cfg, shapes=shapes)


def folded(terms, masks, step: Step) -> torch.Tensor:
    return GuidanceRun([(rule, ALWAYS) for rule in terms], masks)(step, Toy(DENOISERS))


# ------------------------------------------------------------------------------------------------- a mask for a latent


def test_each_number_of_the_latent_gets_the_mean_over_its_pixels():
    values = random(1, 32, 48)
    expected = values.unfold(1, 8, 8).unfold(2, 8, 8).mean((-1, -2))[:, None]
    torch.testing.assert_close(Region(values).of((2, 4, 4, 6)), expected.float(), rtol=0, atol=1e-6)


def test_a_batch_may_have_one_mask_for_each_picture():
    values = random(3, 8, 8)
    found = Region(values).of((3, 4, 8, 8))
    torch.testing.assert_close(found, values[:, None].float(), rtol=0, atol=0)


def test_a_video_may_have_one_mask_for_each_frame_of_the_latent_or_of_the_film():
    values = random(3, 8, 8)
    torch.testing.assert_close(Region(values).of((2, 4, 3, 8, 8)), values[None, None].float(), rtol=0, atol=0)
    film = values.repeat_interleave(4, 0)
    torch.testing.assert_close(Region(film).of((2, 4, 3, 8, 8)), values[None, None].float(), rtol=0, atol=1e-6)
    one = Region(values[:1]).of((2, 4, 3, 8, 8))
    torch.testing.assert_close(one, values[:1, None].expand(1, 3, 8, 8)[None].float(), rtol=0, atol=0)


def test_of_a_packed_latent_it_is_of_the_picture_and_all_of_the_sound_is_guided():
    shapes = ((2, 4, 3, 8, 8), (2, 2, 9))
    found = Region(random(1, 16, 16)).of((2, 1, 4 * 3 * 64 + 18), shapes)
    alone = Region(random(1, 16, 16)).of(shapes[0])
    picture, sound = found.split([4 * 3 * 64, 18], -1)
    assert torch.equal(picture, alone.expand(1, *shapes[0][1:]).reshape(1, 1, -1)) and torch.equal(
        sound, torch.ones(1, 1, 18)
    )


@pytest.mark.parametrize(
    ("shape", "latent", "why"),
    [
        ((1, 64, 64), (1, 4, 8, 12), "region is 64 × 64, and the latent is 12 × 8, which is another aspect"),
        ((2, 64, 64), (3, 4, 8, 8), "region has 2 masks for a batch of 3; it must have one, or one for each"),
        ((2, 64, 64), (1, 4, 5, 8, 8), "region has 2 masks for 5 frames of the latent"),
        ((1, 64, 64), (1, 64, 2048), r"region is of a picture or a video, and this latent is \[1, 64, 2048\]"),
    ],
)
def test_a_mask_that_is_none_for_the_latent_is_refused_with_both_sizes(shape, latent, why):
    with pytest.raises(ValueError, match=why):
        Region(torch.ones(shape)).of(latent)


def test_a_picture_whose_size_is_no_multiple_of_the_latents_is_of_its_aspect():
    Region(torch.ones(1, 1021, 1530)).of((1, 4, 127, 191))


@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.5, math.inf])
def test_numbers_that_are_no_share_are_refused(bad):
    with pytest.raises(ValueError, match="region has numbers that are not from 0 to 1"):
        Region(torch.tensor([[[0.0, bad]]]))


# ------------------------------------------------------------------------------------------------ a guidance under a mask


def test_where_the_mask_is_one_the_guidance_is_whole_and_where_it_is_zero_it_is_none_to_the_bit():
    step = step_of(random(2, 4, 6, 5))
    where = torch.zeros(1, 1, 6, 5)
    where[..., :3, :] = 1
    for rules in ((PAG,), (ClassifierFreeGuidance(4.0), AdaptiveProjectedGuidance())):
        before = rules[:-1]
        without, whole = folded(before, (), step), folded(rules, (), step)
        found = folded(rules, [*(None for _ in before), where], step)
        assert torch.equal(found[..., :3, :], whole[..., :3, :])
        assert torch.equal(found[..., 3:, :], without[..., 3:, :]) and not torch.equal(found, whole)


def test_between_it_is_a_share_and_multiplies_the_schedule():
    step, where = step_of(random(2, 4, 6, 5)), random(2, 1, 6, 5)
    run = GuidanceRun([(PAG, lambda sigma: Curve(((0.0, 0.5),))(sigma))], [where])
    without, whole = folded((), (), step), folded((PAG,), (), step)
    expected = without + 0.5 * where * (whole - without)
    torch.testing.assert_close(run(step, Toy(DENOISERS)), expected, rtol=0, atol=1e-15)


def test_a_mask_holds_for_its_own_term_alone():
    step, where = step_of(random(2, 4, 6, 5)), random(2, 1, 6, 5)
    cfg = ClassifierFreeGuidance(4.0)
    base = folded((), (), step)
    parts = [folded((cfg,), [where], step) - base, folded((PAG,), (), step) - base]
    torch.testing.assert_close(folded((cfg, PAG), [where], step), base + sum(parts), rtol=0, atol=1e-14)


def test_what_a_mask_takes_back_of_cfg_is_cfg_at_a_weight_of_its_own_in_each_place():
    """D₊ + m (D_w − D₊) = D₊ + (w' − 1)(D₊ − D₋),   w' = 1 + m (w − 1)"""
    step, where = step_of(random(2, 4, 6, 5), cfg=4.0), random(2, 1, 6, 5)
    found = folded((ClassifierFreeGuidance(4.0), PositiveAlone()), [None, 1 - where], step)
    positive, negative = (DENOISERS[branch](step.x, 1.5) for branch in (POSITIVE, NEGATIVE))
    torch.testing.assert_close(found, positive + 3 * where * (positive - negative), rtol=0, atol=1e-14)

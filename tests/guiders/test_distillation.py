"""What a student is trained on: an error that counts alike at every noise level, whatever the network gives."""

import pytest
import torch
from pack.guiders.distillation import Trajectories, distillation_loss, output_scale

SIGMA = torch.tensor([0.01, 0.5, 14.0], dtype=torch.float64)
GIVES = {  # what a network gives: (F, x, σ) → D
    "noise": lambda out, x, sigma: x - sigma * out,
    "flow": lambda out, x, sigma: x - sigma * out,
    "v": lambda out, x, sigma: x / (sigma**2 + 1) - out * sigma / (sigma**2 + 1).sqrt(),
    "picture": lambda out, x, sigma: out,
}
SCALES = {
    "noise": SIGMA,
    "flow": SIGMA,
    "v": SIGMA / (SIGMA**2 + 1).sqrt(),
    "picture": torch.ones_like(SIGMA),
}
each = pytest.mark.parametrize("kind", GIVES)


def normal(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def denoised(kind: str):
    sigma = SIGMA.reshape(-1, 1, 1, 1)
    return lambda out, x: GIVES[kind](out, x, sigma)


@each
def test_the_scale_is_how_far_a_prediction_moves_with_what_the_network_gives(kind):
    scale = output_scale(denoised(kind), normal(0))
    assert torch.allclose(scale, SCALES[kind].reshape(-1, 1, 1, 1).expand(3, 4, 5, 6), rtol=1e-12, atol=0)


@each
def test_the_loss_is_the_error_of_the_networks_own_output(kind):
    """Of two outputs at the same x, whatever x is; in float32, as the loss is."""
    x, ours, wanted, at = normal(0), normal(1), normal(2), denoised(kind)
    loss = distillation_loss(at(ours, x), at(wanted, x), output_scale(at, x).float())
    torch.testing.assert_close(loss.double(), (ours - wanted).square().mean(), rtol=2e-3, atol=0)


@each
def test_every_step_counts_alike_for_the_same_error_of_the_network(kind):
    """Without the scale the last of these noise levels would be everything."""
    x, ours, at = torch.zeros(3, 4, 5, 6, dtype=torch.float64), normal(1)[:1].expand(3, 4, 5, 6), denoised(kind)
    scale = output_scale(at, x)
    losses = [distillation_loss(at(ours, x)[one], at(0 * ours, x)[one], scale[one]).item() for one in range(3)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4) and losses[0] > 0.1


def test_the_gradient_pulls_the_student_to_what_was_guided():
    student, guided = torch.zeros(2, 3, requires_grad=True), torch.tensor([[1.0, -2.0, 0.0], [3.0, 0.0, 0.0]])
    distillation_loss(student, guided, torch.tensor([[1.0], [2.0]])).backward()
    torch.testing.assert_close(student.grad, -2 * guided / torch.tensor([[1.0], [4.0]]) / 6)


def test_what_was_asked_comes_back_row_by_row_and_nothing_at_noise_level_0():
    trajectories = Trajectories()
    rows = torch.arange(4.0).reshape(4, 1, 1)
    trajectories.add(5, rows[:2], [2.0, 0.0], 10 * rows[:2])
    trajectories.add(6, rows[2:], [1.0, 3.0], 10 * rows[2:])
    assert len(trajectories) == 3
    x, sigma, prompts, guided = trajectories.draw(200, torch.Generator().manual_seed(0))
    known = {0.0: (2.0, 5), 2.0: (1.0, 6), 3.0: (3.0, 6)}
    assert {*x.flatten().tolist()} == {*known} and torch.equal(guided, 10 * x)
    asked = zip(x.flatten().tolist(), sigma.tolist(), prompts, strict=True)
    assert all(known[value] == (level, prompt) for value, level, prompt in asked)


def test_one_seed_draws_the_same_rows():
    trajectories = Trajectories()
    trajectories.add(0, torch.randn(9, 2), [1.0] * 9, torch.randn(9, 2))
    one, other, third = (trajectories.draw(5, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(one, other) and not torch.equal(one, third)


def test_what_is_kept_does_not_change_with_what_the_sampler_does_to_its_x():
    trajectories, x, guided = Trajectories(), torch.ones(1, 2), torch.ones(1, 2)
    trajectories.add(0, x, [1.0], guided)
    x.zero_(), guided.zero_()
    drawn, _, _, kept = trajectories.draw(1, torch.Generator().manual_seed(0))
    assert drawn.sum() == kept.sum() == 2

"""What steps leave to later ones, and rules that remember steps in which they do not act."""

from dataclasses import dataclass

import pytest
import torch
from pack.guiders.base import POSITIVE, GuidanceRule, Step
from pack.guiders.compose import GuidanceRun
from pack.guiders.memory import Memory
from pack.tests.toy import Gaussian, Toy


def recalled(*evaluations: tuple[int, str]) -> list[str | None]:
    """What each evaluation recalls, of (index of its step, what it keeps)."""
    memory, found = Memory(), []
    for index, value in evaluations:
        found.append(memory.recall(Step(torch.empty(0), 1.0, 1.0, index)))
        memory.keep(value)
    return found


def test_a_step_recalls_what_the_step_before_has_kept_and_the_first_nothing():
    assert recalled((0, "a"), (1, "b"), (2, "c")) == [None, "a", "b"]


def test_evaluations_of_one_step_recall_the_same_and_the_first_of_them_is_kept():
    assert recalled((0, "a"), (0, "a'"), (1, "b"), (1, "b'"), (2, "c")) == [None, None, "a", "a", "b"]


def test_a_step_that_lies_before_the_last_one_begins_anew():
    assert recalled((4, "a"), (2, "b"), (3, "c")) == [None, None, "b"]


def test_steps_may_be_left_out():
    assert recalled((1, "a"), (5, "b"), (9, "c")) == [None, "a", "b"]


@dataclass(frozen=True)
class Counting(GuidanceRule):
    """Adds how many steps it has seen before."""

    always: bool

    @property
    def remembers(self):
        return self.always

    def branches(self):
        return (POSITIVE,)

    def begin(self):
        seen = -1

        def apply(denoised, _predictions, _step):
            nonlocal seen
            seen += 1
            return denoised + seen if seen else denoised * torch.inf

        return apply


@pytest.mark.parametrize(("always", "seen"), [(True, 2), (False, torch.inf)])
def test_a_rule_that_remembers_is_called_in_steps_in_which_it_changes_nothing(always, seen):
    run = GuidanceRun([(Counting(always), lambda sigma: float(sigma < 2))])
    toy = Toy({POSITIVE: Gaussian(1.0, 0.5)})
    x = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    results = [run(Step(x, sigma, sigma, index), toy) for index, sigma in enumerate((3.0, 2.0, 1.0))]
    plain = [Gaussian(1.0, 0.5)(x, sigma) for sigma in (3.0, 2.0, 1.0)]
    assert all(torch.equal(result, expected) for result, expected in zip(results[:2], plain[:2], strict=True))
    assert torch.equal(results[2], plain[2] + seen)
    assert toy.asked == [(POSITIVE,)] * 3

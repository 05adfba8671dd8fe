"""Independent Condition Guidance.   D_w = D₊ + (w − 1)(D₊ − D(x, ŷ))

Sadat et al. 2024, "No Training, No Problem: Rethinking Classifier-Free Guidance for Diffusion Models", arXiv:2407.02687.
ŷ is a condition that has nothing to do with x, drawn anew in every step. A conditional model is guided by itself, with
no dropped prompts in its training. Neutral at w = 1. Linear, so it is the same in ε, v and x₀.

Their ŷ for text is random tokens through the text encoder, or Gaussian noise with the condition's deviation; here also
other prompts. Only the text is drawn: what else a condition holds, such as a picture's size, is as in the positive. One
draw for each step and sample, the same in all evaluations of a step: neither a picture's neighbours in a batch nor the
sampler's order change it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from .base import POSITIVE, About, Apply, Branch, DrawnConditioning, GuidanceRule, check_params, param

ABOUT = About(
    node_id="BeyondCFGICG",
    name="ICG",
    title="Independent Condition Guidance (ICG)",
    summary=(
        "Gives what CFG gives, without a negative prompt and without training for one. It moves away from what the "
        "model predicts for a random condition, which has nothing to do with the picture. Use it with cfg 1. Takes "
        "as much extra time as CFG, or less."
    ),
    paper="arXiv:2407.02687",
    aliases=(
        "independent condition guidance",
        "icg",
        "random condition",
        "guidance without dropout",
        "better quality",
        "negative prompt",
    ),
    strength="weight",
    default=3.0,
    guider=True,
)


@dataclass(frozen=True, eq=False)
class Pool(DrawnConditioning):
    """The conditions that ŷ is drawn from: some that the host can evaluate, or Gaussian noise like the positive's own."""

    conditions: tuple = field(default=(), repr=False)
    seed: int = 0
    node: str = ABOUT.name  # that it is for, in messages

    @property
    def is_gaussian(self) -> bool:
        """Whether ŷ is noise, because the pool holds no conditions."""
        return not self.conditions

    def draw(self, seed: int, step: int, sample: int) -> int:
        """A number for this step and sample: the index of a condition, modulo their count, or the seed of noise."""
        key = repr((self.seed, seed, step, sample)).encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class IndependentConditionGuidance(GuidanceRule):
    """s (D₊ − D(x, ŷ)), with s = w − 1. Raises ValueError for a scale out of range."""

    scale: float = param(2.0, low=-1.0, high=100.0, off=0.0)  # w − 1
    pool: Pool = Pool()

    def __post_init__(self):
        check_params(self)

    def branches(self) -> tuple[Branch, ...]:
        return () if self.scale == 0 else (Branch(conditioning=self.pool),)

    def begin(self) -> Apply:
        weak = Branch(conditioning=self.pool)
        return lambda denoised, predictions, step: denoised + self.scale * (predictions[POSITIVE] - predictions[weak])

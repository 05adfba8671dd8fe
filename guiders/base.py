"""The words of guidance: branches, what a step knows, and the contract of a rule.

Everything is in terms of the denoised prediction D(x; σ), the network's estimate of the clean latent.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Generator, Tensor, device

# A method declares itself in one way, here and in patches.
from ..patches.base import About, Moment, Observation, Perturbation, PromptGuidance, check_params, param, strength_of
from .windows import Windows

__all__ = ["NEGATIVE", "POSITIVE", "REFERENCE", "About", "Apply", "Branch", "Conditioning", "DrawnConditioning"]
__all__ += ["Evaluate", "GuidanceRule", "Latent", "Observation", "Perturbation", "Predictions", "PromptGuidance"]
__all__ += ["Source", "Step", "WeakModelRef", "check_params", "param", "strength_of"]

Latent = Tensor  # [batch, channels, *spatial], any number of spatial axes


@dataclass(frozen=True)
class Step:
    """One evaluation of the denoiser by the sampler."""

    x: Latent
    sigma: float  # the noise level of x
    start: float  # σ at which the sampler's step began that this evaluation belongs to: what intervals look at
    index: int = 0  # of that step in the schedule
    time: float = 0.0  # where the step began in sampling: 1 at its first moment, 0 at its last, the papers' t / T
    signal: float = 1.0  # a in x = a x₀ + b n: 1 for most ε and v networks as the host samples them, 1 − σ for flow
    noise_scale: float = 1.0  # b / σ
    seed: int = 0  # the sampler's
    cfg: float = 1.0  # the weight of the sampler's own CFG in this step; 1 where it has none
    shapes: tuple[tuple[int, ...], ...] = ()  # the latents that x packs into one, where it does
    maps: dict[Observation, Tensor] = field(default_factory=dict, compare=False)  # what a rule's observation has seen
    timestep: Callable[[float], float] = float  # σ → the number by which the network is told of it
    only_noise: bool = False  # the schedule ends where nothing of x₀ is left (zero terminal SNR), and x is there

    @property
    def noise(self) -> float:
        """b in x = a x₀ + b n."""
        return self.sigma * self.noise_scale

    def generators(self, salt: str) -> list[Generator]:
        """One for each sample, by seed and step."""
        return Moment(self.seed, self.index).generators(self.x.shape[0], device("cpu"), salt)


class DrawnConditioning:
    """A conditioning that a rule brings along, and that the host draws anew in each step. Compared by identity."""


@dataclass(frozen=True)
class WeakModelRef:
    """Which of the weak models that a MODEL carries."""

    index: int


Conditioning = Literal["positive", "negative", "reference"] | DrawnConditioning


@dataclass(frozen=True)
class Branch:
    """One prediction of a network. Equal branches are evaluated once."""

    conditioning: Conditioning = "positive"  # one of the guider's by its name, or one that a rule brings along
    perturbation: Perturbation | None = None
    model: WeakModelRef | None = None  # None: the model that is sampled
    source: Source | None = None  # what makes another x; None: the sampler's own x
    windows: Windows | None = None  # the network sees them one by one, each as a whole picture; not of another model

    def __post_init__(self):
        if self.windows is not None and self.model is not None:
            raise ValueError("a weak model is not shown windows of the picture")

    @property
    def is_random(self) -> bool:
        """Whether something in it is drawn anew in each step."""
        perturbed = self.perturbation is not None and self.perturbation.random
        return perturbed or isinstance(self.conditioning, DrawnConditioning)


POSITIVE = Branch()
NEGATIVE = Branch("negative")
REFERENCE = Branch("reference")  # the negative in a call that carries it, else the positive: a row that is there anyway

Predictions = Mapping[Branch, Latent]
Source = Callable[[Predictions, Step], Latent]  # (predictions from x, step) → another x; hashable
Apply = Callable[
    [Latent, Predictions, Step], Latent
]  # (what it changes, as it is so far; all predictions; step) → that
Evaluate = Callable[[tuple[Branch, ...], Step], Predictions]


class GuidanceRule(abc.ABC):
    """A frozen setting of one guidance: which branches it needs, and how it folds them into the result.

    One field is the strength, which `param` declares with `off`. A strength that is called scale or weight is a factor:
    what the rule adds is proportional to its distance from `off`.
    """

    about: ClassVar[About | None] = None  # the rule's node, where all its fields are a user's settings
    corrects_cfg: ClassVar[bool] = (
        False  # it changes the sampler's own CFG alone, so it is left out where Step.cfg is 1
    )
    changes: ClassVar[Literal["result", "negative", "positive"]] = "result"
    # or the negative prediction, before the sampler's CFG; or how the positive is evaluated (attended_negative.py)
    observation: Observation | None = None  # what is to be seen of the reference's attention, in Step.maps

    @property
    def remembers(self) -> bool:
        """Whether it is called where its schedule is 0 too. It changes nothing there, but remembers the step."""
        return False

    @abc.abstractmethod
    def branches(self) -> tuple[Branch, ...]:
        """The branches beyond POSITIVE; none when the setting is neutral, so that neutral costs nothing."""

    @property
    def replaces(self) -> bool:
        """Whether what it changes has no part in what it gives."""
        return False

    @abc.abstractmethod
    def begin(self) -> Apply:
        """The rule as a function, for one sampling run. What the rule remembers during the run lives in that function."""

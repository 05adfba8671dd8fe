"""Classifier guidance.   D_s = D + s (b²/a) ∇ₓ log p(y | x; σ)        where x = a x₀ + b ε and b is σ

Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", arXiv:2105.05233. In x₀, so that it is the same
for every parametrisation. Added to the result so far. Neutral at s = 0, linear in s, 0 at b = 0, and by definition at
a = 0, where x is all noise and nobody can tell a class. With the exact classifier of a condition it is CFG:
∇ₓ log p(y | x; σ) is the difference of the scores, and b²/a times that D₊ − D₀.

Paper: its Algorithm 2 prints ε̂ = ε − √(1 − ᾱ) ∇ log p, without its own input s. Here: with s, as in its code.

That needs a classifier of noisy latents. A classifier of clean ones sees the prediction instead, an approximation:
    D_s = D + s r² ∇_D log p(y | D₊),     r² = b² / (a² + b²)
Exactly, b²/a ∇ₓ log p(y | D(x)) is Cov[x₀ | x] ∇_D log p(y | D); r² is that covariance where data is N(0, 1), and b²/a²
as σ goes to 0 for any data. Besides, a mean of pictures is judged as if it were one. Good late, rough early. No backward
pass through the diffusion model.

A sample whose gradient is not finite gets none in that step: one bad number would spoil the rest of the run.

With `adam` each gradient is steadied by those of earlier steps (moments.py, arXiv:2603.16797). That is of about 1 in each
number, whatever the gradient's size, so it matters of which x: for a classifier of noisy latents it is the paper's,
x/√(a² + b²), and D_s = D + s b²/(a √(a² + b²)) ĝ. For one of clean latents, which is not in the paper, it is D.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .base import POSITIVE, About, Apply, Branch, GuidanceRule, Latent, Step, check_params, param
from .linalg import exact, per_sample
from .moments import adaptive_moments

CLASSIFIER = About(
    node_id="BeyondCFGClassifier",
    name="Classifier Guidance",
    summary=(
        "Guides the picture towards a label: your own words by CLIP, or a small classifier on CLIP's embedding. The "
        "model needs no training. Each step decodes the picture and looks at it, so use a TAESD as VAE: others take "
        "much memory. It works better late in sampling than early."
    ),
    paper="arXiv:2105.05233",
    aliases=("classifier guidance", "CLIP guidance", "guided diffusion", "zero-shot", "universal guidance", "ADM-G"),
)

ADAM = (
    "On: the effect is made steady over the steps, as the optimizer Adam does. Then scale must be much "
    "smaller: begin at 0.05."
)
BETA1 = (
    "With adam: how much of the direction of earlier steps is kept. 0 is none. The authors' best results have 0 to 0.4."
)
BETA2 = "With adam: how much of the size of earlier steps is kept. Most of the authors' best results have 0.2 to 0.8."

LogProbability = Callable[[Step], Tensor]  # log p(y | step.x; step.sigma) of each sample, [batch]; differentiable


class Classifier(Protocol):
    """Knows the wanted class y. Compared by identity."""

    def begin(self) -> LogProbability:
        """The classifier as a function, for one sampling run. What the run needs lives in that function."""
        ...


@dataclass(frozen=True)
class ClassifierGuidance(GuidanceRule):
    """Towards a label: the setting that both kinds of classifier guidance have."""

    classifier: Classifier
    scale: float = param(
        1.0,
        "How strongly the picture moves towards the label. 0 is off and takes no extra time. 1 is a good "
        "start; the paper goes up to 10. Too high draws patterns that only fool the classifier.",
        low=0.0,
        high=1000.0,
        step=0.05,
        off=0.0,
    )
    adam: bool = param(False, ADAM, added=True)
    beta1: float = param(0.0, BETA1, low=0.0, high=0.999, step=0.01, added=True)
    beta2: float = param(0.5, BETA2, low=0.0, high=0.999, step=0.01, added=True)

    def __post_init__(self):
        check_params(self)

    def branches(self) -> tuple[Branch, ...]:
        return () if self.scale == 0 else (POSITIVE,)

    def _steadied(self) -> Callable[..., Latent]:
        """(gradient by x, step, the length of x that is 1 in the paper) → the direction to go, for one run."""
        if not self.adam:
            return lambda gradient, step, length=1.0: gradient
        moments = adaptive_moments(self.beta1, self.beta2)
        return lambda gradient, step, length=1.0: moments(length * gradient, step) / length


class NoisyClassifierGuidance(ClassifierGuidance):
    """By a classifier of noisy latents: it is asked about x at σ."""

    def begin(self) -> Apply:
        log_probability, steadied = self.classifier.begin(), self._steadied()

        def apply(denoised, _predictions, step):
            if step.signal <= 0 or step.noise <= 0:  # nor is there a ln(b/a) to tell the classifier
                return denoised
            size = self.scale * step.noise**2 / step.signal
            direction = steadied(gradient(log_probability, step), step, math.hypot(step.signal, step.noise))
            return _moved(denoised, size, direction)

        return apply


class CleanClassifierGuidance(ClassifierGuidance):
    """By a classifier of clean latents: it is asked about D₊ as if it were x at σ = 0."""

    def begin(self) -> Apply:
        log_probability, steadied = self.classifier.begin(), self._steadied()

        def apply(denoised, predictions, step):
            clean = replace(step, x=predictions[POSITIVE], sigma=0.0, signal=1.0)
            size = self.scale * step.noise**2 / (step.signal**2 + step.noise**2)
            return _moved(denoised, size, steadied(gradient(log_probability, clean), step))

        return apply


def gradient(log_probability: LogProbability, step: Step) -> Latent:
    """∇ₓ log p of each sample, at least in float32; 0 for samples where it is not finite.

    The host runs nodes in inference mode, where nothing has a gradient, and its networks write over what autograd has
    saved: it keeps what they overwrite."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autograd.graph.allow_mutation_on_saved_tensors():
        x = exact(step.x).detach().clone().requires_grad_()
        (found,) = torch.autograd.grad(log_probability(replace(step, x=x)).sum(), x)
    finite = found.isfinite().flatten(1).all(1)  # [batch]
    return torch.where(finite.view(-1, *(1 for _ in per_sample(found))), found, 0.0)


def _moved(denoised: Latent, size: float, direction: Latent) -> Latent:
    return (exact(denoised) + size * direction).to(denoised.dtype)

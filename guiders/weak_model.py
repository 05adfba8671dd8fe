"""Guidance by a worse network.   D = D₊ + s (D₊ − D₀)

D₀ is another model's prediction for the same prompt at the same x and σ. Added to the result so far: with CFG it is
D₊ + (cfg − 1)(D₊ − D₋) + s (D₊ − D₀). Neutral at s = 0, and where both models are the same. In x₀, so that the two may
differ in ε and v.

Autoguidance, Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", arXiv:2406.02507:
    D_w = D₀ + w (D₁ − D₀), so s = w − 1; with CFG it is their Eq. 6.
SIMS, Alemohammad et al. 2024, "Self-Improving Diffusion Models with Synthetic Data", arXiv:2408.16333:
    (1 + ω) D − ω D_aux, so s = ω; the auxiliary model is the same, trained on its own pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

from .base import POSITIVE, About, Apply, Branch, GuidanceRule, WeakModelRef, check_params, param

AUTOGUIDANCE = About(
    node_id="BeyondCFGAutoguidance",
    name="Autoguidance",
    summary=(
        "Gives better quality without less variety, and needs no negative prompt. It moves away from a worse version "
        "of the same model: one with fewer training steps, a smaller one, an older file, or the same with a LoRA. "
        "Takes a second model in memory, and the time of that model."
    ),
    paper="arXiv:2406.02507",
    aliases=(
        "autoguidance",
        "weak model",
        "bad model",
        "dual model",
        "guide with a bad version of itself",
        "better quality",
    ),
    strength="weight",
    default=2.0,
    guider=True,
)
SIMS = About(
    node_id="BeyondCFGSIMS",
    name="SIMS",
    title="Self-Improving Guidance (SIMS)",
    summary=(
        "Takes away what is typical of a model's own mistakes. It moves away from a second model that was trained on "
        "pictures of the first, such as the same model with a LoRA of them. Takes a second model in memory, and the "
        "time of that model."
    ),
    paper="arXiv:2408.16333",
    aliases=(
        "self-improving diffusion",
        "synthetic data guidance",
        "auxiliary model",
        "negative model",
        "better quality",
    ),
    default=0.5,
)


FIRST = WeakModelRef(0)


@dataclass(frozen=True)
class WeakModelGuidance(GuidanceRule):
    """s (D₊ − D₀). Raises ValueError for a scale out of range."""

    scale: float = param(1.0, low=-1.0, high=100.0, off=0.0)
    model: WeakModelRef = FIRST

    def __post_init__(self):
        check_params(self)

    def branches(self) -> tuple[Branch, ...]:
        return () if self.scale == 0 else (Branch(model=self.model),)

    def begin(self) -> Apply:
        weak = Branch(model=self.model)
        return lambda denoised, predictions, step: denoised + self.scale * (predictions[POSITIVE] - predictions[weak])

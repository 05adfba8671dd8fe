"""CFG away from a worse negative.   D = D'₋ + w (D₊ − D'₋)

D'₋ is the negative prompt's prediction by a worse network, and takes the place of D₋ in the sampler's own CFG; w is the
sampler's cfg. At amount a it is D₋ + a (D'₋ − D₋). Neutral at a = 0. Linear, so it is the same in ε, v and x₀.

By another model: "Domain Guidance", Zhong et al. 2025, arXiv:2504.01521, where D₊ is by a fine-tune and D₋ by its base.
The host's DualModelGuider does this as a guider. By a perturbed network: the simple form of Skip Layer Guidance, as the
host's SkipLayerGuidanceDiTSimple has it. Where a = 1 the network's own D₋ is not evaluated, so it costs no row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from .base import About, Apply, Branch, GuidanceRule, check_params, param

PERTURBED_NEGATIVE = About(
    node_id="BeyondCFGPerturbedNegative",
    name="Perturbed Negative",
    group="Negative prompts",
    summary=(
        "Adds the effect of Skip Layer Guidance or PAG to CFG for no extra time. It makes the network worse where it "
        "predicts for the negative prompt, so that cfg moves away from both at once. Needs cfg above 1."
    ),
    paper="arXiv:2411.18664",
    aliases=(
        "slg simple",
        "skip layer simple",
        "perturbed uncond",
        "zero attention uncond",
        "skip layer negative",
        "anatomy",
        "better quality",
        "negative prompt",
    ),
    window=(0.01, 0.5),
)
NEGATIVE_MODEL = About(
    node_id="BeyondCFGNegativeModel",
    name="Negative Model",
    group="Negative prompts",
    summary=(
        "Lets another model predict for the negative prompt: the base model where the main one is a fine-tune, or "
        "the same model with a LoRA. The result moves away from what that model does. Needs cfg above 1, and memory "
        "for a second model."
    ),
    paper="arXiv:2504.01521",
    aliases=(
        "domain guidance",
        "dual model",
        "negative lora",
        "second model uncond",
        "base model negative",
        "ideogram",
        "negative prompt",
    ),
)
AMOUNT = "How much of the negative prediction is replaced. 0 is off. 1 replaces all of it, and takes the least time."


@dataclass(frozen=True)
class WorseNegative(GuidanceRule):
    """D₋ + a (D'₋ − D₋), in the place of D₋. Raises ValueError for an amount out of range."""

    amount: float = param(1.0, AMOUNT, low=0.0, high=1.0, step=0.05, off=0.0)
    branch: Branch | None = None  # of D'₋

    corrects_cfg: ClassVar[bool] = True
    changes: ClassVar[Literal["result", "negative"]] = "negative"

    def __post_init__(self):
        check_params(self)

    @property
    def replaces(self) -> bool:
        """Whether D₋ has no part in the negative."""
        return self.amount == 1

    def branches(self) -> tuple[Branch, ...]:
        return () if self.amount == 0 or self.branch is None else (self.branch,)

    def begin(self) -> Apply:
        if self.branch is None:
            raise ValueError("there is no branch for the worse negative")
        worse = self.branch
        if self.replaces:
            return lambda negative, predictions, step: predictions[worse]
        return lambda negative, predictions, step: torch.lerp(negative, predictions[worse], self.amount)

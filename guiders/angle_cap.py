"""Angle cap.   D' = |D| (cos θ' D₊/|D₊| + sin θ' D⊥/|D⊥|),   θ' = min(θ, θ_max)

θ is the angle between D, whatever the rules before have made, and the positive prediction D₊; D⊥ is the part of D at
right angles to D₊. So D turns back towards D₊, in the plane of the two, until the angle is allowed. Its length stays.
Angles are in x₀, since there they mean how much of the picture changes, and of one sample (and modality). Neutral at
180 degrees.

After Angle Domain Guidance, Jin et al. 2025, arXiv:2506.11039: guidance should turn a prediction rather than lengthen
it. The authors' code, in x₀ too, replaces CFG: with θ between D₊ and D₋, and w the weight of CFG, it gives

    D_ADG = cos θ' D₊ + (sin θ'/sin θ) (D₊ − proj_D₋ D₊),   θ' = min((w − 1) θ, 60°).

Here: the direction so far, since a sum of terms has no one w and no one D₋. What differs, then. The angle of CFG stands
in for (w − 1) θ; it is nearly that where it is small. ADG turns by the part at right angles to D₋, so that its angle to
D₊ is not θ' but arctan(sin θ' cos θ / (cos θ' + sin θ' sin θ)), which is less. And ADG holds the length near |D₊|;
here that is what a norm cap of the whole after this rule does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import POSITIVE, About, Apply, Branch, GuidanceRule, Latent, check_params, param
from .linalg import dot, exact, norm, project

MAX_ANGLE = (
    "The limit on how far guidance may turn the prediction, in degrees. 180 is off. The paper uses 60. "
    "Lower is calmer: 20 to 30 also calms a normal cfg in the first steps."
)


@dataclass(frozen=True)
class AngleCap(GuidanceRule):
    """Turns back what the rules before it have made. Raises ValueError for an angle out of range."""

    max_angle: float = param(60.0, MAX_ANGLE, low=0.0, high=180.0, step=0.5, off=180.0)

    about: ClassVar[About] = About(
        node_id="BeyondCFGAngleCap",
        name="Angle Cap",
        title="CFG Angle Cap",
        group="CFG corrections",
        summary=(
            "Keeps colours natural at a high cfg. It limits how far guidance may turn the prediction away from what "
            "the prompt alone gives. It acts on all guidance nodes before it. Takes no extra time."
        ),
        paper="arXiv:2506.11039",
        aliases=(
            "adg",
            "angle domain guidance",
            "govern",
            "rotation",
            "oversaturation",
            "high cfg",
            "burnt",
        ),
    )

    def __post_init__(self):
        check_params(self)

    def branches(self) -> tuple[Branch, ...]:
        return () if self.max_angle == 180 else (POSITIVE,)

    def begin(self) -> Apply:
        most = math.radians(self.max_angle)

        def apply(denoised, predictions, step):
            result, length = _unit(exact(denoised), step.shapes)
            positive, there = _unit(exact(predictions[POSITIVE]), step.shapes)
            across, sine = _unit(project(result, positive, step.shapes)[1], step.shapes)
            cosine = dot(result, positive, shapes=step.shapes) / result.shape[1:].numel()
            turned = length * (math.cos(most) * positive + math.sin(most) * across)
            too_far = (torch.atan2(sine, cosine) > most) & (there > 0)
            return torch.where(too_far, turned, denoised).to(denoised.dtype)

        return apply


def _unit(x: Latent, shapes: tuple[tuple[int, ...], ...]) -> tuple[Latent, Tensor]:
    """(x by its length, that length), in units of √elements, so that both are numbers where those of x are."""
    length = norm(x / math.sqrt(x.shape[1:].numel()), shapes=shapes)
    return x / torch.where(length > 0, length, 1.0), length

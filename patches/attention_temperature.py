"""Entropy Rectifying Guidance.   softmax(β QKᵀ) V → softmax(τ β QKᵀ) V

Ifriqi et al. 2025, "Entropy Rectifying Guidance for Diffusion and Flow Models", arXiv:2504.13987. The part of it that is
in the denoising network, I-ERG: the logits of the picture's queries, over all keys, are multiplied by τ. τ < 1 makes the
attention more even, so its entropy grows; τ = 0 is uniform; τ > 1 makes it sharper. Neutral at τ = 1, or weight 1.

Paper: D_ξ + w (D − D_ξ), where D_ξ also has a weaker text, by the same in the text encoder (C-ERG), and I-ERG begins some
steps later. Its energy has a step size and more iterations, which it sets to 1: they gave it nothing. ACE-Step, the best
known user, has τ = 0.01 in blocks 15 to 19 of 24.
Here: w − 1 times (D₊ − D_ξ), with the text as it is, and "start_percent" says where it begins. ACE-Step multiplies the
queries before their norm and those of its attention to the text too; here it is the logits, of the self-attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import About, AttentionCall, AttentionPerturbation, check_params, param
from .layers import Layer


@dataclass(frozen=True)
class AttentionTemperature(AttentionPerturbation):
    """Multiplies the logits of the picture's tokens. Raises ValueError for a parameter out of range."""

    layers: tuple[Layer, ...]
    tau: float = param(
        0.01,
        "How evenly the attention looks at everything. 1 is off. Lower is more even: 0.01 is nearly the same "
        "for all, as in ACE-Step. Above 1 it looks at fewer places.",
        low=0.0,
        high=10.0,
        step=0.01,
    )

    about: ClassVar[About] = About(
        node_id="BeyondCFGERG",
        name="ERG",
        title="Entropy Rectifying Guidance (ERG)",
        summary=(
            "Gives better quality without less variety, with or without a prompt. It moves away from what the model "
            "predicts when its attention looks at everything more evenly. Takes as much extra time as CFG, or less."
        ),
        paper="arXiv:2504.13987",
        aliases=(
            "entropy rectifying guidance",
            "erg",
            "I-ERG",
            "attention temperature",
            "guidance without cfg",
            "better quality",
            "variety",
        ),
        strength="weight",
        default=5.0,
    )

    def __post_init__(self):
        check_params(self)

    @property
    def neutral(self) -> bool:
        return self.tau == 1

    def attention(self, call: AttentionCall) -> Tensor:
        if self.tau == 1:
            return call.attend(call.q, slice(0, call.q.shape[2]))
        out = call.attended()
        out[:, :, call.image] = call.attend(self.tau * call.q[:, :, call.image], call.image)
        return out

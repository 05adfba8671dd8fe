"""Time-Step Guidance.   ẽ = e + s (t/T)^α std(e) n,   n ~ N(0, I)

Sadat et al. 2024, "No Training, No Problem: Rethinking Classifier-Free Guidance for Diffusion Models", arXiv:2407.02687.
The network is told a slightly wrong time; moving away from what it then predicts needs no prompt and no second model.
Only the embedding is perturbed, σ and the input scalings stay, so combinations are the same in ε, v and x₀. α = 0 is the
paper's constant schedule, α > 0 its power schedule. Neutral at s = 0.

Paper: the time t of the power schedule counts to 1000, with which the noise would be thousands of deviations.
Here: t/T, from 1 at the first moment of sampling to 0. One n for each sample and step, the same in all evaluations of it.
All layers are told ẽ; the paper's ablation with the first N layers only is not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import About, Moment, TimePerturbation, check_params, param
from .layers import Layer


@dataclass(frozen=True)
class NoisyTimeEmbedding(TimePerturbation):
    """Adds noise to the time embedding. Raises ValueError for a parameter out of range."""

    layers: tuple[Layer, ...] = ()
    noise: float = param(
        1.25,
        "How wrong the model is told how far sampling has come. 0 is off. The paper uses 1 to 3. Higher makes the "
        "guidance stronger; if pictures break, take less.",
        low=0.0,
        high=20.0,
        step=0.05,
    )
    power: float = param(
        0.0,
        "How fast that error shrinks during sampling. 0 keeps it constant. Higher ends it sooner. "
        "The paper uses 0, 0.25 and 1.",
        low=0.0,
        high=10.0,
        step=0.05,
    )

    about: ClassVar[About] = About(
        node_id="BeyondCFGTSG",
        name="TSG",
        title="Time-Step Guidance (TSG)",
        summary=(
            "Gives better quality with or without a prompt. In each step a model is told how far sampling has come: its "
            "time. TSG moves away from what the model predicts when that time is slightly wrong. Takes as much extra time "
            "as CFG, or less."
        ),
        paper="arXiv:2407.02687",
        aliases=(
            "time-step guidance",
            "timestep guidance",
            "tsg",
            "guidance without cfg",
            "unconditional guidance",
            "better quality",
            "detail",
        ),
        strength="weight",
        default=3.0,
        window=(0.1, 0.9),
    )

    def __post_init__(self):
        check_params(self)

    @property
    def random(self) -> bool:
        return True

    @property
    def neutral(self) -> bool:
        return self.noise == 0

    def time_embedding(self, embedding: Tensor, moment: Moment) -> Tensor:  # [rows, *tokens, channels]
        deviation = embedding.std(-1, keepdim=True)  # per row: equal to the paper's over rows of one time
        noise = moment.normal(embedding.flatten(1, -2)[:, 0] if embedding.ndim > 2 else embedding)  # [rows, channels]
        noise = noise.view(len(noise), *[1] * (embedding.ndim - 2), -1)
        return embedding + self.noise * moment.time**self.power * deviation * noise

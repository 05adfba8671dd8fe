"""Smoothed Energy Guidance.   QKᵀ → G∗(QKᵀ) = (G∗Q)Kᵀ

Hong 2024, "Smoothed Energy Guidance: Guiding Diffusion Models with Reduced Energy Curvature of Attention",
arXiv:2408.00760. The logits of the picture's tokens are blurred over the place of the query, by a Gaussian of σ tokens,
which is to blur the queries; keys, values and the queries of text stay. Neutral at σ = 0, or scale 0. σ = −1 stands for
infinity, where every query is the mean query.

Paper: the blur keeps the mean (Lemma 3.1), and σ = ∞ is its limit.
Here: both hold for the "symmetric" border, a mirror at the picture's edge, with a kernel that is never cut off.
"reflect" is what the authors ran: a kernel of the odd size ⌈6σ⌉ or one more, no longer than the axis (one more, if that is
even), and a mirror at the centre of the last token. It keeps no mean, and stops widening long before σ = ∞. Theirs
needs a square; here each axis limits its own kernel. Queries are blurred after their rotation (RoPE), like logits.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import About, AttentionCall, AttentionPerturbation, check_params, param
from .layers import Layer

INFINITE = -1.0


@dataclass(frozen=True)
class BlurredQuery(AttentionPerturbation):
    """Blurs the queries of the picture's tokens. Raises ValueError for a parameter out of range."""

    layers: tuple[Layer, ...]
    blur_sigma: float = param(
        INFINITE,
        "How far the attention is blurred. 0 is off. 1 to 10 is gentle; the paper uses 10 and -1. -1 blurs "
        "without limit: the strongest, and the fastest.",
        low=-1.0,
        high=9999.0,
        step=0.05,
    )
    padding: str = param(
        "symmetric",
        "What lies beyond the picture's edge, for a blur_sigma above 0. symmetric: a mirror, with which a "
        "wide blur becomes the unlimited one. reflect: as in the authors' code.",
        choices=("symmetric", "reflect"),
    )

    cut_by: int | None = None  # with reflect: the axis whose length limits the kernel of all axes, for others' nodes

    about: ClassVar[About] = About(
        node_id="BeyondCFGSEG",
        name="SEG",
        title="Smoothed Energy Guidance (SEG)",
        summary=(
            "Makes structure clearer, as PAG does and with fewer side effects, with or without a negative prompt. It "
            "moves away from what the model predicts when its attention is blurred. Takes as much extra time as CFG, "
            "or less."
        ),
        paper="arXiv:2408.00760",
        guider=True,
        aliases=(
            "smoothed energy guidance",
            "seg",
            "blurred attention",
            "guidance without cfg",
            "better quality",
            "anatomy",
            "detail",
            "flat",
            "flat colours",
        ),
    )

    def __post_init__(self):
        if self.blur_sigma < 0 and self.blur_sigma != INFINITE:
            raise ValueError(f"blur_sigma is {self.blur_sigma}; it must be a number from 0 to 9999, or -1 for infinite")
        check_params(self)

    @property
    def neutral(self) -> bool:
        return self.blur_sigma == 0

    def attention(self, call: AttentionCall) -> Tensor:
        image = call.image
        if self.blur_sigma == 0:
            return call.attend(call.q, slice(0, call.q.shape[2]))
        out, q = call.attended(), call.q[:, :, image]
        if self.blur_sigma != INFINITE:
            out[:, :, image] = call.attend(self._blurred(q, call), image)
            return out
        exact = torch.promote_types(q.dtype, torch.float32)
        mean = q.mean(2, keepdim=True, dtype=exact).to(q.dtype)  # [rows, heads, 1, head_dim]
        if call.bias is not None and call.bias.shape[-2] > 1:  # equal queries, but each with a bias of its own
            out[:, :, image] = call.attend(mean.expand_as(q), image)
        else:
            out[:, :, image] = call.attend(mean, slice(image.start, image.start + 1))  # one for all of them
        return out

    def _blurred(self, q: Tensor, call: AttentionCall) -> Tensor:
        if call.grid is None:
            none = (
                f"{self.about.name}: the tokens of {call.layer} are no picture that could be blurred, without an order."
            )
            raise ValueError(
                f"{call.why_unknown() if call.why_unknown else none} Set blur_sigma to -1, which needs none."
            )
        # In float32 at least: a kernel in bfloat16 no longer sums to 1 (to 0.4 % on each axis), and it would add two
        # roundings to the one at the end. Next to the attention itself it costs nothing.
        exact = torch.promote_types(q.dtype, torch.float32)
        out = q.to(exact)
        for axis, size in enumerate(call.grid):
            longest = size if self.cut_by is None else call.grid[self.cut_by]
            matrix = blur_matrix(size, self.blur_sigma, self.padding, exact, q.device, longest)
            # [rows, heads, tokens before the axis, axis, what is after it]
            out = matrix @ out.reshape(*q.shape[:2], math.prod(call.grid[:axis]), size, -1)
        return out.reshape(q.shape).to(q.dtype)


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)  # may be used again where gradients are wanted
def blur_matrix(
    size: int, sigma: float, padding: str, dtype: torch.dtype, device: torch.device, longest: int | None = None
) -> Tensor:
    """The Gaussian and its border on one axis, as one matrix [size, size] whose rows sum to 1. longest: what limits the
    kernel of reflect; the axis itself where none is given."""
    if padding == "symmetric":
        period, edge = 2 * size, 2 * size - 1  # … c b a | a b c | c b a …
        sigma = min(sigma, 3.0 * period)  # flat to 1e-77 from there on
        reach = math.ceil(9 * sigma)  # beyond it less than 1e-17
    else:
        period, edge = max(1, 2 * size - 2), 2 * size - 2  # … c b | a b c | b a …
        reach = min(math.ceil(6 * sigma) | 1, (longest or size) | 1) // 2
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-((offsets.double() / sigma) ** 2) / 2)
    kernel = torch.zeros(period, dtype=torch.float64).index_add_(0, offsets % period, weights)  # over all mirror images
    places = (torch.arange(size)[:, None] + torch.arange(period)) % period  # [size, period]
    places = torch.where(places < size, places, edge - places)
    kernel = (kernel / kernel.sum()).expand_as(places)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, places, kernel).to(dtype).to(device)

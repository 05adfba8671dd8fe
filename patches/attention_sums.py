"""How much each image token is attended to: the column sums of the self-attention map, which SAG masks by.

    A_j = mean over heads of Σ_i softmax(q_i·K)_j,   over image tokens i and j, in units of its mean over j

Nothing is changed; one layer's map is never held whole, only some queries' rows of it at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import AttentionCall, Observation
from .layers import Layer


@dataclass(frozen=True)
class AttentionSums(Observation):
    """How much each token of the picture is attended to, [rows, image tokens]; 1 is the average."""

    layers: tuple[Layer, ...]

    def observe(self, call: AttentionCall) -> Tensor:  # [rows, image tokens]
        rows, heads, keys, _ = call.k.shape
        exact = torch.promote_types(call.q.dtype, torch.float32)
        image = call.image
        sums = torch.zeros(rows, image.stop - image.start, dtype=exact, device=call.q.device)
        for tokens in call.chunks(rows * heads * keys):
            logits = (call.q[:, :, tokens] * call.scale @ call.k.mT).to(exact)  # [rows, heads, chunk, keys]
            bias = call.bias_of(tokens)
            if bias is not None:
                logits = logits + bias
            sums = sums + logits.softmax(-1)[..., call.keys_of(call.image)].mean(1).sum(1)
        return sums / sums.mean(-1, keepdim=True)

"""How much each image token is attended to: the column sums of the self-attention map, which SAG masks by.

    A_j = mean over heads of Σ_i softmax(q_i·K)_j,   over image tokens i and j, in units of its mean over j

Nothing is changed; one layer's map is never held whole, only some queries' rows of it at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import AttentionCall
from .layers import Layer

CHUNK_ELEMENTS = 2**24  # of the map held at once


@dataclass(frozen=True)
class AttentionSums:
    layers: tuple[Layer, ...]

    def observe(self, call: AttentionCall) -> Tensor:  # [rows, image tokens]
        rows, heads, count, _ = call.k.shape
        exact = torch.promote_types(call.q.dtype, torch.float32)
        sums, chunk = 0, max(1, CHUNK_ELEMENTS // (rows * heads * count))
        for start in range(call.image.start, call.image.stop, chunk):
            queries = slice(start, min(start + chunk, call.image.stop))
            logits = (call.q[:, :, queries] * call.scale @ call.k.mT).to(exact)  # [rows, heads, chunk, tokens]
            if call.bias is not None:
                logits = logits + call.bias.expand(*call.bias.shape[:-2], call.q.shape[2], count)[..., queries, :]
            sums = sums + logits.softmax(-1)[..., call.image].mean(1).sum(1)
        return sums / sums.mean(-1, keepdim=True)

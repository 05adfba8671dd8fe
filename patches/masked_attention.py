"""Masked attention, PAG's ablations in one operator.   A → softmax(QKᵀ/√d + M),   M_ij = −∞ with probability r, else 0

Ahn et al. 2024, "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance", arXiv:2403.17377, the ablation of
the perturbation. i, j are tokens of the picture; M is drawn independently for each head, query and key, anew at every step.
The diagonal is kept or masked like the rest. The paper's names: identity is r = 1 with the diagonal kept (PAG itself),
off-diagonal mask r = 0.25 with it, random mask r = 0.25 without. Text is seen as before. Neutral at r = 0, or scale 0.

A query to which M leaves no key gives its own value, where a softmax of nothing would be no number: a token that sees
nothing keeps what it is, as if the diagonal alone were left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import About, AttentionCall, AttentionPerturbation, attend_to_self, check_params, param
from .layers import Layer


@dataclass(frozen=True)
class MaskedAttention(AttentionPerturbation):
    """Hides a random part of the picture's tokens from each other. Raises ValueError for a parameter out of range."""

    layers: tuple[Layer, ...]
    ratio: float = param(
        1.0,
        "How much the parts of the picture are hidden from each other, by chance. 0 is off. 1 hides all: "
        "with keep_diagonal on that is PAG. The paper's comparison uses 0.25. Higher changes the picture "
        "more.",
        low=0.0,
        high=1.0,
        step=0.01,
    )
    keep_diagonal: bool = param(
        True, "On: each part of the picture always sees itself. The paper found on better than off."
    )
    seed: int = param(
        0, "Which parts are hidden by chance. Another seed hides other parts.", low=0, high=2**64 - 1, step=1
    )

    about: ClassVar[About] = About(
        node_id="BeyondCFGMaskedAttention",
        name="Masked Attention",
        title="Masked Attention Guidance",
        summary=(
            "Makes structure clearer, from gently to as strongly as PAG. It moves away from what the model predicts "
            "when parts of the picture see only some other parts, drawn by chance. Takes as much extra time as CFG, "
            "or less."
        ),
        paper="arXiv:2403.17377",
        aliases=(
            "random attention mask",
            "pag ablation",
            "soft pag",
            "attention dropout",
            "better quality",
        ),
    )

    def __post_init__(self):
        check_params(self)

    @property
    def neutral(self) -> bool:
        return self.ratio == 0

    @property
    def random(self) -> bool:
        return not self.neutral and not (self.ratio == 1 and self.keep_diagonal)

    def attention(self, call: AttentionCall) -> Tensor:
        if self.ratio == 0:
            return call.attend(call.q, slice(0, call.q.shape[2]))
        if self.ratio == 1 and self.keep_diagonal:
            return attend_to_self(call)
        out = call.attended()
        rows, heads, keys, _ = call.k.shape
        generators = call.moment.generators(rows, call.q.device, salt=f"{self.seed} {call.layer}")
        for row, generator in enumerate(generators):  # by itself: what is drawn at once must not depend on the batch
            for tokens in call.chunks(heads * keys):
                out[row, :, tokens] = self._masked(call, row, tokens, generator)
        return out

    def _masked(self, call: AttentionCall, row: int, tokens: slice, generator: torch.Generator) -> Tensor:
        """The output for image `tokens` of one row, [heads, chunk, head_dim]."""
        q, k, v = call.q[row, :, tokens] * call.scale, call.k[row], call.v[row]
        exact = torch.promote_types(q.dtype, torch.float32)
        logits = (q @ k.mT).to(exact)  # [heads, chunk, keys]
        bias = call.bias_of(tokens)
        if bias is not None:
            logits = logits + bias.expand(call.q.shape[0], *bias.shape[1:])[row]
        logits[..., call.keys_of(call.image)].masked_fill_(self._hidden(call, tokens, generator), -torch.inf)
        out = logits.softmax(-1).to(v.dtype) @ v
        sees_nothing = logits.amax(-1, keepdim=True) == -torch.inf
        return torch.where(sees_nothing, v[:, call.keys_of(tokens)], out)

    def _hidden(self, call: AttentionCall, tokens: slice, generator: torch.Generator) -> Tensor:
        """Which tokens of the picture each of `tokens` does not see, [heads, chunk, picture]."""
        image, heads = call.image, call.q.shape[1]
        shape = (tokens.stop - tokens.start, heads, image.stop - image.start)  # queries first: chunks continue the draw
        hidden = torch.rand(shape, generator=generator, device=call.q.device).transpose(0, 1) < self.ratio
        if self.keep_diagonal:
            hidden.diagonal(tokens.start - image.start, dim1=-2, dim2=-1).fill_(False)
        return hidden

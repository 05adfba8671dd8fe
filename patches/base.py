"""What every method is made of that needs no host: how it declares itself, and what a perturbation may touch.

Shapes, everywhere in this folder: tokens are [rows, heads, tokens, head_dim], where the rows are those of one branch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from .layers import Layer


@dataclasses.dataclass(frozen=True)
class About:
    """How a method introduces itself to a user: its node's identity, and where its equation is printed."""

    node_id: str  # a contract with saved workflows: never changes once released
    title: str
    summary: str
    paper: str
    aliases: tuple[str, ...] = ()


def param(default, help: str, *, low: float | None = None, high: float | None = None, step: float | None = None):
    """A field of a method that its node shows as an input: tooltip, and for numbers a finite range."""
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high, "step": step})


def check_params(method) -> None:
    """Raise ValueError, naming field, value and range, where a number of `method` is not finite or out of range."""
    for field in dataclasses.fields(method):
        value, low, high = getattr(method, field.name), field.metadata.get("low"), field.metadata.get("high")
        if low is None and high is None:
            continue
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"{field.name} is {value}; it must be a number from {low:g} to {high:g}")


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """One self-attention of the network, cut down to the rows of one branch."""

    q: Tensor  # [rows, heads, tokens, head_dim]
    k: Tensor  # [rows, heads, tokens, head_dim]
    v: Tensor  # [rows, heads, tokens, head_dim]
    image: slice  # which of the tokens are the picture that is being denoised; the others are text, references, padding
    grid: (
        tuple[int, ...] | None
    )  # the picture's tokens as (height, width) or (time, height, width), where it has a grid
    scale: float  # of the logits
    bias: Tensor | None  # added to the logits, broadcastable to [rows, heads, tokens, tokens]
    attend: Callable[[Tensor, slice], Tensor]  # (queries, which tokens they are) → the host's own attention of them

    @property
    def others(self) -> list[slice]:
        """The tokens that are not the picture, as at most two slices."""
        ends = (slice(0, self.image.start), slice(self.image.stop, self.q.shape[2]))
        return [end for end in ends if end.stop > end.start]


@runtime_checkable
class Perturbation(Protocol):
    """A frozen setting of how the network is made worse in chosen layers. It sees one branch's rows, never the batch,
    the host or σ, and never changes a tensor it was given."""

    about: ClassVar[About]
    layers: tuple[Layer, ...]

    def attention(self, call: AttentionCall) -> Tensor:
        """The layer's output [rows, heads, tokens, head_dim] in place of the host's own attention."""

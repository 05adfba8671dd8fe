"""The forwards that stand around modules of a network: attention, blocks that are left out, the time embedding."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..base import Moment
from .attention import ATTENTION, PARTS, TEXT, TransformerAttention
from .chunks import Chunks, PresentChunks, by_chunk, mark_reached
from .forwards import Inputs, Streams


@dataclass(frozen=True)
class AttendingModule:
    """The forward of a module of a transformer. Within it the host's attention override is `attention`."""

    forward: Callable
    attention: TransformerAttention
    text: Inputs | None  # the input that holds the text, which comes first
    parts: bool = False  # whether it attends in several calls
    sliced: bool = False  # whether the host's "img_slice" says how much text there is

    def __call__(self, *args, **kwargs):
        options = kwargs.get("transformer_options", {})
        if self.sliced and "img_slice" not in options:
            raise self.attention.refusal("nothing tells how much text comes first.")
        if self.parts:
            options = {**options, PARTS: []}
        if self.text is not None:
            (tokens,) = self.text.read(args, kwargs)
            options = {**options, TEXT: tokens.shape[1]}
        elif "img_slice" in options:
            options = {**options, TEXT: options["img_slice"][0]}
        return self.forward(*args, **{**kwargs, "transformer_options": {**options, ATTENTION: self.attention}})


@dataclass(frozen=True)
class SkippedBlock:
    """The forward of a block that is left out for some chunks of the batch."""

    forward: Callable
    streams: Streams
    axis: int  # which axis of the streams is the batch
    chunks: Chunks
    reached: set = field(compare=False)  # what has come to where it acts
    present: PresentChunks = field(compare=False)

    def __call__(self, *args, **kwargs):
        mark_reached(self.reached, self.chunks)
        before, chunks = self.streams.read(args, kwargs), self.present.of(self.chunks)
        if all(chunks):
            return before[0] if len(before) == 1 else tuple(before)
        before = [tokens.clone() for tokens in before]  # blocks add to their inputs in place
        out = self.forward(*args, **kwargs)

        def left_out(stream: int, after: Tensor) -> Tensor:
            old, new = before[stream].movedim(self.axis, 0), after.movedim(self.axis, 0)
            kept = by_chunk(new.shape[0], chunks, lambda at: new[at], lambda at, _: old[at])
            return kept.movedim(0, self.axis)

        return self.streams.changed(out, left_out)


@dataclass(frozen=True)
class TimeModule:
    """The forward of the timestep's embedder, which gives some chunks of the batch another embedding."""

    forward: Callable
    chunks: Chunks
    rows: int  # of the batch
    which: str  # Architecture.time_rows
    moment: Moment
    reached: set = field(compare=False)
    grid: tuple[int, ...] = ()  # of the picture's tokens
    called: list = field(default_factory=list, compare=False)  # not empty once it has been called

    def __call__(self, *args, **kwargs):
        mark_reached(self.reached, self.chunks)
        embedding = self.forward(*args, **kwargs)
        if self.which == "first call" and self.called:
            return embedding
        self.called.append(True)
        if self.which == "tokens":
            return self._of_tokens(embedding)
        start = len(embedding) - self.rows if self.which == "last" else 0
        # There may be embeddings of other times, such as the references'.
        before, now, after = embedding.split([start, self.rows, len(embedding) - self.rows - start])

        def perturbed(at: slice, perturbation) -> Tensor:
            return perturbation.time_embedding(now[at], self.moment)

        out = by_chunk(self.rows, self.chunks, lambda at: now[at], perturbed)
        channels = embedding.shape[-1]
        return torch.cat([part.reshape(-1, channels) for part in (before, out, after)]).reshape(embedding.shape)

    def _of_tokens(self, embedding: Tensor) -> Tensor:
        """One embedding for each row, frame or token of the picture; those of guides come after."""
        times = embedding.reshape(self.rows, -1, embedding.shape[-1])
        many = next((n for n in (math.prod(self.grid), self.grid[0]) if times.shape[1] >= n), 1)

        def perturbed(at: slice, perturbation) -> Tensor:
            worse = perturbation.time_embedding(times[at, :many], self.moment)
            return torch.cat([worse, times[at, many:]], 1)

        return by_chunk(self.rows, self.chunks, lambda at: times[at], perturbed).reshape(embedding.shape)

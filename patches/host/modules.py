"""The forwards that stand around modules of a network: attention, blocks that are left out, the time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..base import Intervention, Moment, Perturbation, TokenCall
from ..layout import Layout
from .attention import ADVICE, ATTENTION, PARTS, TEXT, TransformerAttention
from .chunks import Chunks, PresentChunks, by_chunk, mark_reached, titles
from .forwards import Inputs, Streams
from .prompts import PromptAttention


@dataclass(frozen=True)
class AttendingModule:
    """The forward of a module of a transformer. Within it the host's attention override is `attention`."""

    forward: Callable
    attention: TransformerAttention | PromptAttention
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
    """The forward of a block that is left out for some chunks of the batch, or some samples of a chunk."""

    forward: Callable
    streams: Streams
    axis: int  # which axis of the streams is the batch
    chunks: Chunks
    samples: Mapping[Intervention, Tensor]  # which of its samples leave the block out, where they are not all
    reached: set = field(compare=False)  # what has come to where it acts
    present: PresentChunks = field(compare=False)

    def __call__(self, *args, **kwargs):
        self._mark_reached()
        before, chunks = self.streams.read(args, kwargs), self.present.of(self.chunks)
        if all(chunks) and not self.samples:
            return before[0] if len(before) == 1 else tuple(before)
        before = [tokens.clone() for tokens in before]  # blocks add to their inputs in place
        out = self.forward(*args, **kwargs)

        def left_out(stream: int, after: Tensor) -> Tensor:
            old, new = before[stream].movedim(self.axis, 0), after.movedim(self.axis, 0)

            def skipped(at: slice, skip: Intervention) -> Tensor:
                if skip not in self.samples:
                    return old[at]
                samples, rows = self.samples[skip].to(new.device), old[at]
                samples = samples.repeat_interleave(len(rows) // len(samples))  # PixelDiT has a row for each patch
                return torch.where(samples.view(-1, *[1] * (rows.ndim - 1)), rows, new[at])

            kept = by_chunk(new.shape[0], chunks, lambda at: new[at], skipped)
            return kept.movedim(0, self.axis)

        return self.streams.changed(out, left_out)

    def _mark_reached(self) -> None:
        if not torch.compiler.is_compiling():
            idle = {skip for skip, samples in self.samples.items() if not samples.any()}
            mark_reached(self.reached, tuple(None if chunk in idle else chunk for chunk in self.chunks))


@dataclass(frozen=True)
class Entrance:
    """The forward of a block into which other tokens of the picture go for some chunks of the batch."""

    forward: Callable
    streams: Streams
    layout: Layout | None  # of the block's attention; None: all tokens are the picture
    chunks: Chunks
    layer: str
    moment: Moment
    reached: set = field(compare=False)  # what has come to where it acts
    present: PresentChunks = field(compare=False)
    others: Callable[[], str] = field(compare=False)  # a sentence of what other nodes have put into the network
    picture: int = 0  # which of the streams the picture is in
    axis: int = 0  # which axis of the streams is the batch
    sliced: bool = False  # whether the host's "img_slice" says how much text there is

    def __call__(self, *args, **kwargs):
        mark_reached(self.reached, self.chunks)
        streams, chunks = self.streams.read(args, kwargs), self.present.of(self.chunks)
        rows_first = streams[self.picture].movedim(self.axis, 0)
        tokens = rows_first.flatten(1, -2)  # [rows, tokens, channels]; some networks keep the grid's axes
        counts = [stream.movedim(self.axis, 0).flatten(1, -2).shape[1] for stream in streams]
        image, order = self._image(counts, kwargs.get("transformer_options", {}), tokens)

        def entering(at: slice, perturbation) -> Tensor:
            given = tokens[at] if order is None else tokens[at][:, order]
            call = TokenCall(given[:, image], self.layer, self.moment)
            new = torch.cat([given[:, : image.start], perturbation.tokens(call), given[:, image.stop :]], 1)
            return new if order is None else new[:, order.argsort()]

        new = by_chunk(len(tokens), chunks, lambda at: tokens[at], entering)
        new = new.view(rows_first.shape).movedim(0, self.axis)
        args, kwargs = self.streams.replaced(args, kwargs, self.picture, new)
        return self.forward(*args, **kwargs)

    def _image(self, counts: list[int], options: dict, tokens: Tensor) -> tuple[slice, Tensor | None]:
        """(which tokens of the picture's stream are the picture, in which order of them if not in their own)."""
        if self.layout is None:
            return slice(0, counts[0]), None
        total, beside = sum(counts), sum(counts) - counts[self.picture]
        text = options["img_slice"][0] if self.sliced and "img_slice" in options else beside
        try:
            image = self.layout.image(total, total, text)
        except LookupError as error:
            image, why = None, str(error)
        else:
            why = "the picture is not among them."
        if image is not None:
            shift = beside if image.start >= beside else 0  # the other streams come first in the attention, or last
            image = slice(image.start - shift, image.stop - shift)
            why = f"the picture would be {image.stop - image.start} tokens of {counts[self.picture]}."
        if image is None or image.stop > counts[self.picture]:
            raise RuntimeError(f"{self._titles()}: what enters {self.layer}: {why} {self.others()} {ADVICE}")
        return image, self.layout.order(image, counts[self.picture], tokens.device)

    def _titles(self) -> str:
        return titles(chunk for chunk in self.chunks if isinstance(chunk, Perturbation))


@dataclass(frozen=True)
class ToldTime:
    """The forward of the network itself, which is told another time in some chunks of the batch."""

    forward: Callable
    streams: Streams  # the input that is the time
    chunks: Chunks
    rows: int  # of the batch
    least: Tensor  # time that the network knows
    largest: Tensor
    reached: set = field(compare=False)

    def __call__(self, *args, **kwargs):
        mark_reached(self.reached, self.chunks)
        args, kwargs = self.streams.replaced(args, kwargs, 0, self._told(*self.streams.read(args, kwargs)))
        return self.forward(*args, **kwargs)

    def _told(self, time: Tensor, *others: Tensor) -> Tensor:
        who = titles(chunk for chunk in self.chunks if isinstance(chunk, Perturbation))
        if others:  # LTX-2 takes the largest of all rows for the sound
            raise RuntimeError(
                f"{who}: the network is told {1 + len(others)} times, one for the picture and one for the sound. In a row "
                f"those of all rows count, so it cannot be told another time in some. Take this guidance out."
            )
        if time.shape != (self.rows,):
            raise RuntimeError(
                f"{who}: the network is told a time for each frame or token here, {list(time.shape)}, and not one for each "
                f"picture. A mask of what is denoised does that, as for a first frame. Take this guidance out, or the mask."
            )

        def shifted(at: slice, perturbation) -> Tensor:
            return perturbation.told(time[at], self.least, self.largest).to(time.dtype)

        return by_chunk(self.rows, self.chunks, lambda at: time[at], shifted)


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

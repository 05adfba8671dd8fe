"""A network call's batch as equal chunks, one for each conditioning that the host put into the batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base import Intervention, Perturbation, PromptGuidance

Chunks = tuple[Intervention | None, ...]  # what is done in each chunk, in the batch's order; None: what the host does


@dataclass
class PresentChunks:
    """Which chunks of a network call's batch the module that runs now has got: prefix sharing leaves some out."""

    _kept: tuple[int, ...] | None = None  # None: all

    @contextlib.contextmanager
    def limited_to(self, kept: tuple[int, ...]) -> Iterator[None]:
        """Within this context only the chunks with these numbers are there."""
        before, self._kept = self._kept, kept
        try:
            yield
        finally:
            self._kept = before

    def of(self, chunks: tuple) -> tuple:
        """The entries of `chunks`, which has one for each chunk of the batch, for the chunks that are there."""
        return chunks if self._kept is None else tuple(chunks[at] for at in self._kept)


def by_chunk(
    batch: int,
    chunks: Chunks,
    clean: Callable[[slice], Tensor],
    changed: Callable[[slice, Intervention], Tensor],
    unknown: Callable[[], str] | None = None,
) -> Tensor:
    """A tensor of `batch` rows made chunk by chunk: clean(rows) where nothing is done, else changed(rows, what is done).
    Neighbouring chunks with the same are made at once, unless what is done draws random numbers by sample.

    `unknown` says why nobody knows which rows belong to which chunk. Raises RuntimeError then, unless the same is done
    in all chunks."""
    size, rest = divmod(batch, len(chunks))
    if unknown or rest:
        acting = {chunk for chunk in chunks if isinstance(chunk, Perturbation)}
        if not acting:
            return clean(slice(None))
        if len({*chunks}) > 1 or any(chunk.random for chunk in acting):
            why = (
                unknown()
                if unknown
                else f"{batch} rows are no {len(chunks)} equal shares. Another pack has changed them"
            )
            raise RuntimeError(f"{titles(acting)}: {why}")
        return changed(slice(None), *acting)
    parts, start = [], 0
    for end in range(1, len(chunks) + 1):
        first = chunks[start]
        if end == len(chunks) or chunks[end] != first or (first is not None and first.random):
            rows = slice(start * size, end * size)
            parts.append(clean(rows) if first is None else changed(rows, first))
            start = end
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def only(kinds: type | tuple[type, ...], chunks: Chunks) -> Chunks:
    """`chunks` with None in place of what is of no kind in `kinds`."""
    return tuple(chunk if isinstance(chunk, kinds) else None for chunk in chunks)


def titles(perturbations: Iterable[Perturbation | PromptGuidance]) -> str:
    """The titles of their nodes, each once."""
    return ", ".join(sorted({perturbation.about.name for perturbation in perturbations}))


def mark_reached(reached: set[Intervention | None], chunks: Chunks) -> None:
    """Note that `chunks` have come to where they act. A compiled graph runs no Python, so it notes nothing."""
    if not torch.compiler.is_compiling():
        reached.update(chunks)

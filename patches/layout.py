"""Where the picture's tokens are among all tokens of a self-attention, in one call of the network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Place = Callable[[int, int, int], int]  # (tokens, of which the picture, and the text) → where the picture begins


def first(tokens: int, size: int, text: int) -> int:
    """The picture's tokens come first."""
    return 0


def last(tokens: int, size: int, text: int) -> int:
    """The picture's tokens come last."""
    return tokens - size


def after_text(tokens: int, size: int, text: int) -> int:
    """The picture's tokens come after the text's."""
    return text


@dataclass(frozen=True)
class Layout:
    """Where the picture is, as `place` says, or as probes have shown for each size of an attention in `known`."""

    grid: tuple[int, ...]
    is_set: bool = False  # whether the tokens have no order, so that the grid only counts them
    place: Place = first
    shift: int = 0  # tokens by which the picture begins later than `place` says
    across: int = 0  # tokens of another picture that follow in each row of the grid
    prefix: bool = False  # whether keys that have no queries come first
    known: Mapping[tuple[int, int], int | None] | None = None  # (queries, keys) → where it begins; None: not in there
    seen: Mapping[tuple[int, int], list[int]] = field(default_factory=dict)  # (queries, keys) → its tokens, by a probe

    def image(self, tokens: int, keys: int, text: int, call: slice | None = None) -> slice | None:
        """Which of the tokens are the picture; None where it is not in this attention. `call` is a slice of all tokens
        where the call has only some of them; the result then counts from its start. Raises LookupError where that is
        not known."""
        if self.known is not None:
            if (tokens, keys) not in self.known:
                raise LookupError(f"{tokens} queries and {keys} keys were not seen when the network was probed.")
            start = self.known[tokens, keys]
            return None if start is None else slice(start, start + math.prod(self.grid))
        if keys < tokens:
            raise LookupError(f"its {tokens} tokens share {keys} keys, so that none has its own.")
        if call is not None:
            tokens = keys
        size = math.prod(self.grid)
        start = self.place(tokens, size, text) + self.shift
        if call is not None:
            if start + size <= call.start or call.stop <= start:
                return None
            start, tokens = start - call.start, call.stop - call.start
        if not 0 <= start <= tokens - size - self.across * (size // self.grid[-1]):
            raise LookupError(
                f"{tokens} tokens hold no picture of {' × '.join(map(str, self.grid))} from token {start} on."
            )
        return slice(start, start + size)

    def check(self, image: slice, tokens: int, keys: int) -> None:
        """Raise LookupError where a probe has seen the picture elsewhere than in `image`."""
        seen, width = self.seen.get((tokens, keys)), self.grid[-1]
        if seen is None:
            return
        lines = range((image.stop - image.start) // width)
        starts = [image.start + line * (width + self.across) for line in lines]
        if [*seen] != [start + column for start in starts for column in range(width)]:
            raise LookupError(
                f"its picture should be {image.stop - image.start} tokens from {image.start} on, but a probe of the "
                f"network has seen {len(seen)} tokens from {seen[0]} to {seen[-1]} follow the latent. This pack's table "
                f"of networks is wrong here; please report that. With check off in Guidance Options the table is believed."
            )

    def order(self, image: slice, tokens: int, device: torch.device) -> Tensor | None:
        """The permutation of all tokens that puts the picture's at `image`, one after the other. None: they are there."""
        if not self.across:
            return None
        at, width = torch.arange(tokens, device=device), self.grid[-1] + self.across
        end = image.start + (image.stop - image.start) // self.grid[-1] * width
        rows = at[image.start : end].view(-1, width)
        picture, beside = rows[:, : self.grid[-1]], rows[:, self.grid[-1] :]
        return torch.cat([at[: image.start], picture.flatten(), beside.flatten(), at[end:]])

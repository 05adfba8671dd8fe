"""What stands around a network's modules that take a text whole, where a negative prompt follows the prompt in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Lengths:
    """How many tokens of a row's text are the prompt's, and how many the negative's, which follow."""

    own: int
    negative: int

    @property
    def both(self) -> int:
        """All tokens of a row's text."""
        return self.own + self.negative


def part_of(tokens: Tensor, axis: int, which: slice) -> Tensor:
    """Those of the tokens, which lie along `axis`."""
    return tokens.narrow(axis, which.start, which.stop - which.start)


def cut(tokens: Tensor, axis: int, at: int) -> tuple[Tensor, Tensor]:
    """The tokens before number `at`, and the others."""
    return tokens.narrow(axis, 0, at), tokens.narrow(axis, at, tokens.shape[axis] - at)


def without(tokens: Tensor, axis: int, gone: slice) -> Tensor:
    """All tokens but `gone`."""
    before, _ = cut(tokens, axis, gone.start)
    _, after = cut(tokens, axis, gone.stop)
    return torch.cat([before, after], axis)


@dataclass(frozen=True)
class TextModule:
    """The forward of a module that takes a text whole: prompt and negative go through it one after the other."""

    forward: Callable
    inputs: tuple[str, ...]  # the names of its inputs, of which the first is the text
    lengths: Lengths
    positions: str  # the input that says where in its text each token is; "": none

    def __call__(self, text: Tensor, *args, **kwargs):
        given = {**dict(zip(self.inputs[1:], args, strict=False)), **kwargs}
        both = slice(self.lengths.own, self.lengths.both)

        def made(tokens: slice, places: slice) -> Tensor:
            parts = {
                name: _of_tokens(one, self.lengths.both, places if name == self.positions else tokens)
                for name, one in given.items()
            }
            return self.forward(text[:, tokens], **parts)

        own = made(slice(0, both.start), slice(0, both.start))
        return torch.cat([own, made(both, slice(0, self.lengths.negative))], 1)


def _of_tokens(given, count: int, tokens: slice):
    """`given` for these of `count` tokens, where it is a tensor with an axis of so many after its first."""
    axes = [axis for axis in range(1, given.ndim) if given.shape[axis] == count] if isinstance(given, Tensor) else []
    return part_of(given, axes[0], tokens) if axes else given


@dataclass(frozen=True)
class PositionsModule:
    """The forward of a module that gets the positions of tokens, [rows, tokens, axes]: the negative's tokens have those
    that they would have in a text of their own, and the picture those that it would have after the prompt alone."""

    forward: Callable
    lengths: Lengths
    last: bool  # whether the text comes last
    counted: bool  # whether the first axis counts the text's tokens, and then goes on with the picture
    first_call: bool  # whether the text's positions come in a first call of their own
    called: list = field(default_factory=list, compare=False)  # not empty once it has been called

    def __call__(self, positions: Tensor, *args, **kwargs):
        own, negative, both = self.lengths.own, self.lengths.negative, self.lengths.both
        has_text = not (self.first_call and self.called)
        self.called.append(True)
        count = both if has_text else 0
        before, rest = cut(positions, 1, positions.shape[1] - count if self.last else 0)
        text, after = cut(rest, 1, count)
        if has_text:
            text = torch.cat([text[:, :own], text[:, :negative]], 1)
        before, after = (self._counted(part) for part in (before, after))
        return self.forward(torch.cat([before, text, after], 1), *args, **kwargs)

    def _counted(self, picture: Tensor) -> Tensor:
        if not self.counted:
            return picture
        counts = torch.zeros_like(picture)
        counts[..., 0] = self.lengths.negative
        return torch.where(picture[..., :1] == 0, picture, picture - counts)  # what fills a picture up has position 0


@dataclass(frozen=True)
class FilledUpText:
    """The forward of the module after which the network fills a text up: here each prompt is filled up by itself."""

    forward: Callable
    lengths: Lengths
    multiple: int
    padding: Tensor  # [1, channels]

    def __call__(self, text: Tensor, *args, **kwargs):
        tokens = self.forward(text, *args, **kwargs)
        parts = [self._filled_up(part) for part in cut(tokens, 1, self.lengths.own)]
        self.lengths.own, self.lengths.negative = (part.shape[1] for part in parts)
        return torch.cat(parts, 1)

    def _filled_up(self, tokens: Tensor) -> Tensor:
        padding = self.padding.to(tokens).expand(tokens.shape[0], -tokens.shape[1] % self.multiple, -1)
        return torch.cat([tokens, padding], 1)

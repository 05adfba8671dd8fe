"""What a probe may change, what it shows, and what must hold in all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

SURE = 1e-3  # of the largest change: what is above has changed …
UNSURE = 1e-4  # … and what is below has not. Between them nobody knows


class NotProven(Exception):
    """A step of the proof that does not hold, and what was seen in place of it."""

    def __init__(self, step: str, why: str):
        super().__init__(why)
        self.step = step


@dataclass(frozen=True)
class Change:
    """What is other in the second row of a probe."""

    cells: Tensor | None = None  # [*spatial] of bool: these cells of the latent get other numbers
    rolled: bool = False  # the latent's last axis is moved by one cell
    time: bool = False  # a little less noise
    text: bool = False  # another text
    alone: bool = False  # there is no second row
    again: bool = False  # it is the second of two forwards, and what the first has left in the network stays there


@dataclass(frozen=True)
class SeenAttention:
    """One attention of a probe. Of each token a few numbers are kept, which change if anything of the token does."""

    path: tuple[str, ...]  # the modules that it runs in, the outermost first, by their names in the network
    told: tuple[str, ...]  # those of them whose own transformer_options reach it
    rows: int
    q: Tensor  # [rows, tokens, numbers]
    k: Tensor  # [rows, keys, numbers]
    v: Tensor

    @property
    def form(self) -> tuple:
        """What is the same of this attention in every probe of two rows."""
        return self.path, self.told, self.rows, tuple(self.q.shape), tuple(self.k.shape)

    @property
    def size(self) -> tuple[int, int]:
        """How many queries and keys there are."""
        return self.q.shape[1], self.k.shape[1]


@dataclass
class Probe:
    """What one probe has shown."""

    attentions: list[SeenAttention] = field(default_factory=list)
    # For each list of modules, of each block but the last: which input of the next block each of its outputs became.
    became: dict[str, list[tuple[str | None, ...]]] = field(default_factory=dict)
    # The same of each block: for each output, the inputs of its shape; None where it gives nothing.
    alike: dict[str, list[tuple[tuple[str, ...] | None, ...]]] = field(default_factory=dict)
    # The same of each block: for each output, its sums over all axes but one, for each axis.
    sums: dict[str, list[tuple[tuple[Tensor, ...] | None, ...]]] = field(default_factory=dict)
    # Of the modules that ran before the first attention: the small tensors that they gave.
    outputs: list[tuple[str, tuple[Tensor, ...]]] = field(default_factory=list)
    kept_state: bool = True  # whether the network was afterwards as before


Run = Callable[[Change], Probe]


def differ(before: Tensor, after: Tensor) -> Tensor:
    """Which tokens [tokens] of one row differ, of [tokens, numbers]. Raises NotProven where some differ hardly."""
    change = (after - before).abs().amax(-1)
    most = change.max()
    if ((change > UNSURE * most) & (change < SURE * most)).any():
        raise NotProven("self-attention", "some tokens change so little that they may be the picture or not")
    return change > SURE * most if most > 0 else change > 0


def pictures_between(
    before: Sequence[SeenAttention], after: Sequence[SeenAttention], row: int
) -> dict[int, tuple[list[int], int]]:
    """The attentions over the picture, from what they are in row number `row` of `before` and in the second row of
    `after`, where the whole latent is another: number → (the picture's tokens, keys without queries that come first).
    Raises NotProven where there is none."""
    found = {}
    for at, (was, now) in enumerate(zip(before, after, strict=True)):
        if was.rows != 2:
            continue
        parts = ((was.q, now.q), (was.k, now.k), (was.v, now.v))
        tokens, keys, values = (differ(a[row], b[1]).nonzero().flatten().tolist() for a, b in parts)
        if tokens and len(keys) == len(tokens) and keys == values:
            prefix, surplus = keys[0] - tokens[0], was.size[1] - was.size[0]
            if prefix in (0, surplus) and surplus >= 0 and [key - prefix for key in keys] == tokens:
                found[at] = (tokens, prefix)
    if not found:
        raise NotProven("self-attention", "no attention has queries and keys of the same tokens of the latent")
    return found


def _moved(before: Tensor, after: Tensor) -> float:
    return float((after - before).abs().max()) if before.numel() else 0.0


def _rounding(alone: SeenAttention, both: SeenAttention) -> float:
    """How far the size of a batch alone moves the numbers of a row. A mixture of experts rounds by what is in the other
    row, since an expert gets the tokens of both. Raises NotProven where that is more than rounding."""
    if both.rows != 2:
        return 0.0
    moved = max(_moved(a[0], b[0]) for a, b in ((alone.q, both.q), (alone.k, both.k)))
    if moved > UNSURE * max(float(part.abs().max()) for part in (both.q, both.k)):
        raise NotProven("rows", f"in {where(both)} a row is another one beside a copy of itself")
    return moved


class Proof:
    """Probes that are held against the one in which nothing is changed."""

    def __init__(self, run: Run):
        self._run = run
        self.base = run(Change())
        if not self.base.attentions:
            raise NotProven("calls", "it calls none of the host's attention functions")
        if not all(part.isfinite().all() for seen in self.base.attentions for part in (seen.q, seen.k, seen.v)):
            raise NotProven("calls", "its tokens are not finite where attention gives zeros")
        alone, both = run(Change(alone=True)).attentions, self.base.attentions
        if [seen.path for seen in alone] != [seen.path for seen in both]:
            raise NotProven("calls", f"two rows make {len(both)} attentions, and one makes {len(alone)}")
        self._rounding = [_rounding(one, two) for one, two in zip(alone, both, strict=True)]

    def probe(self, change: Change) -> Probe:
        """A probe with `change` in its second row. Raises NotProven where it is no change of that row alone."""
        probe = self._run(change)
        if [seen.form for seen in probe.attentions] != [seen.form for seen in self.base.attentions]:
            raise NotProven("calls", "other attentions run when its inputs change")
        for before, after, rounding in zip(self.base.attentions, probe.attentions, self._rounding, strict=True):
            if before.rows != 2:
                if change.cells is not None and not torch.equal(before.k, after.k):
                    raise NotProven(
                        "rows", f"the picture is in {before.rows} rows where there are 2, in {where(before)}"
                    )
            elif any(_moved(a[0], b[0]) > 4 * rounding for a, b in ((before.q, after.q), (before.k, after.k))):
                raise NotProven("rows", f"in {where(before)} a row changes with another, or from one time to the next")
        return probe

    def forgets(self) -> bool:
        """Whether the network runs the same after another forward, though that has changed something in it."""
        again = self._run(Change(again=True)).attentions
        pairs = [*zip(self.base.attentions, again, strict=False)]
        same = all(a.form == b.form and torch.equal(a.q, b.q) and torch.equal(a.k, b.k) for a, b in pairs)
        return len(again) == len(self.base.attentions) and same

    def changed(self, probe: Probe, at: int, tokens: list[int]) -> Tensor:
        """Which of `tokens` of attention number `at` have changed in its second row, [tokens] of bool. Raises NotProven
        where others have."""
        changed = differ(self.base.attentions[at].q[1], probe.attentions[at].q[1])
        if int(changed.sum()) != int(changed[tokens].sum()):
            raise NotProven("grid", "tokens change that did not when the whole latent did")
        return changed[tokens]

    def is_set(self, pictures: dict[int, tuple[list[int], int]]) -> bool:
        """Whether tokens have no order: those of a latent that is moved by a cell are the same, moved."""
        rolled = self.probe(Change(rolled=True))
        for at, (tokens, prefix) in pictures.items():
            before, after = self.base.attentions[at], rolled.attentions[at]
            for was, now, places in ((before.q, after.q, tokens), (before.k, after.k, [t + prefix for t in tokens])):
                moved = was[1, places].roll(1, 0)
                if (now[1, places] - moved).abs().max() > SURE * was[1, places].abs().max():
                    return False
        return True


def where(seen: SeenAttention) -> str:
    """The innermost module that an attention runs in, for messages."""
    return seen.path[-1] or "the network"

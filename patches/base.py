"""What every method is made of that needs no host: how it declares itself, and what a perturbation may touch.

Shapes, everywhere in this folder: tokens are [rows, heads, tokens, head_dim], where the rows are those of one branch.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .layers import Layer

CHUNK_ELEMENTS = 2**24  # logits held at once where an attention is written out; a whole map could be huge


@dataclasses.dataclass(frozen=True)
class About:
    """How a method introduces itself to a user: its node's identity, and where its equation is printed."""

    node_id: str  # a contract with saved workflows: never changes once released
    name: str  # the short one, in messages, reports and labels
    summary: str  # what it does for the user, then how, then what it takes
    title: str = ""  # on its node, with the name in it; where none is given, the name
    group: Literal[
        "Guidance", "CFG corrections", "Negative prompts", "Guiders", "Weaker models", "Tools", "Other packs"
    ] = "Guidance"
    paper: str = ""  # where its method comes from
    aliases: tuple[str, ...] = ()
    strength: str = "scale"  # what the user calls it, as its paper counts it
    default: float = 3.0  # of the strength
    window: tuple[float, float] = (0.0, 1.0)  # default start and end, as fractions of sampling
    guider: bool = False  # whether it has a guider node of its own
    auto: str = ""  # what the layers "auto" are, where it is not what the architecture recommends

    def __post_init__(self):
        object.__setattr__(self, "title", self.title or self.name)

    @property
    def off(self) -> float:
        """The strength that does nothing."""
        return {"scale": 0.0, "weight": 1.0}[self.strength]


def param(
    default,
    tooltip: str = "",
    *,
    low=None,
    high=None,
    step=None,
    choices: tuple[str, ...] = (),
    off=None,
    added: bool = False,
) -> Any:
    """A field of a method that a user sets. A number has a finite range, a text has choices.

    tooltip: of its input. Without one the field is the strength that `About` declares, and has that input.
    off: for the strength of a rule, the value at which the rule does nothing.
    added: it came after the first release. Its input is optional and stands last, since saved workflows lack it; the
        default is then what they have been made with.
    """
    limits = {"low": low, "high": high, "step": step, "choices": choices}
    metadata = {"help": tooltip, **limits, "off": off, "added": added}
    return dataclasses.field(default=default, metadata=metadata)


def strength_of(method: type) -> dataclasses.Field | None:
    """The field of a rule that is its strength: the one that `param` declares with `off`. None where there is none."""
    return next((field for field in dataclasses.fields(method) if field.metadata.get("off") is not None), None)


def check_params(method) -> None:
    """Raise ValueError, naming field, value and range, where a number of `method` is not finite or out of range, or a
    text is none of its choices."""
    for field in dataclasses.fields(method):
        value, low, high = getattr(method, field.name), field.metadata.get("low"), field.metadata.get("high")
        choices = field.metadata.get("choices")
        if choices and value not in choices:
            raise ValueError(f'{field.name} is "{value}"; it must be one of {", ".join(choices)}')
        if low is None and high is None:
            continue
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"{field.name} is {value}; it must be a number from {low:g} to {high:g}")


@dataclasses.dataclass(frozen=True)
class Moment:
    """When in sampling a network call is made, and the random numbers that belong to it: drawn by (seed, step, sample),
    so that they do not depend on what else is in the batch, and the global generators are left alone."""

    seed: int = 0
    step: int = 0
    time: float = 0.0  # 1 at the first moment of sampling, 0 at the last: the papers' t / T

    def generators(self, samples: int, device: torch.device, salt: str = "") -> list[torch.Generator]:
        """One for each sample; `salt` tells draws of one moment apart."""
        keys = (repr((self.seed, self.step, sample, salt)).encode() for sample in range(samples))
        seeds = (int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1 for key in keys)
        return [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def normal(self, like: Tensor, salt: str = "") -> Tensor:
        """Standard normal noise of the shape, dtype and device of `like`, whose first axis is samples. On the CPU:
        a few numbers, and the same on every device."""
        generators = self.generators(like.shape[0], torch.device("cpu"), salt)
        rows = [torch.randn(like.shape[1:], generator=generator) for generator in generators]
        return torch.stack(rows).to(like)


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """One self-attention of the network, cut down to the rows of one branch."""

    q: Tensor  # [rows, heads, tokens, head_dim]
    k: Tensor  # [rows, heads, keys, head_dim]
    v: Tensor  # [rows, heads, keys, head_dim]
    image: slice  # which of the tokens are the picture that is being denoised; the others are text, references, padding
    grid: tuple[int, ...] | None  # the picture's tokens as (height, width) or (time, height, width), where they are one
    scale: float  # of the logits
    bias: Tensor | None  # added to the logits, broadcastable to [rows, heads, tokens, keys]
    attend: Callable[[Tensor, slice], Tensor]  # (queries, which tokens they are) → the host's own attention of them
    layer: str
    moment: Moment  # at its defaults, unless something in the batch is `random`
    prefix: int = 0  # keys before the tokens' own; there may be more of them after
    why_unknown: Callable[[], str] | None = None  # says why nobody knows which key belongs to which token, where so …
    own_values: Tensor | None = None  # … and the values of the picture's tokens, where those are known all the same

    def keys_of(self, tokens: slice) -> slice:
        """Where the keys and values of `tokens` are. Raises RuntimeError where that is not known."""
        if self.why_unknown is not None:
            raise RuntimeError(self.why_unknown())
        return slice(tokens.start + self.prefix, tokens.stop + self.prefix)

    def only(self, heads: tuple[int, ...]) -> AttentionCall:
        """The same of these heads alone."""
        at = list(heads)

        def attend(queries: Tensor, tokens: slice) -> Tensor:
            every = queries.new_zeros(queries.shape[0], self.q.shape[1], *queries.shape[2:])
            every[:, at] = queries
            return self.attend(every, tokens)[:, at]

        bias = self.bias if self.bias is None or self.bias.shape[1] == 1 else self.bias[:, at]
        own = None if self.own_values is None else self.own_values[:, at]
        q, k, v = (part[:, at] for part in (self.q, self.k, self.v))
        return dataclasses.replace(self, q=q, k=k, v=v, bias=bias, attend=attend, own_values=own)

    @property
    def others(self) -> list[slice]:
        """The tokens that are not the picture, as at most two slices."""
        return _around(self.image, self.q.shape[2])

    @property
    def other_keys(self) -> list[slice]:
        """The keys that are not the picture's, as at most two slices."""
        return _around(self.keys_of(self.image), self.k.shape[2])

    def attended(self) -> Tensor:
        """[rows, heads, tokens, head_dim], in which the host's attention of `others` stands and the picture is to come."""
        out = self.v.new_empty(*self.q.shape[:3], self.v.shape[3])
        for tokens in self.others:
            out[:, :, tokens] = self.attend(self.q[:, :, tokens], tokens)
        return out

    def bias_of(self, tokens: slice) -> Tensor | None:
        """What is added to the logits of the queries `tokens`, [rows or 1, heads or 1, queries, keys]."""
        if self.bias is None:
            return None
        return self.bias.expand(*self.bias.shape[:-2], self.q.shape[2], self.k.shape[2])[..., tokens, :]

    def chunks(self, logits: int) -> Iterator[slice]:
        """The picture's tokens in pieces that hold CHUNK_ELEMENTS at once, for so many logits per token."""
        size = max(1, CHUNK_ELEMENTS // logits)
        for start in range(self.image.start, self.image.stop, size):
            yield slice(start, min(start + size, self.image.stop))


@dataclasses.dataclass(frozen=True)
class PromptCall:
    """One attention of the picture to its prompt, cut down to the rows of one chunk, with a negative prompt beside it. Each
    function gives the picture's part of an output, [rows, heads, tokens, head_dim], and costs one attention."""

    positive: Callable[[], Tensor]  # Z₊, with the prompt: what the host gives
    negative: Callable[[], Tensor]  # Z₋, with the negative prompt in its place
    joined: Callable[
        [float, float], Tensor
    ]  # (factor, bias) → with both: the negative's values times factor, logits + bias


@dataclasses.dataclass(frozen=True)
class TokenCall:
    """What enters one block of the network, cut down to the rows of one branch and to the picture."""

    tokens: Tensor  # [rows, tokens, channels]
    layer: str
    moment: Moment  # at its defaults, unless something in the batch is `random`


def _around(part: slice, size: int) -> list[slice]:
    return [end for end in (slice(0, part.start), slice(part.stop, size)) if end.stop > end.start]


class Intervention(abc.ABC):
    """A frozen setting of what is done in chosen layers of the network. It sees the rows of one branch, never the batch,
    the host or σ, and it never changes a tensor that it was given. It is a perturbation of one of the kinds below, an
    observation or a prompt guidance. Two that are equal do the same."""

    layers: tuple[Layer, ...]  # empty for the time, which all layers get

    def heads_in(self, layer: Layer) -> tuple[int, ...] | None:
        """The heads of one of the network's layers in which it acts; empty: in all of them. None: it does not act there."""
        return next((own.heads for own in self.layers if own.whole == layer), None)

    @property
    def random(self) -> bool:
        """Whether it draws random numbers, by the moment."""
        return False


class Observation(Intervention):
    """Reads the attention of its layers and changes nothing."""

    @abc.abstractmethod
    def observe(self, call: AttentionCall) -> Tensor:
        """What there is to report, [rows, image tokens]."""


class PromptGuidance(Intervention):
    """Lets a negative prompt act on the picture, in the attention of its layers. The main prediction is made with it."""

    about: ClassVar[About]

    @property
    def neutral(self) -> bool:
        """Whether its settings change nothing, so that the negative prompt need not be there."""
        return False

    @abc.abstractmethod
    def attention(self, call: PromptCall) -> Tensor:
        """The picture's attention in place of call.positive(), [rows, heads, tokens, head_dim]."""


class Perturbation(Intervention):
    """Makes the network worse in its layers. A subclass of one of the kinds below, and of no other."""

    about: ClassVar[About]

    @property
    def neutral(self) -> bool:
        """Whether its settings change nothing, so that no branch need be evaluated."""
        return False


class AttentionPerturbation(Perturbation):
    """Changes what the self-attention of its layers gives."""

    @abc.abstractmethod
    def attention(self, call: AttentionCall) -> Tensor:
        """The attention's output, [rows, heads, tokens, head_dim]. Raises ValueError where the setting cannot act."""


class TokenPerturbation(Perturbation):
    """Changes the picture's tokens that enter its layers."""

    @abc.abstractmethod
    def tokens(self, call: TokenCall) -> Tensor:
        """Other tokens in place of call.tokens, in their shape and dtype."""


class BlockPerturbation(Perturbation):
    """Leaves its layers out: what a block gives is what it got."""

    def left_out(self, layer: Layer, samples: int, moment: Moment) -> Tensor | None:  # noqa: ARG002 (to be overridden)
        """Which of a branch's samples leave `layer` out, [samples] of bool on the CPU. None: all of them do."""
        return None


class TimePerturbation(Perturbation):
    """Changes the embedding of the time that the network gets."""

    @abc.abstractmethod
    def time_embedding(self, embedding: Tensor, moment: Moment) -> Tensor:
        """Another embedding of the time, in the shape of `embedding`, [rows, *tokens, channels]."""


class TimeShift(Perturbation):
    """Changes the time that the network is told. Its input and σ stay as they are."""

    @abc.abstractmethod
    def told(self, time: Tensor, least: Tensor, largest: Tensor) -> Tensor:
        """Another time for each row of `time`, [rows], as the network counts: from `least` without noise to `largest`."""


def attend_to_self(call: AttentionCall) -> Tensor:
    """The attention in which every token of the picture sees itself and the others, but no other of the picture."""
    if call.own_values is not None:
        return call.own_values
    others = call.other_keys
    if not others:
        return call.v
    out = call.attended()
    k_other = torch.cat([call.k[:, :, keys] for keys in others], 2)  # [rows, heads, others, head_dim]
    v_other = torch.cat([call.v[:, :, keys] for keys in others], 2)
    rows, heads, count, _ = k_other.shape
    for tokens in call.chunks(rows * heads * (count + 1)):
        out[:, :, tokens] = _self_and_others(call, tokens, k_other, v_other)
    return out


def _self_and_others(call: AttentionCall, tokens: slice, k_other: Tensor, v_other: Tensor) -> Tensor:
    """The output for image `tokens`, each attending to itself and to the tokens of `k_other`, `v_other`."""
    own = call.keys_of(tokens)
    q, k, v = call.q[:, :, tokens] * call.scale, call.k[:, :, own], call.v[:, :, own]
    exact = torch.promote_types(q.dtype, torch.float32)
    to_self = (q.to(exact) * k).sum(-1, keepdim=True)  # [rows, heads, chunk, 1]
    to_others = (q @ k_other.mT).to(exact)  # [rows, heads, chunk, others]
    bias = call.bias_of(tokens)
    if bias is not None:
        to_self = to_self + torch.diagonal(bias[..., own], dim1=-2, dim2=-1).unsqueeze(-1)
        to_others = to_others + torch.cat([bias[..., other] for other in call.other_keys], -1)
    weights = torch.cat([to_self, to_others], -1).softmax(-1).to(v.dtype)
    return weights[..., :1] * v + weights[..., 1:] @ v_other

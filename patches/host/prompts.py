"""A negative prompt inside the network: its tokens follow those of the prompt, as one text, and the attention tells them
apart.

What a network does with text between attentions, it does with each token by itself. So the text of a row becomes the
prompt's tokens and after them the negative's. In each attention in which text is, the host's attention runs once without
the negative's tokens, which is what the row would be without a negative, and once without the prompt's. The picture gets
what the PromptGuidance makes of both, and each text what it gets in its own. Only the negative's tokens are computed in
addition, and the picture's queries attend twice. What other nodes have put around the attention sees texts of usual length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import comfy.ldm.modules.attention
import torch
from torch import Tensor
from torch.nn import Module, ModuleList
from torch.nn.functional import interpolate

from ..architectures import Architecture, Text, submodule
from ..base import PromptCall, PromptGuidance
from ..layout import Layout
from .attention import ADVICE, TEXT, TransformerAttention, bias_of, mask_of
from .chunks import PresentChunks, mark_reached
from .forwards import ForwardPatch, parameters
from .text_modules import FilledUpText, Lengths, PositionsModule, TextModule, part_of, without


@dataclass(frozen=True, eq=False)
class NegativePrompt:
    """What a negative prompt does in one chunk of a network call's batch."""

    guidance: PromptGuidance
    text: Tensor  # its tokens, [rows of the chunk, tokens, channels]
    mask: Tensor | None = None  # which of them are text and no padding, [rows of the chunk, tokens]
    strength: float = 1.0  # how far the attention goes of the way from the host's own to the guidance's
    region: Tensor | None = None  # the same at each place of the latent, [1 or rows, 1, *spatial]; None: 1 everywhere

    def mask_like(self, mask: Tensor) -> Tensor:
        """Which of its tokens are text, [rows, tokens], as `mask` says it of the prompt's."""
        own = self.mask if self.mask is not None else torch.ones(self.text.shape[:2], device=mask.device)
        return own.to(mask)


Negatives = tuple[NegativePrompt | None, ...]  # for each chunk of the batch


def with_negatives(text: Tensor, negatives: Negatives, of: Callable[[NegativePrompt], Tensor]) -> Tensor:
    """`text`, [batch, tokens, ...], with of(negative) after the tokens of each row; zeros where a chunk has none."""
    size = text.shape[0] // len(negatives)
    longest = max(of(negative).shape[1] for negative in negatives if negative)
    added = text.new_zeros(text.shape[0], longest, *text.shape[2:])
    for at, negative in enumerate(negatives):
        if negative:
            added[at * size : (at + 1) * size] = of(negative).to(text)
    return torch.cat([text, added], 1)


@dataclass(frozen=True)
class PromptAttention:
    """The host's attention override in a module in whose attention texts are that hold a negative prompt."""

    inner: Callable | None  # the override that would be there without it
    negatives: Negatives
    guides: bool  # whether the negative acts on the picture here
    lengths: Lengths
    place: str  # where the text is among the tokens, "first" or "last"; "keys" where it has no queries here
    where: str  # network and layer
    layout: Layout  # of the picture's tokens, where the call does not say its grid
    reached: set = field(compare=False)  # what has come to where it acts
    present: PresentChunks = field(compare=False)

    def __call__(
        self,
        func,
        q,
        k,
        v,
        heads,
        mask=None,
        attn_precision=None,
        skip_reshape=False,
        skip_output_reshape=False,
        grid=None,
        **kw,
    ) -> Tensor:
        kw |= {"attn_precision": attn_precision, "skip_reshape": skip_reshape}
        kw |= {"skip_output_reshape": skip_output_reshape}
        axes, layout = (
            (2 if skip_reshape else 1, 2 if skip_output_reshape else 1),
            Layout(grid) if grid else self.layout,
        )
        call = _Call(self, func, (q, k, v), heads, mask, *axes, layout, kw)
        keys, both = k.shape[call.axis], self.lengths.both
        if keys < both or (self.place == "keys" and keys != both):  # such as those of a picture, beside the text's
            return call.whole()
        parts = zip(*(share.parts() for share in self._shares(call)), strict=True)
        return torch.cat([torch.cat(part) for part in parts], call.out_axis)

    def refusal(self, what: str) -> RuntimeError:
        """An error that says what is in the way in this layer."""
        if isinstance(self.inner, TransformerAttention):
            return self.inner.refusal(what)
        return RuntimeError(f"{self.where}: {what} {ADVICE}")

    def _shares(self, call: _Call) -> Iterator[_Share]:
        """The rows that are there; those of neighbouring chunks with the same negative at once."""
        chunks = self.present.of(tuple(enumerate(self.negatives)))
        size, start = call.qkv[0].shape[0] // len(chunks), 0
        for end in range(1, len(chunks) + 1):
            acting = chunks[start][1]
            if end == len(chunks) or chunks[end][1] is not acting:
                yield _Share(call, slice(start * size, end * size), tuple(at for at, _ in chunks[start:end]), acting)
                start = end

    def places_of(self, region: Tensor, layout: Layout, tokens: int) -> Tensor:
        """What `region` is at each of the picture's tokens here, [1 or rows, 1, tokens, 1]; 0 at those of references."""
        before = self.lengths.own if self.place == "first" else 0
        own = 0 if self.place == "keys" else self.lengths.own
        try:
            image = layout.image(tokens + own, tokens + own, own)
        except LookupError as error:
            raise self.refusal(str(error)) from None
        grid = layout.grid
        if image is None or layout.is_set or len(grid) != region.ndim - 2:
            raise self.refusal("nothing tells where in the picture its tokens are, so a region cannot act.")
        places = region.new_zeros(len(region), tokens)
        places[:, image.start - before : image.stop - before] = interpolate(region, grid, mode="area").flatten(1)
        return places[:, None, :, None]


@dataclass
class _Share:
    """The rows of neighbouring chunks in which the same negative acts, or none, in one call of the attention function."""

    call: _Call
    rows: slice
    chunks: tuple[int, ...]
    acting: NegativePrompt | None
    made: dict[str, Tensor] = field(default_factory=dict)

    @property
    def lengths(self) -> Lengths:
        """Of the two texts."""
        return self.call.attention.lengths

    def parts(self) -> list[Tensor]:
        """What the rows' tokens get, in pieces in their order."""
        with self.call.attention.present.limited_to(self.chunks):
            picture = self._picture()
            if self.call.attention.place == "keys":
                return [picture]
            own = self._text("own", self.call.own, self.call.negative)
            texts = [own, self._nothing_like(own)]
            if self.acting is not None:
                texts[1] = self._text("negative", self.call.negative, self.call.own)
        return [picture, *texts] if self.call.attention.place == "last" else [*texts, picture]

    def _with(self, prompt: str) -> Tensor:
        """The attention as if only "own" or "negative" were there of the two prompts; made once."""
        if prompt not in self.made:
            gone, count = (
                (self.call.negative, self.lengths.own) if prompt == "own" else (self.call.own, self.lengths.negative)
            )
            self.made[prompt] = self.call.without(gone, self.rows, count)
        return self.made[prompt]

    def _picture(self) -> Tensor:
        attention, acting, lengths = self.call.attention, self.acting, self.lengths
        if acting is None or not attention.guides:
            return self._picture_of(self._with("own"), lengths.own)
        mark_reached(attention.reached, (acting.guidance,))

        def headed(out: Tensor) -> Tensor:
            return self.call.to_heads(out)

        prompts = PromptCall(
            lambda: headed(self._picture_of(self._with("own"), lengths.own)),
            lambda: headed(self._picture_of(self._with("negative"), lengths.negative)),
            lambda factor, bias: headed(self.call.joined(self.rows, factor, bias)),
        )
        guided = acting.guidance.attention(prompts)
        if acting.strength != 1 or acting.region is not None:
            weight = torch.full((), acting.strength, dtype=guided.dtype, device=guided.device)
            if acting.region is not None:
                places = attention.places_of(acting.region, self.call.layout, guided.shape[2]).to(guided)
                weight = weight * (places.repeat(len(self.chunks), 1, 1, 1) if len(places) > 1 else places)
            guided = torch.lerp(prompts.positive(), guided, weight)
        return self.call.from_heads(guided)

    def _picture_of(self, out: Tensor, text: int) -> Tensor:
        """The picture's part of the attention in which the text has so many tokens."""
        if self.call.attention.place == "keys":
            return out
        return without(out, self.call.out_axis, slice(self.call.own.start, self.call.own.start + text))

    def _text(self, prompt: str, of: slice, gone: slice) -> Tensor:
        """What the tokens `of` a text get where those of the other text are `gone`."""
        start, count = self.call.own.start, of.stop - of.start
        if prompt not in self.made and not self.call.is_perturbed:
            return self.call.without(gone, self.rows, count, queries=of)
        return part_of(self._with(prompt), self.call.out_axis, slice(start, start + count))

    def _nothing_like(self, own: Tensor) -> Tensor:
        """Zeros for the negative's tokens."""
        count, axis = self.lengths.negative, self.call.out_axis
        return own.new_zeros([count if at == axis else size for at, size in enumerate(own.shape)])


@dataclass(frozen=True)
class _Call:
    """One call of the host's attention function."""

    attention: PromptAttention
    func: Callable
    qkv: tuple[Tensor, Tensor, Tensor]
    heads: int
    mask: Tensor | None
    axis: int  # of the tokens in q, k and v
    out_axis: int  # … and in what it gives
    layout: Layout  # of the picture's tokens
    kw: dict

    @property
    def own(self) -> slice:
        """The keys of the prompt."""
        attention, keys = self.attention, self.qkv[1].shape[self.axis]
        start = keys - attention.lengths.both if attention.place == "last" else 0
        return slice(start, start + attention.lengths.own)

    @property
    def negative(self) -> slice:
        """The keys of the negative."""
        return slice(self.own.stop, self.own.stop + self.attention.lengths.negative)

    def whole(self) -> Tensor:
        """The attention as it would be without a negative in the text."""
        return self._run(*self.qkv, self.mask, self.kw)

    def without(self, gone: slice, rows: slice, text: int, queries: slice | None = None) -> Tensor:
        """The attention of these rows as if the tokens `gone` were not there, and its text were `text` tokens; of these
        `queries` alone, where they are given."""
        q, k, v = (part[rows] for part in self.qkv)
        k, v = (without(part, self.axis, gone) for part in (k, v))
        q = self._queries(q, self.axis, gone, queries)
        mask = mask_of(self.mask, rows, self.qkv[0])
        if mask is not None:
            mask = without(mask, mask.ndim - 1, gone) if mask.shape[-1] > 1 else mask
            mask = self._queries(mask, mask.ndim - 2, gone, queries) if mask.shape[-2] > 1 else mask
        kw, options = self.kw, self.kw.get("transformer_options", {})
        if TEXT in options:
            kw = {**kw, "transformer_options": {**options, TEXT: text}}
        return self._run(q, k, v, mask, kw)

    def _queries(self, of: Tensor, axis: int, gone: slice, queries: slice | None) -> Tensor:
        if self.attention.place == "keys":
            return of
        return without(of, axis, gone) if queries is None else part_of(of, axis, queries)

    def joined(self, rows: slice, factor: float, bias: float) -> Tensor:
        """The attention of the picture in these rows to all keys: those of the negative have their values times `factor`,
        and `bias` is added to their logits."""
        q, k, v = (part[rows] for part in self.qkv)
        # A perturbation needs the text's queries too; both texts are one to it.
        gone = slice(0, 0) if self.is_perturbed else slice(self.own.start, self.negative.stop)
        q = self._queries(q, self.axis, gone, None)
        factors = torch.ones(k.shape[self.axis], dtype=v.dtype, device=v.device)
        factors[self.negative] = factor
        v = v * factors.view([-1 if at == self.axis else 1 for at in range(v.ndim)])
        added = torch.zeros(k.shape[self.axis], dtype=q.dtype, device=q.device)
        added[self.negative] = bias
        mask = bias_of(mask_of(self.mask, rows, self.qkv[0]), q.dtype)
        if mask is None:
            mask = added.expand(1, 1, q.shape[self.axis], -1)
        else:
            mask = (self._queries(mask, 2, gone, None) if mask.shape[2] > 1 else mask) + added
        out = self._run(q, k, v, mask, self.kw)
        return without(out, self.out_axis, slice(self.own.start, self.negative.stop)) if self.is_perturbed else out

    @property
    def is_perturbed(self) -> bool:
        """Whether something else than a negative prompt is done in this attention, in some row."""
        return isinstance(self.attention.inner, TransformerAttention)

    def _run(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kw: dict) -> Tensor:
        inner = self.attention.inner
        if inner is None:
            return self.func(q, k, v, self.heads, mask=mask, **kw)
        return inner(self.func, q, k, v, self.heads, mask=mask, **kw)

    def to_heads(self, out: Tensor) -> Tensor:
        """[rows, tokens, channels], or what the host was asked to give → [rows, heads, tokens, head_dim]"""
        return out if self.out_axis == 2 else out.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def from_heads(self, out: Tensor) -> Tensor:
        """The reverse of `to_heads`."""
        return out if self.out_axis == 2 else out.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Prompts:
    """The negative prompts of one network call."""

    negatives: Negatives
    text: Tensor  # of the call as the host made it
    lengths: Lengths

    @classmethod
    def of(
        cls,
        negatives: Negatives,
        text: Tensor | None,
        size: tuple[int, ...],
        conds: dict,
        architecture: Architecture,
        titles: str,
    ) -> Prompts:
        """Those of a call with this text, [batch, tokens, channels], and an x of this size. Raises RuntimeError where no
        negative can act."""
        if reason := architecture.no_prompt or ("" if text is None else _beside(architecture.text, conds)):
            raise RuntimeError(f"{titles}: no negative prompt can act in {architecture.name} here: {reason}. Use CFG.")
        first = next(negative for negative in negatives if negative)
        if first.region is not None and first.region.shape[2:] != size:
            raise RuntimeError(
                f"{titles}: the network gets {[*size]} of a latent of {[*first.region.shape[2:]]}, such as an area or a "
                f"window, and a region is of the whole. Take the region out."
            )
        if text is None:
            raise RuntimeError(f"{titles}: the network gets no text here, so no negative prompt can act in it.")
        if text.shape[-1] != first.text.shape[-1]:
            raise RuntimeError(
                f"{titles}: the negative prompt has {first.text.shape[-1]} numbers for each token and the prompt has "
                f"{text.shape[-1]}. Encode both with the CLIP of this model."
            )
        return cls(negatives, text, Lengths(text.shape[1], first.text.shape[1]))

    def inputs(self, conds: dict) -> tuple[Tensor, dict]:
        """(text, conditionings) of the call, with the negative's tokens after the prompt's."""
        mask = conds.get("attention_mask")
        padded = next((one.mask for one in self.negatives if one and one.mask is not None), None)
        if mask is None and padded is not None and not padded.all():
            mask = padded.new_ones(self.text.shape[:2])  # the host gives none for a prompt that is not filled up
        if mask is not None:
            masks = with_negatives(mask, self.negatives, lambda one: one.mask_like(mask))
            conds = {**conds, "attention_mask": masks}
        if "num_tokens" in conds:
            conds = {**conds, "num_tokens": conds["num_tokens"] + self.lengths.negative}
        return with_negatives(self.text, self.negatives, lambda one: one.text), conds

    def patches(self, architecture: Architecture, network: Module) -> list[ForwardPatch]:
        """What stands around the modules of `network` that do something with a text and do not attend to it with the
        picture."""
        text, found = architecture.text, []
        for path, positions in text.apart:
            whole = submodule(network, path)
            for at, module in enumerate(whole if isinstance(whole, ModuleList) else [whole]):
                make = partial(TextModule, inputs=tuple(parameters(module)), lengths=self.lengths, positions=positions)
                found.append(ForwardPatch(f"text {path} {at}", module, make))
        if text.positions:
            setting = {
                "last": architecture.place_of_text == "last",
                "counted": text.counted,
                "first_call": text.first_call,
            }
            make = partial(PositionsModule, lengths=self.lengths, **setting)
            found.append(ForwardPatch("positions", submodule(network, text.positions), make))
        if text.embedder and (multiple := getattr(network, text.multiple)):
            setting = {"multiple": multiple, "padding": getattr(network, text.padding)}
            make = partial(FilledUpText, lengths=self.lengths, **setting)
            found.append(ForwardPatch("filled up text", submodule(network, text.embedder), make))
        return found


def _beside(text: Text, conds: dict) -> str:
    """What of the conditionings a text is put together with; "" for nothing."""
    found = [name for name in text.alone if isinstance(conds.get(name), Tensor) or conds.get(name)]
    return f"its text is put together with {', '.join(found)}" if found else ""


@dataclass(frozen=True)
class UNetPromptAttention:
    """The UNet's attn2 replace patch of one layer."""

    attention: PromptAttention
    previous: Callable | None  # another pack's patch of the same layer

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra: dict) -> Tensor:  # [batch, tokens, channels]
        run = comfy.ldm.modules.attention.optimized_attention

        def func(q, k, v, heads, mask=None, **_kw):
            if self.previous is not None and mask is not None:
                raise self.attention.refusal(
                    "another node attends to the prompt here, which cannot take flipped values."
                )
            if self.previous is not None:
                return self.previous(q, k, v, self._of_present(extra))
            return run(q, k, v, heads, mask=mask, attn_precision=extra.get("attn_precision"), transformer_options=extra)

        return self.attention(func, q, k, v, extra["n_heads"], grid=tuple(extra["activations_shape"][2:]))

    def _of_present(self, extra: dict) -> dict:
        """The host's options for the chunks that are there: other packs find by them what is whose."""
        at = self.attention.present.of(tuple(range(len(self.attention.negatives))))
        lists = {key: [extra[key][chunk] for chunk in at] for key in ("cond_or_uncond", "uuids") if key in extra}
        return {**extra, **lists}

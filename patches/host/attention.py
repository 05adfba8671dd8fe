"""Attention functions that apply a perturbation to its own chunks of the batch, and call the host's for the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import comfy.ldm.modules.attention
import torch
from torch import Tensor

from ..base import AttentionCall, Intervention, Moment, Observation, Perturbation
from ..layout import Layout
from .chunks import Chunks, PresentChunks, by_chunk, mark_reached
from .tiles import Tiles, Watch

ATTENTION = "optimized_attention_override"  # the host's slot for one function around every attention
TEXT = "beyond_cfg_text"  # in a module's options: how many tokens of text come first
PARTS = "beyond_cfg_parts"  # … and how many tokens each attention call so far had, in modules that attend in several

ADVICE = "Take the node out that does this, or choose other layers."

Report = Callable[[int, Observation, Tensor, tuple[int, ...]], None]  # (chunk, who, [rows, image tokens], grid)


@dataclass(frozen=True)
class UNetAttention:
    """The UNet's attn1 replace patch of one layer. The host asks it for the self-attention only: text is attended to
    elsewhere."""

    chunks: Chunks
    heads: Mapping[Intervention, tuple[int, ...]]  # in which something is done, where it is not all of them
    previous: Callable | None  # another pack's patch of the same layer; it expects the whole batch
    layer: str
    pictures: set | None = field(compare=False)  # of a video's network: the layers whose attention in pictures has run
    moment: Moment
    report: Report | None
    reached: set = field(compare=False)  # what has come to where it acts
    present: PresentChunks = field(compare=False)
    watch: Watch = field(compare=False)
    others: Callable[[], str] = field(compare=False)  # a sentence of what other nodes have put into the network

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra: dict) -> Tensor:  # q, k, v: [batch, tokens, channels]
        mark_reached(self.reached, self.chunks)
        images, _, height, width = extra["activations_shape"]  # of the transformer; a block in it may get fewer chunks
        chunks = self.present.of(self.chunks)
        if q.shape[0] * len(self.chunks) == images * len(chunks):
            images = q.shape[0]
        heads, precision = extra["n_heads"], extra.get("attn_precision")
        run = comfy.ldm.modules.attention.optimized_attention
        whole = self.previous(q, k, v, extra) if self.previous else None
        tiles = None if q.shape[:2] == (images, height * width) else self.watch.tiles((height, width))
        values = v
        if k.shape[0] != q.shape[0]:
            k, v = (part.reshape(q.shape[0], -1, part.shape[2]) for part in (k, v))  # as the host's attention does

        def clean(rows: slice) -> Tensor:
            if whole is not None:
                return whole[rows]
            return run(q[rows], k[rows], v[rows], heads, attn_precision=precision, transformer_options=extra)

        if self.pictures is not None:  # the attention over time has the same name, and comes second
            if (q.shape[0] != images and tiles is None) or self.layer in self.pictures:
                return clean(slice(None))
            self.pictures.add(self.layer)
        why_unknown, own_values = self._why_unknown(q, k, height * width, tiles), None
        if tiles and tiles.keys == "whole" and k.shape[1] == q.shape[1]:
            own_values = _to_heads(tiles.cut(values), heads)

        def changed(rows: slice, acting) -> Tensor:
            qh, kh, vh = (_to_heads(part[rows], heads) for part in (q, k, v))

            def attend(queries: Tensor, _tokens: slice) -> Tensor:
                return _host_attention(run, queries, kh, vh, heads, attn_precision=precision, transformer_options=extra)

            grid = tiles.grid if tiles else (height, width) if height * width == q.shape[1] else None
            image, scale = slice(0, q.shape[1]), qh.shape[-1] ** -0.5
            call = AttentionCall(
                qh,
                kh,
                vh,
                image,
                grid,
                scale,
                None,
                attend,
                self.layer,
                self.moment,
                why_unknown=why_unknown and partial(_named, acting, why_unknown),
                own_values=None if own_values is None else own_values[rows],
            )
            if isinstance(acting, Observation):
                if why_unknown is None or own_values is not None:
                    call = replace(call, why_unknown=None, grid=(height, width))
                    _observe(
                        self,
                        acting,
                        _in_heads(self, acting, call, self.layer),
                        rows,
                        q.shape[0],
                        tiles.joined if tiles else None,
                    )
                return clean(rows)
            return _from_heads(_perturbed(self, acting, call, self.layer))

        known_rows = q.shape[0] == images or tiles is not None
        unknown = None if known_rows else partial(self._unknown_rows, q.shape[0], images)
        return by_chunk(q.shape[0], chunks, clean, changed, unknown)

    def _why_unknown(self, q: Tensor, k: Tensor, size: int, tiles: Tiles | None) -> Callable[[], str] | None:
        """Why nobody knows which key belongs to which token of the picture, which has `size` tokens. None: it is known."""
        if tiles:
            if tiles.keys == "cut" and k.shape[1] == q.shape[1]:
                return None
            what = f"the tokens are cut into {len(tiles.places)} tiles, and their keys in another way"
        elif q.shape[1] == size and k.shape[1] >= size:
            return None
        else:
            what = f"there are {q.shape[1]} queries and {k.shape[1]} keys for {size} tokens of the picture"
        return lambda: (
            f"in {self.layer} {what}, so that it is not known which of them is which. {self.others()} {ADVICE}"
        )

    def _unknown_rows(self, rows: int, images: int) -> str:
        what = f"the attention of {self.layer} gets {rows} rows where the network has {images}"
        return f"{what}, and nothing says whose they are. {self.others()} {ADVICE}"


@dataclass(frozen=True)
class TransformerAttention:
    """The host's attention override inside one module of a transformer, whose attention sees the picture and what lies
    beside it, such as text."""

    chunks: Chunks
    heads: Mapping[Intervention, tuple[int, ...]]  # in which something is done, where it is not all of them
    previous: Callable | None  # another pack's override
    layout: Layout
    where: str  # network and layer
    moment: Moment
    report: Report | None
    reached: set = field(compare=False)  # what has come to where it acts
    present: PresentChunks = field(compare=False)
    others: Callable[[], str] = field(compare=False)  # a sentence of what other nodes have put into the network

    def __call__(
        self, func, q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False, skip_output_reshape=False, **kw
    ) -> Tensor:
        mark_reached(self.reached, self.chunks)
        options, before = kw.get("transformer_options", {}), 0
        tokens, keys = (part.shape[2] if skip_reshape else part.shape[1] for part in (q, k))
        part = None
        if PARTS in options:
            before = sum(options[PARTS]) % keys  # another pack may attend again
            options[PARTS].append(tokens)
            part = slice(before, before + tokens)
        try:
            image = self.layout.image(tokens, keys, options.get(TEXT, 0), part)
            if image is not None and part in (None, slice(0, keys)):
                self.layout.check(image, tokens, keys)
        except LookupError as error:
            raise self.refusal(str(error)) from None
        kw = {**kw, "attn_precision": attn_precision}

        def run(q, k, v, heads, **kw):
            return self.previous(func, q, k, v, heads, **kw) if self.previous else func(q, k, v, heads, **kw)

        def clean(rows: slice) -> Tensor:
            form = {"skip_reshape": skip_reshape, "skip_output_reshape": skip_output_reshape}
            return run(q[rows], k[rows], v[rows], heads, mask=mask_of(mask, rows, q), **form, **kw)

        if image is None:
            return clean(slice(None))

        def changed(rows: slice, acting) -> Tensor:
            qh, kh, vh = (part[rows] if skip_reshape else _to_heads(part[rows], heads) for part in (q, k, v))
            kh, vh = (part.repeat_interleave(heads // part.shape[1], 1) for part in (kh, vh))  # those that heads share
            bias = bias_of(mask_of(mask, rows, q), qh.dtype)
            order = self.layout.order(image, qh.shape[2], qh.device)
            if order is not None:
                qh, kh, vh = (part[:, :, order] for part in (qh, kh, vh))
                bias = bias if bias is None else _ordered(bias, order)
            of_heads = {key: value for key, value in kw.items() if key != "enable_gqa"}

            def attend(queries: Tensor, tokens: slice) -> Tensor:
                part = bias if bias is None or bias.shape[-2] == 1 else bias[..., tokens, :]
                return _host_attention(run, queries, kh, vh, heads, mask=part, **of_heads)

            scale = kw.get("scale") or qh.shape[-1] ** -0.5
            grid = None if self.layout.is_set else self.layout.grid
            prefix = keys - tokens if self.layout.prefix else before
            call = AttentionCall(qh, kh, vh, image, grid, scale, bias, attend, self.where, self.moment, prefix)
            if isinstance(acting, Observation):
                _observe(self, acting, _in_heads(self, acting, call, self.where), rows, q.shape[0])
                return clean(rows)
            out = _perturbed(self, acting, call, self.where)
            out = out if order is None else out[:, :, order.argsort()]
            return out if skip_output_reshape else _from_heads(out)

        chunks = self.present.of(self.chunks)
        what = f"{self.where}: its attention gets {q.shape[0]} rows, which are no {len(chunks)} equal shares."
        unknown = partial("{} {} {}".format, what, self.others(), ADVICE) if q.shape[0] % len(chunks) else None
        return by_chunk(q.shape[0], chunks, clean, changed, unknown)

    def refusal(self, what: str) -> RuntimeError:
        """An error that says what is in the way in this layer."""
        return RuntimeError(f"{self.where}: {what} {self.others()} {ADVICE}")


def _named(acting: Perturbation, why: Callable[[], str]) -> str:
    return f"{acting.about.name}: {why()}"


def _in_heads(patch, acting: Intervention, call: AttentionCall, where: str) -> AttentionCall:
    """`call` in the heads in which something is done. Raises ValueError for heads that there are not."""
    heads, count = patch.heads.get(acting, ()), call.q.shape[1]
    if lacking := [head for head in heads if head >= count]:
        title = acting.about.name if isinstance(acting, Perturbation) else "The guidance"
        raise ValueError(f"{title}: {where} has no head h{lacking[0]}. It has {count} heads, h0 to h{count - 1}.")
    return call.only(heads) if heads else call


def _perturbed(patch, acting, call: AttentionCall, where: str) -> Tensor:
    """The perturbed attention, in which other heads than those chosen have the host's own."""
    cut = _in_heads(patch, acting, call, where)
    if cut is call:
        return acting.attention(call)
    out = call.attend(call.q, slice(0, call.q.shape[2])).clone()
    out[:, list(patch.heads[acting])] = acting.attention(cut)
    return out


def _observe(patch, observation: Observation, call: AttentionCall, rows: slice, batch: int, joined=None) -> None:
    """Report what `observation` sees of these rows, chunk by chunk; `joined` puts tiles in the batch together."""
    if call.grid is not None:
        present = patch.present.of(tuple(range(len(patch.chunks))))
        size, seen = batch // len(present), observation.observe(call)
        parts = [part if joined is None else joined(part) for part in seen.split(size)]
        for chunk, part in zip(present[rows.start // size :], parts, strict=False):
            patch.report(chunk, observation, part, call.grid)


def _host_attention(run, q: Tensor, k: Tensor, v: Tensor, heads: int, **kw) -> Tensor:
    """The host's attention on [rows, heads, tokens, head_dim], in and out."""
    out = run(q, k, v, heads, skip_reshape=True, **kw)  # [rows, tokens, channels]
    return _to_heads(out, heads)


def _to_heads(tokens: Tensor, heads: int) -> Tensor:
    """[rows, tokens, channels], or SD3's values [rows, tokens, heads, head_dim] → [rows, heads, tokens, head_dim]"""
    return tokens.reshape(*tokens.shape[:2], heads, -1).transpose(1, 2)


def _from_heads(tokens: Tensor) -> Tensor:
    """[rows, heads, tokens, head_dim] → [rows, tokens, channels]"""
    return tokens.transpose(1, 2).flatten(2)


def mask_of(mask: Tensor | None, rows: slice, q: Tensor) -> Tensor | None:
    """What of `mask` is for these rows of the queries `q`."""
    return mask[rows] if mask is not None and mask.ndim > 2 and mask.shape[0] == q.shape[0] else mask


def bias_of(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What the host's attention adds to its logits, as [rows or 1, heads or 1, tokens or 1, tokens]."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.finfo(dtype).max)
    return mask.reshape(1 if mask.ndim == 2 else mask.shape[0], -1, *mask.shape[-2:])


def _ordered(bias: Tensor, order: Tensor) -> Tensor:
    return (bias if bias.shape[-2] == 1 else bias[..., order, :])[..., order]

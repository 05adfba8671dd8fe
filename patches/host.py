"""The one door from perturbations to the host's networks.

A network call carries a batch of equal shares of rows. `planned` writes into its transformer_options which perturbation
each share gets; `apply_model`, the innermost wrapper of that call, sees the network and everything other packs have
installed by then, and puts our attention in front of the chosen layers for the length of the call. Nothing is left
behind, nothing of others is replaced: what was there before is called from ours.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import comfy.ldm.modules.attention
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor

from . import architectures
from .base import AttentionCall, Moment, Perturbation
from .layers import Layer

KEY = "beyond_cfg"
ATTENTION = "optimized_attention_override"  # the host's slot for one function around every attention
TEXT = "beyond_cfg_text"  # how many tokens of text come first, in the options of a block of ours

Shares = tuple[Perturbation | None, ...]  # of a batch, in its order; None runs as the host would
Report = Callable[[int, Perturbation, Tensor, tuple[int, ...]], None]  # (share, who, [rows, image tokens], grid)


def select_layers(model, text: str, skip: bool = False) -> tuple[Layer, ...]:
    """The layers of MODEL that `text` names, to be perturbed or skipped. Raises ValueError, with what there is, for a
    network without a row in the table, a text that cannot be read, or a layer that the network does not have."""
    network = _uncompiled(model.get_model_object("diffusion_model"))
    return architecture_of(model).select(text, network, skip)


def architecture_of(model) -> architectures.Architecture:
    """The row of MODEL's network in the table. Raises ValueError where it has none."""
    network = _uncompiled(model.get_model_object("diffusion_model"))
    architecture = architectures.find(network)
    if architecture is None:
        known = "; ".join(row.name for row in architectures.ARCHITECTURES)
        raise ValueError(
            f"{type(model.model).__name__} ({type(network).__name__}) is not supported yet: nothing here knows where "
            f"its self-attention is. Supported: {known}."
        )
    return architecture


@dataclass
class Plan:
    """What one network call is to do, and the perturbations whose first call this is."""

    shares: Shares
    unproven: set[Perturbation]
    moment: Moment
    report: Report | None = None  # told what is observed


def planned(transformer_options: dict, plan: Plan) -> dict:
    """A copy of a network call's transformer_options that carries `plan`."""
    wrappers = transformer_options.get("wrappers", {})
    wrappers = {**wrappers, WrappersMP.APPLY_MODEL: dict(wrappers.get(WrappersMP.APPLY_MODEL, {}))}
    options = {**transformer_options, KEY: plan, "wrappers": wrappers}
    add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, apply_model, options)
    return options


def apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
    plan: Plan = transformer_options[KEY]
    compiled = executor.class_obj.diffusion_model
    network = _uncompiled(compiled)
    reached: set[Perturbation] = set()
    options = _installed(transformer_options, network, tuple(x.shape[2:]), plan, reached)
    with _time_perturbed(network, x.shape[0], plan, reached):
        denoised = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    unproven = plan.unproven.intersection(plan.shares)
    if unproven and not _is_compiled(compiled):  # a compiled graph calls ours without Python to witness it
        for perturbation in unproven - reached:
            raise RuntimeError(
                f"{perturbation.about.title}: none of the layers {', '.join(map(str, perturbation.layers))} of "
                f"{type(network).__name__} ran in the host's way, so it would have no effect. Another pack may have "
                f"replaced the network's forward; take its node out, or choose other layers."
            )
    plan.unproven.difference_update(unproven)  # later calls may be skipped by a cache, and need no proof
    return denoised


def _installed(options: dict, network, spatial: tuple[int, ...], plan: Plan, reached: set) -> dict:
    architecture = architectures.find(network)
    draws = any(getattr(p, "random", False) for p in plan.shares)
    moment = plan.moment if draws else None  # a compiled network would be compiled again for every new one
    replace = {kind: dict(patches) for kind, patches in options.get("patches_replace", {}).items()}
    for layer in dict.fromkeys(layer for perturbation in plan.shares if perturbation for layer in perturbation.layers):
        here = tuple(p if p is not None and layer in p.layers else None for p in plan.shares)
        attention = tuple(p if hasattr(p, "attention") or hasattr(p, "observe") else None for p in here)
        skipped = tuple(p if hasattr(p, "skips") else None for p in here)
        if architecture.site == "attn1":
            attn1 = replace.setdefault("attn1", {})
            block = (layer.stack, layer.index)
            for key in {block, *(key for key in attn1 if key[:2] == block)}:  # (block, index[, transformer])
                attn1[key] = SelfAttentionPatch(attention, attn1.get(key), str(layer), moment, plan.report, reached)
            continue
        dit = replace.setdefault("dit", {})
        key = (f"{layer.stack}_block", layer.index)
        if any(attention):
            where = f"{type(network).__name__} {layer}"
            grid = architectures.grid(network, spatial)
            joint = JointAttention(attention, options.get(ATTENTION), grid, where, moment, plan.report, reached)
            dit[key] = BlockPatch(joint, dit.get(key))
        if any(skipped):
            dit[key] = SkipPatch(skipped, dit.get(key), reached)
    options = {**options, "patches_replace": replace}
    del options[KEY]  # done with; a compiled network need not guard it
    return options


@contextlib.contextmanager
def _time_perturbed(network, rows: int, plan: Plan, reached: set) -> Iterator[None]:
    """The embedder of the timestep gives some shares another embedding while the network is called."""
    shares = tuple(p if hasattr(p, "time_embedding") else None for p in plan.shares)
    if not any(shares):
        yield
        return

    def hook(
        module, inputs, embedding: Tensor
    ) -> Tensor:  # [rows, channels]; more rows are of other times (references)
        _witness(reached, shares)
        own = _by_share(
            rows,
            shares,
            clean=lambda at: embedding[at],
            perturbed=lambda at, perturbation: perturbation.time_embedding(embedding[at], plan.moment),
        )
        return torch.cat([own, embedding[rows:]])

    handle = network.get_submodule(architectures.find(network).time).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class SelfAttentionPatch:
    """The UNet's attn1 replace patch: it is asked for the self-attention alone, text is attended to elsewhere."""

    shares: Shares
    previous: Callable | None  # another pack's patch of the same layer; it expects the whole batch
    layer: str
    moment: Moment | None
    report: Report | None
    reached: set = field(compare=False)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra: dict) -> Tensor:  # q, k, v: [batch, tokens, channels]
        _witness(self.reached, self.shares)
        heads, precision = extra["n_heads"], extra["attn_precision"]
        run = comfy.ldm.modules.attention.optimized_attention
        whole = self.previous(q, k, v, extra) if self.previous else None

        def clean(rows: slice) -> Tensor:
            if whole is not None:
                return whole[rows]
            return run(q[rows], k[rows], v[rows], heads, attn_precision=precision, transformer_options=extra)

        def perturbed(rows: slice, perturbation: Perturbation) -> Tensor:
            qh, kh, vh = (_to_heads(part[rows], heads) for part in (q, k, v))

            def attend(queries: Tensor, tokens: slice) -> Tensor:
                return _host_attention(run, queries, kh, vh, heads, attn_precision=precision, transformer_options=extra)

            height, width = extra["activations_shape"][2:]
            grid = (height, width) if height * width == q.shape[1] else None  # tokens may have been tiled or merged
            image = slice(0, q.shape[1])
            scale = qh.shape[-1] ** -0.5
            call = AttentionCall(qh, kh, vh, image, grid, scale, None, attend, self.layer, self.moment)
            if hasattr(perturbation, "observe"):
                _observe(self, perturbation, call, rows, q.shape[0])
                return clean(rows)
            return _from_heads(perturbation.attention(call))

        return _by_share(q.shape[0], self.shares, clean, perturbed)


@dataclass(frozen=True)
class BlockPatch:
    """A transformer block's replace patch: our attention is there for that block alone."""

    attention: JointAttention
    previous: Callable | None

    def __call__(self, args: dict, extra: dict) -> dict:
        options = args["transformer_options"]
        text = args["txt"].shape[1] if "txt" in args else options["img_slice"][0]  # a single stream is [text, image]
        args = {**args, "transformer_options": {**options, ATTENTION: self.attention, TEXT: text}}
        return self.previous(args, extra) if self.previous else extra["original_block"](args)


@dataclass(frozen=True)
class SkipPatch:
    """A transformer block's replace patch that leaves the block out for some shares of the batch."""

    shares: Shares
    previous: Callable | None
    reached: set = field(compare=False)

    def __call__(self, args: dict, extra: dict) -> dict:
        _witness(self.reached, self.shares)
        streams = [name for name in ("img", "txt") if name in args]
        before = {name: args[name].clone() for name in streams}  # blocks add to their inputs in place
        out = self.previous(args, extra) if self.previous else extra["original_block"](args)
        for name in streams:
            if out.get(name) is not None:  # the last block of SD3 gives no text
                out = {**out, name: self._left_out(before[name], out[name])}
        return out

    def _left_out(self, before: Tensor, after: Tensor) -> Tensor:
        return _by_share(
            after.shape[0], self.shares, clean=lambda rows: after[rows], perturbed=lambda rows, _: before[rows]
        )


@dataclass(frozen=True)
class JointAttention:
    """The host's attention override inside one block, whose tokens are [text, image, references] or the image alone."""

    shares: Shares
    previous: Callable | None
    grid: tuple[int, ...]
    where: str  # network and layer
    moment: Moment | None
    report: Report | None
    reached: set = field(compare=False)

    def __call__(
        self, func, q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False, skip_output_reshape=False, **kw
    ) -> Tensor:
        _witness(self.reached, self.shares)
        size = math.prod(self.grid)
        tokens = q.shape[2] if skip_reshape else q.shape[1]
        start = 0 if tokens == size else kw["transformer_options"][TEXT]
        if start + size > tokens:
            raise RuntimeError(
                f"{self.where}: {tokens} tokens hold no picture of {' × '.join(map(str, self.grid))} after {start} of "
                f"text. Another pack has changed the network's tokens; take its node out, or choose other layers."
            )
        image = slice(start, start + size)
        kw = {**kw, "attn_precision": attn_precision}

        def run(q, k, v, heads, **kw):
            return self.previous(func, q, k, v, heads, **kw) if self.previous else func(q, k, v, heads, **kw)

        def clean(rows: slice) -> Tensor:
            form = {"skip_reshape": skip_reshape, "skip_output_reshape": skip_output_reshape}
            return run(q[rows], k[rows], v[rows], heads, mask=_mask_of(mask, rows, q), **form, **kw)

        def perturbed(rows: slice, perturbation: Perturbation) -> Tensor:
            qh, kh, vh = (part[rows] if skip_reshape else _to_heads(part[rows], heads) for part in (q, k, v))
            bias = _bias(_mask_of(mask, rows, q), qh.dtype)

            def attend(queries: Tensor, tokens: slice) -> Tensor:
                part = bias if bias is None or bias.shape[-2] == 1 else bias[..., tokens, :]
                return _host_attention(run, queries, kh, vh, heads, mask=part, **kw)

            scale = kw.get("scale") or qh.shape[-1] ** -0.5
            call = AttentionCall(qh, kh, vh, image, self.grid, scale, bias, attend, self.where, self.moment)
            if hasattr(perturbation, "observe"):
                _observe(self, perturbation, call, rows, q.shape[0])
                return clean(rows)
            out = perturbation.attention(call)
            return out if skip_output_reshape else _from_heads(out)

        return _by_share(q.shape[0], self.shares, clean, perturbed)


def _observe(patch, perturbation: Perturbation, call: AttentionCall, rows: slice, batch: int) -> None:
    """Report what `perturbation` sees of these rows, share by share."""
    if call.grid is not None:
        size = batch // len(patch.shares)
        for share, seen in enumerate(perturbation.observe(call).split(size), rows.start // size):
            patch.report(share, perturbation, seen, call.grid)


def _by_share(batch: int, shares: Shares, clean: Callable, perturbed: Callable) -> Tensor:
    """Each run of equal shares handled once, and put together in the batch's order."""
    size = batch // len(shares)  # not the latent's batch: other packs cut tokens into tiles along the batch
    parts, start = [], 0
    for end in range(1, len(shares) + 1):
        if end == len(shares) or shares[end] != shares[start]:
            rows = slice(start * size, end * size)
            parts.append(clean(rows) if shares[start] is None else perturbed(rows, shares[start]))
            start = end
    return parts[0] if len(parts) == 1 else torch.cat(parts)


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


def _mask_of(mask: Tensor | None, rows: slice, q: Tensor) -> Tensor | None:
    return mask[rows] if mask is not None and mask.ndim > 2 and mask.shape[0] == q.shape[0] else mask


def _bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What the host's attention adds to its logits, as [rows or 1, heads or 1, tokens or 1, tokens]."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.finfo(dtype).max)
    return mask.reshape(1 if mask.ndim == 2 else mask.shape[0], -1, *mask.shape[-2:])


def _witness(reached: set, shares: Shares) -> None:
    if not torch.compiler.is_compiling():
        reached.update(shares)


def _uncompiled(network):
    return getattr(network, "_orig_mod", network)


def _is_compiled(network) -> bool:
    return any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in network.modules())

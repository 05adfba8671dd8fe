"""A MODEL made worse on purpose, without a second file, to be Autoguidance's weak model.

All but the rounding live in the model_options of a clone, so the clone shares the network of the model that it guides:
an APPLY_MODEL wrapper changes what the network is asked, or puts patches in its options for the length of the call. The
rounding is a weight patch, so the weak model needs weights of its own there (weak_models).

Karras et al. 2024, arXiv:2406.02507, break a network in these ways after its training. With k = 1 + amount:

    input noise   D̃(x; σ) = D(x + σ √(k² − 1) n; kσ),  n ~ N(0, I): as noisy as at kσ, and told so
                  a flow's x is (1 − σ) x₀ + σ n, and its noise-to-signal ratio σ / (1 − σ) grows by k
    dropout       x + m ∘ f(x) / (1 − amount), m = 0 with probability amount, in what self-attentions (UNet) or blocks
                  (transformers) f add. Paper: inside the UNet's residual blocks, which transformers do not have
    fewer layers  x, instead of x + f(x), for some blocks f of a transformer
    quantised     w̃ = s round(w / s), s = max |w| / (2^(bits − 1) − 1) over each output's weights
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_sampling
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ..base import Moment
from ..layers import Layer, whole_layers
from .forwards import ForwardPatch, Streams, patched_forwards
from .lookup import Blocks, architecture_in, check_layers, is_compiled, select_layers, uncompiled
from .others import said

WRAPPER = "beyond_cfg_degraded"
STEP = "beyond_cfg_step"  # in transformer_options: which step of the sampler an evaluation belongs to, where known
# The settings that have been seen to act, each by its identity and as long as it lives.
_PROVEN: weakref.WeakValueDictionary[int, WorseLayers] = weakref.WeakValueDictionary()
OUTPUT = "attn1_output_patch"  # the UNet's list of functions of what each self-attention adds


def with_input_noise(model, amount: float, seed: int):
    """A clone of MODEL whose network sees inputs with 1 + `amount` times their noise."""
    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, (comfy.model_sampling.EPS, comfy.model_sampling.CONST)):
        raise ValueError(
            f"nothing here knows how {type(sampling).__name__} mixes picture and noise; choose another degradation"
        )
    return _wrapped(model, InputNoise(amount, seed)) if amount else model.clone()


def with_dropout(model, amount: float, layers: str, seed: int):
    """A clone of MODEL that drops `amount` of what `layers` add; "auto" is all of them."""
    chosen = whole_layers(layers, select_layers(model, "all" if layers.strip().lower() == "auto" else layers))
    return _wrapped(model, WorseLayers(chosen, amount, seed)) if amount else model.clone()


def with_fewer_layers(model, amount: float, layers: str):
    """A clone of MODEL without `layers`, unless `amount` is 0; "auto" are those of Skip Layer."""
    chosen = select_layers(model, layers, skip=True)
    return _wrapped(model, WorseLayers(chosen)) if amount else model.clone()


def with_rounded_weights(model, amount: float, bits: int):
    """A clone of MODEL with the matrices and kernels of its diffusion model rounded to `bits`, unless `amount` is 0."""
    model = model.clone()
    if amount:
        weights = model.model.state_dict()
        keys = [key for key, w in weights.items() if key.startswith("diffusion_model.") and key.endswith(".weight")]
        model.add_patches({key: Rounded(set(), (bits,)) for key in keys if weights[key].ndim >= 2})
    return model


def _wrapped(model, wrapper):
    model = model.clone()
    add_wrapper_with_key(WrappersMP.APPLY_MODEL, WRAPPER, wrapper, model.model_options, is_model_options=True)
    return model


def noisier(x: Tensor, sigma: Tensor, k: float, noise: Tensor, flow: bool) -> tuple[Tensor, Tensor]:
    """(x, σ) with `k` times the noise for the same picture. `sigma` [batch, 1, …], like x's axes."""
    extra = sigma * (k * k - 1) ** 0.5 * noise
    if not flow:
        return x + extra, k * sigma
    total = 1 - sigma + k * sigma  # what the weights of picture and noise sum to; a flow's sum to 1
    return (x + extra) / total, k * sigma / total


@dataclass(frozen=True)
class InputNoise:
    """The APPLY_MODEL wrapper that adds noise to what the network sees."""

    amount: float
    seed: int

    def __call__(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kw):
        options = transformer_options or {}
        flow = isinstance(executor.class_obj.model_sampling, comfy.model_sampling.CONST)
        sigma = t.reshape(-1, *[1] * (x.ndim - 1))
        moment, roles = _moment(self.seed, t, options), _roles(options, x.shape[0])
        noise = moment.normal(x[: x.shape[0] // roles], "input noise").repeat(roles, *[1] * (x.ndim - 1))
        x, sigma = noisier(x, sigma, 1 + self.amount, noise, flow)
        return executor(x, sigma.reshape(t.shape), c_concat, c_crossattn, control, options, **kw)


@dataclass(frozen=True)
class WorseLayers:
    """The APPLY_MODEL wrapper that drops what layers add. Raises RuntimeError where it is seen to have had no effect."""

    layers: tuple[Layer, ...]
    dropout: float = 1.0  # 1: the layers are left out, and not computed
    seed: int = 0

    def __call__(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kw):
        options = dict(transformer_options or {})
        moment = _moment(self.seed, t, options) if self.dropout < 1 else Moment()
        compiled = executor.class_obj.diffusion_model
        network, roles = uncompiled(compiled), _roles(options, x.shape[0])
        forwards: list[ForwardPatch] = []
        architecture = architecture_in(network)
        blocks = Blocks.at_the_begin(network).of
        check_layers("Degraded Model", self.layers, network, blocks)
        if architecture.stacks:
            for layer in self.layers:
                block, names = blocks[layer], architecture.stack(layer).streams
                streams = Streams.of(block, names)
                place = {"streams": streams, "layer": layer, "moment": moment, "roles": roles}
                worse = functools.partial(WorseBlock, worse=self, **place)
                forwards.append(ForwardPatch(f"degraded {layer}", block, worse))
        else:
            patches = options.get("patches", {})
            drop = DroppedAttention(self, moment, roles)
            options["patches"] = {**patches, OUTPUT: [*patches.get(OUTPUT, []), drop]}
        with patched_forwards(forwards, options) as options:
            denoised = executor(x, t, c_concat, c_crossattn, control, options, **kw)
        if id(self) not in _PROVEN and not is_compiled(compiled):  # a compiled graph runs no Python that could note it
            raise RuntimeError(
                f"Degraded Model: none of the layers {', '.join(map(str, self.layers))} of {type(network).__name__} ran "
                f"in the host's way, so it would have no effect. {said(network, options)} Take the node out "
                f"that is in the way, or choose other layers."
            )
        return denoised

    def dropped(self, added: Tensor, moment: Moment, roles: int, salt: str) -> Tensor:
        """`added` [rows, tokens, channels], with one mask for all rows of a sample: its positive, its negative …"""
        like, keep = added[: added.shape[0] // roles], 1 - self.dropout
        masks = [
            torch.empty(like.shape[1:], device=added.device).bernoulli_(keep, generator=generator)
            for generator in moment.generators(like.shape[0], added.device, salt)
        ]
        mask = torch.stack(masks).to(added.dtype).repeat(roles, *[1] * (added.ndim - 1))
        return added * mask / keep


def mark_proven(worse: WorseLayers) -> None:
    """Note that `worse` has acted. A compiled graph runs no Python, so it notes nothing."""
    if not torch.compiler.is_compiling():
        _PROVEN[id(worse)] = worse


@dataclass(frozen=True)
class DroppedAttention:
    """The UNet's patch of what a self-attention adds: called for all of them, it acts in the chosen blocks."""

    worse: WorseLayers
    moment: Moment
    roles: int

    def __call__(self, added: Tensor, extra: dict) -> Tensor:
        place = (*extra["block"], extra["block_index"])
        if not any(place == (layer.stack, layer.index, layer.part) for layer in self.worse.layers):
            return added
        mark_proven(self.worse)
        return self.worse.dropped(added, self.moment, self.roles, str(place))


@dataclass(frozen=True)
class WorseBlock:
    """The forward of a transformer's block."""

    forward: Callable
    worse: WorseLayers
    streams: Streams
    layer: Layer
    moment: Moment
    roles: int

    def __call__(self, *args, **kwargs):
        mark_proven(self.worse)
        before = self.streams.read(args, kwargs)
        if self.worse.dropout == 1:
            return before[0] if len(before) == 1 else tuple(before)
        before = [tokens.clone() for tokens in before]  # blocks add to their inputs in place

        def dropped(stream: int, after: Tensor) -> Tensor:
            added = after - before[stream]
            salt = f"{self.layer} {self.streams.names[stream]}"
            return before[stream] + self.worse.dropped(added, self.moment, self.roles, salt)

        return self.streams.changed(self.forward(*args, **kwargs), dropped)


class Rounded(WeightAdapterBase):
    """A weight patch of the host's kind, which makes others of itself from its two parts."""

    name = "rounded"

    def __init__(self, loaded_keys: set[str], weights):
        self.loaded_keys = loaded_keys
        self.weights = weights  # a tuple of one number, the bits: the host makes others of itself from these two

    def calculate_weight(self, weight: Tensor, *_args, **_kwargs) -> Tensor:
        """The host's method: a weight, rounded."""
        (bits,) = self.weights
        return rounded(weight, int(bits))


def rounded(weight: Tensor, bits: int) -> Tensor:  # [outputs, …]
    """`weight` in 2^bits − 1 levels, for each output of its own; of the same shape."""
    scale = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True) / (2 ** (bits - 1) - 1)
    return torch.where(scale > 0, (weight / scale).round() * scale, weight)


def _moment(seed: int, t: Tensor, options: dict) -> Moment:
    """Where in the run a call is made. What is drawn holds for a whole step of the sampler, where a guidance asks: it
    knows the step. Else it is the last that begins at this σ or above, and heun's second evaluation is of the next one."""
    sigmas = options.get("sample_sigmas")
    last = 0 if sigmas is None else max(int((sigmas.to(t) >= t.flatten()[0]).sum()) - 1, 0)
    return Moment(seed, options.get(STEP, last))


def _roles(options: dict, rows: int) -> int:
    """How many conditionings share the batch, each with all samples."""
    roles = len(options.get("cond_or_uncond", ())) or 1
    return roles if rows % roles == 0 else 1

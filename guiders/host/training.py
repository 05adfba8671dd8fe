"""LoRA layers beside the linear layers of a host's network, and gradients through that network, whatever it does
inside.

The layers are of the host's own adapter classes, in its bypass mode: f(x) + up(down(x)) alpha / rank, so no weight is
changed and quantised weights stay as they are.

Networks of the host write into tensors that they have computed (x += …), also into what a block is given. A backward
pass needs those as they were, so here everything that it keeps is a copy. With recomputation a unit keeps only what it
was given, and computes the rest again when the backward pass comes to it (Chen et al. 2016, arXiv:1604.06174).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.model_management
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.weight_adapter import LoRAAdapter
from comfy.weight_adapter.bypass import BypassForwardHook
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ...patches.texts import shown

NETWORK = "diffusion_model"


class Lora:
    """New LoRA layers for all linear layers of MODEL's network, or those of `existing`, a LoRA file's tensors, where it
    has them. In float32, on the CPU until `on`.

    Raises ValueError where the network has no linear layers, or where `existing` is not a LoRA of them."""

    def __init__(self, model, rank: int, seed: int, existing: dict[str, Tensor] | None = None):
        modules = {name: module for name, module in model.model.named_modules() if _is_linear(name, module)}
        if not modules:
            raise ValueError(f"the network, {_name_of(model)}, has no linear layers to put a LoRA on")
        known = {} if existing is None else _layers_of(model, existing, modules)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self._layers: dict[str, Any] = {
                name: known.get(name) or _new_layer(module, rank) for name, module in modules.items()
            }
        self._hooks = []
        for name, layer in self._layers.items():
            layer.requires_grad_(False).float()
            layer.h = functools.partial(_in_own_precision, layer.h, layer.lora_down.weight)
            self._hooks.append(BypassForwardHook(modules[name], layer))
        self.parameters = [
            part.weight.requires_grad_(True)
            for layer in self._layers.values()
            for part in (layer.lora_up, layer.lora_down)
        ]

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Within this context the layers act, on the device of the network."""
        try:
            for hook in self._hooks:
                hook.inject()
            yield
        finally:
            for hook in self._hooks:
                hook.eject()

    def tensors(self) -> dict[str, Tensor]:
        """What the host's Save LoRA writes: up, down and alpha of each layer by its name in the network, in float16."""
        return {
            f"{name}.{key}": value.detach().to("cpu", torch.float16, copy=True)
            for name, layer in self._layers.items()
            for key, value in layer.state_dict().items()
        }


def _is_linear(name: str, module: nn.Module) -> bool:
    """Whether a LoRA goes beside this module. The host's quantised linear layers do not derive from torch's."""
    linear = isinstance(module, nn.Linear) or type(module).__name__ == "Linear"
    return name.startswith(f"{NETWORK}.") and linear and getattr(module, "weight", None) is not None


def _new_layer(module: Any, rank: int):
    """A layer that adds nothing yet, by the host's own initial values. alpha is the rank, so a file's strength 1 is as
    trained."""
    like = torch.zeros(()).expand(module.out_features, module.in_features)  # the module's weights may be packed
    return LoRAAdapter.create_train(like, rank=rank, alpha=float(rank))


def _layers_of(model, existing: dict[str, Tensor], modules: dict[str, nn.Module]) -> dict[str, Any]:
    """The layers of a LoRA file, in any format that the host knows, by the names of the network's modules."""
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    loaded = comfy.lora.load_lora(comfy.lora_convert.convert_lora(existing), keys, log_missing=False)
    if not loaded:
        raise ValueError(f"it has no layer of the network, {_name_of(model)}; choose a LoRA of this model")
    found = {}
    for key, adapter in loaded.items():
        name = key.removesuffix(".weight") if isinstance(key, str) else ""
        plain = isinstance(adapter, LoRAAdapter) and not any(part is not None for part in adapter.weights[3:])
        if name not in modules or not plain:
            place = key if isinstance(key, str) else key[0]
            raise ValueError(
                f"what it has for {shown(place)} is no plain LoRA of one linear layer, and training can only go on with "
                f"those"
            )
        up, down, alpha, *rest = adapter.weights
        found[name] = LoRAAdapter(set(), (up, down, float(down.shape[0] if alpha is None else alpha), *rest)).to_train()
    return found


def _in_own_precision(add: Callable, weight: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """What a layer adds to `out`, computed in the precision of its `weight` and not the network's."""
    return add(x.to(weight.dtype), out).to(out.dtype)


def _name_of(model) -> str:
    return type(getattr(model.model, NETWORK)).__name__


# ------------------------------------------------------------------------------------------------------------ gradients


@contextlib.contextmanager
def training() -> Iterator[None]:
    """Within this context gradients are kept, and the host uses no kernels that have none."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        comfy.model_management.in_training = before


def attention_with_gradient(_own: Callable, *args, **kwargs) -> Tensor:
    """The host's attention override: that of torch, since some of the others have no gradient."""
    return attention_pytorch(*args, **kwargs)


@contextlib.contextmanager
def recomputed(network: nn.Module) -> Iterator[None]:
    """Within this context the units of a network, most of them blocks, keep nothing but what they are given."""
    forwards = [(unit, unit.forward) for unit in _units(network)]
    try:
        for unit, own in forwards:
            unit.forward = functools.partial(_recomputed, own)
        yield
    finally:
        for unit, own in forwards:
            unit.forward = own


def _units(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a network, and what stands beside them: no unit has a list of modules in it."""
    for child in module.children():
        is_list = isinstance(child, (nn.ModuleList, nn.ModuleDict, nn.Sequential))
        if is_list or any(isinstance(inner, (nn.ModuleList, nn.ModuleDict)) for inner in child.modules()):
            yield from _units(child)
        else:
            yield child


def copies_kept() -> saved_tensors_hooks:
    """A context in which what the backward pass needs is copied, since the network may write into it later."""
    return saved_tensors_hooks(_copy, lambda kept: kept)


def _copy(kept: Tensor) -> Tensor:
    return kept if isinstance(kept, nn.Parameter) else kept.detach().clone()


def _recomputed(forward: Callable, *args, **kwargs):
    """What `forward` gives. Nothing that it keeps for the backward pass stays in memory until that asks for it."""
    again: list[Any] = []
    count = 0

    def run():
        """Its inputs must stay as they are until the backward pass, and it may write into what it is given."""
        return forward(*map(_fresh, args), **{key: _fresh(value) for key, value in kwargs.items()})

    def number(_kept: Tensor) -> int:
        nonlocal count
        count += 1
        return count - 1

    def fetch(place: int) -> Tensor:
        if len(again) <= place:
            again.clear()
            with torch.enable_grad(), saved_tensors_hooks(lambda kept: again.append(_copy(kept)), _unused):
                run()
            if len(again) != count:
                raise RuntimeError("a block does not compute the same when it is asked again")
        found, again[place] = again[place], None
        if found is None:
            raise RuntimeError("a second backward pass through a network that recomputes")
        return found

    with saved_tensors_hooks(number, fetch):
        return run()


def _unused(_kept) -> Tensor:
    raise RuntimeError("a backward pass through what was only computed again")


def _fresh(value):
    """What a block may write into, copied: tensors, lists of them, and the host's options."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) in (list, tuple):
        return type(value)(map(_fresh, value))
    return dict(value) if type(value) is dict else value

"""Probes of a network of the host's, for patches/discovery: forwards in which every attention gives zeros.

They run within the first call of a run, with its own latent, time and conditionings, of which one row is taken. Nothing of
other packs is called in them, and what they change in the network is put back.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import comfy.ldm.modules.attention
import torch
from comfy.model_management import OOM_EXCEPTION, InterruptProcessingException
from torch import Tensor
from torch.nn import Module, ModuleDict, ModuleList

from ..discovery import Change, Discovered, NotProven, Probe, SeenAttention, discover, pictures_at_a_glance
from ..layers import print_layers
from .forwards import parameters
from .log import LOG
from .lookup import is_compiled
from .network_state import State
from .options_free import FUNCTIONS
from .others import may_remember, whose

MARK = "beyond_cfg_probed"  # in a module's transformer_options: its name, after those of the modules that gave them
NUMBERS = 4  # kept of each token
SMALL = 2**20  # elements of an output that may be the embedding of the time
TEXTS = ("c_crossattn", "y")  # the host's inputs that hold the text

Pictures = dict[Module, dict[tuple[int, int], list[int]]]  # module → (queries, keys) of its attentions → the picture

_ONE_AT_A_TIME = threading.Lock()  # several GPUs have a thread each
_WATCH: contextvars.ContextVar[Watch | None] = contextvars.ContextVar("beyond_cfg_probe", default=None)
_CHECKED: weakref.WeakSet[Module] = weakref.WeakSet()
_KNOWN: weakref.WeakKeyDictionary[Module, dict[Hashable, Discovered | NotProven]] = weakref.WeakKeyDictionary()


def discovered(model, network: Module, inputs: dict, options: dict) -> Discovered:
    """What probes prove of `network`, the diffusion network of the host's `model`, in a call with these inputs and
    transformer_options. It is remembered by network and form of the inputs. Raises NotProven, also from memory."""
    known = _KNOWN.setdefault(network, {})
    form = _form(inputs, inputs["x"].shape[0])
    if form not in known:
        try:
            known[form] = _watched(discover, model, network, inputs, options)
        except NotProven as reason:
            known[form] = NotProven(reason.step, str(reason))  # one that holds no frame, and so no network
        _log(network, known[form])
    found = known[form]
    if isinstance(found, NotProven):
        raise NotProven(found.step, str(found))
    return found


def last_discovered(network: Module) -> Discovered | None:
    """What the last probes of `network` have proven, if they have."""
    found = [found for found in _KNOWN.get(network, {}).values() if isinstance(found, Discovered)]
    return found[-1] if found else None


def pictures(model, network: Module, inputs: dict, options: dict) -> Pictures:
    """The tokens of the picture in the attentions of each module, by one probe. Raises NotProven."""
    modules, found = dict(network.named_modules()), {}
    for seen, tokens in _watched(pictures_at_a_glance, model, network, inputs, options):
        for name in seen.path:
            of_module = found.setdefault(modules[name], {})
            if of_module.setdefault(seen.size, tokens) != tokens:
                of_module[seen.size] = []
    return {module: {size: tokens for size, tokens in of.items() if tokens} for module, of in found.items()}


def is_checked(network: Module) -> bool:
    """Whether the table has been held against a probe of `network`."""
    return network in _CHECKED


def mark_checked(network: Module) -> None:
    """Note that no probe of `network` has shown that the table is wrong."""
    _CHECKED.add(network)


def _log(network: Module, found: Discovered | NotProven) -> None:
    name = type(network).__name__
    if isinstance(found, NotProven):
        LOG.info(f"Beyond CFG: probes of {name} do not prove where its picture is ({found.step}: {found})")
        return
    grids = " and ".join(dict.fromkeys(" x ".join(map(str, one.grid)) for one in found.found.values()))
    LOG.info(
        f"Beyond CFG: {name} has no row in the table of networks. Probes have found the layers "
        f"{print_layers(found.found)}, over {grids} tokens of the picture"
    )


def _form(given, rows: int) -> Hashable:
    """What of the inputs of a call may decide how the network runs: kinds and sizes, of one row."""
    if isinstance(given, Tensor):
        batched = given.ndim and given.shape[0] == rows
        return tuple(given.shape[1:] if batched else given.shape), given.dtype, bool(batched)
    if isinstance(given, dict):
        return tuple((key, _form(value, rows)) for key, value in given.items())
    if isinstance(given, list | tuple):
        return tuple(_form(value, rows) for value in given)
    return given if isinstance(given, str | int | float | bool | None) else type(given)


def _watched(find: Callable, model, network: Module, inputs: dict, options: dict) -> Any:
    """find(network, spatial, run, tokens_first) for the latent in a call, with the host's attention replaced. Raises
    NotProven."""
    if is_compiled(network):
        raise NotProven("calls", "it is compiled, so that its attentions cannot be watched")
    if replaced := may_remember(network):
        raise NotProven("calls", f"{', '.join(map(whose, replaced))} stands in it and may remember calls")
    shapes = inputs.get("latent_shapes")
    packed = tuple(shapes[0][1:]) if shapes else None
    latent = packed or tuple(inputs["x"].shape[1:])
    if len(latent) < 2:
        raise NotProven("grid", "its latent has no axes")
    make = partial(Prober, model, network, inputs, options, State(network), packed)
    with _ONE_AT_A_TIME, _replaced_attention(network):
        try:
            return find(network, latent[1:], make(latent[1:], False), False)
        except NotProven as reason:
            if len(latent) != 2 or reason.step != "grid":
                raise
            return find(network, latent[:1], make(latent[:1], True), True)


@dataclass(frozen=True)
class Prober:
    """Makes probes: discovery.Run for one network call."""

    model: Any  # the host's BaseModel
    network: Module
    inputs: dict  # x, t, c_concat, c_crossattn and the conditionings of the call
    options: dict  # its transformer_options
    state: State
    packed: tuple[int, ...] | None  # the picture's own axes, where x packs several latents
    spatial: tuple[int, ...]
    tokens_first: bool  # whether a latent is [tokens, channels], and no [channels, *spatial]

    def __call__(self, change: Change) -> Probe:
        """One forward, of [row, row changed]. Raises NotProven where the network fails in it."""
        if change.again:
            self._forward(Change(cells=torch.ones(self.spatial, dtype=torch.bool)), put_back=False)
        return self._forward(change)

    def _forward(self, change: Change, put_back: bool = True) -> Probe:
        given = dict(self._rows(change))
        x, t = given.pop("x"), given.pop("t")
        options = {key: self.options[key] for key in ("sigmas", "sample_sigmas") if key in self.options}
        options |= {"cond_or_uncond": [0] * x.shape[0], "uuids": self.options.get("uuids", [None])[:1] * x.shape[0]}
        watch = Watch(x.shape[0])
        token = _WATCH.set(watch)
        cuda = [x.device] if x.device.type == "cuda" else []
        try:
            with torch.no_grad(), torch.random.fork_rng(cuda), watch.hooked(self.network):
                self.model._apply_model(x, t, transformer_options=options, **given)
        except (InterruptProcessingException, OOM_EXCEPTION):
            raise
        except Exception as error:
            why = f"it fails where attention gives zeros ({type(error).__name__}: {str(error)[:200]})"
            raise NotProven("calls", why) from error
        finally:
            _WATCH.reset(token)
            if put_back:
                watch.probe.kept_state = self.state.put_back()
        return watch.probe

    def _rows(self, change: Change) -> Iterator[tuple[str, Any]]:
        rows = self.inputs["x"].shape[0]
        for name, value in self.inputs.items():
            row = _mapped(partial(_row, rows), value)
            if change.alone:
                yield name, row
            else:
                yield name, _paired(row, self._changed(name, row, change), value, rows)

    def _changed(self, name: str, row, change: Change):
        """The row of an input, with what `change` says."""
        if row is None:
            return None
        if name == "t" and change.time:
            return row * 0.98
        if name in TEXTS and change.text:
            return _mapped(partial(_noise_like, seed=5), row)
        if name == "x" and change.cells is not None:
            cells = change.cells.unsqueeze(-1) if self.tokens_first else change.cells
            cells = cells.to(row.device)
            return self._of_picture(row, lambda picture: torch.where(cells, _noise_like(picture, seed=9), picture))
        if name == "x" and change.rolled:
            return self._of_picture(row, lambda picture: picture.roll(1, -2 if self.tokens_first else -1))
        return row

    def _of_picture(self, x: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        """A copy of x in which the picture is another."""
        if self.packed is None:
            return make(x)
        size = math.prod(self.packed)
        picture, rest = x[..., :size], x[..., size:]
        made = make(picture.reshape(x.shape[0], *self.packed)).reshape(picture.shape)
        return torch.cat([made, rest], -1)


def _noise_like(given: Tensor, seed: int) -> Tensor:
    """Other numbers, about as large; numbers that are no fractions stay as they are."""
    if not given.is_floating_point():
        return given
    noise = torch.randn(given.shape, generator=torch.Generator().manual_seed(seed))
    return noise.to(given) * given.float().std().nan_to_num(1.0).clamp_min(1e-3).to(given)


def _row(rows: int, given: Tensor) -> Tensor:
    return given[:1] if given.ndim and given.shape[0] == rows else given


def _mapped(change: Callable[[Tensor], Tensor], given) -> Any:
    """`given` with each tensor in it changed, in containers of its own."""
    if isinstance(given, Tensor):
        return change(given)
    if type(given) is dict:
        return {key: _mapped(change, value) for key, value in given.items()}
    if type(given) in (tuple, list):
        return type(given)(_mapped(change, value) for value in given)
    return given


def _paired(row, other, given, rows: int) -> Any:
    """[row, other] of what has rows in `given`, the rest as it is."""
    if isinstance(given, Tensor):
        return torch.cat([row, other]) if given.ndim and given.shape[0] == rows else row
    if type(given) is dict:
        return {key: _paired(row[key], other[key], value, rows) for key, value in given.items()}
    if type(given) in (tuple, list):
        return type(given)(_paired(*parts, rows) for parts in zip(row, other, given, strict=True))
    return row


@dataclass
class Watch:
    """Watches one forward: writes what its modules and attentions get and give into `probe`."""

    rows: int
    probe: Probe = field(default_factory=Probe)
    _path: list[str] = field(default_factory=list)  # the modules that run now
    _gave: dict[str, list] = field(default_factory=dict)  # list of modules → what its last block gave

    @contextlib.contextmanager
    def hooked(self, network: Module) -> Iterator[None]:
        """Within this context the modules of `network` report to this watch."""
        lists = {
            id(one)
            for part in network.modules()
            if isinstance(part, ModuleList | ModuleDict)
            for one in part.children()
        }
        with contextlib.ExitStack() as hooks:
            for name, module in network.named_modules():
                enter, leave = (
                    partial(self._enter, name, id(module) in lists),
                    partial(self._leave, name, id(module) in lists),
                )
                hooks.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
            yield

    def _enter(self, name: str, is_block: bool, module: Module, args: tuple, kwargs: dict):
        self._path.append(name)
        parent = name.rpartition(".")[0]
        if is_block and (before := self._gave.pop(parent, None)):
            given = _tensors(module, args, kwargs)
            became = tuple(next((key for key, one in given if one is out), None) for out in before)
            self.probe.became.setdefault(parent, []).append(became)
        options = kwargs.get("transformer_options")
        if isinstance(options, dict):
            return args, {**kwargs, "transformer_options": {**options, MARK: (*options.get(MARK, ()), name)}}
        return None

    def _leave(self, name: str, is_block: bool, module: Module, args: tuple, kwargs: dict, out) -> None:
        self._path.pop()
        outs = list(out) if isinstance(out, tuple | list) else [out]
        if is_block:
            parent, inputs = name.rpartition(".")[0], _tensors(module, args, kwargs)
            alike = tuple(one if one is None else _named_like(one, inputs) for one in outs)
            self.probe.alike.setdefault(parent, []).append(alike)
            self.probe.sums.setdefault(parent, []).append(tuple(map(_sums, outs)))
            self._gave[parent] = outs
        if not self.probe.attentions and all(isinstance(one, Tensor) and one.numel() <= SMALL for one in outs):
            self.probe.outputs.append((name, tuple(one.detach().clone() for one in outs)))

    def attention(self, q, k, v, *args, skip_reshape=False, **kwargs) -> Tensor:
        """In place of the host's attention: zeros."""
        options = kwargs.get("transformer_options") or {}
        seen = (_numbers(part, skip_reshape) for part in (q, k, v))
        self.probe.attentions.append(SeenAttention(tuple(self._path), options.get(MARK, ()), q.shape[0], *seen))
        return zeros(q, k, v, *args, skip_reshape=skip_reshape, **kwargs)


def zeros(q, _k, v, heads, _mask=None, _precision=None, skip_reshape=False, skip_output_reshape=False, **_) -> Tensor:
    """Zeros in the form of what the host's attention gives."""
    if skip_reshape:
        shape = q.shape[0], q.shape[1], q.shape[2], v.shape[3]
    else:
        shape = q.shape[0], heads, q.shape[1], v.shape[2] // heads if v.ndim == 3 else v.shape[3]
    out = q.new_zeros(shape)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def _tensors(module: Module, args: tuple, kwargs: dict) -> list[tuple[str, Tensor]]:
    """The tensors among the inputs of a module, by the names of the inputs; those without a name are "0", "1", …"""
    given = parameters(module).items()
    known = [name for name, one in given if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    by_place = [*known[: len(args)], *map(str, range(len(known), len(args)))]
    by_name = [*zip(by_place, args, strict=True), *kwargs.items()]
    parts = [(key, one) for key, value in by_name for one in (value if type(value) is tuple else (value,))]
    return [(key, one) for key, one in parts if isinstance(one, Tensor)]


def _sums(out) -> tuple[Tensor, ...] | None:
    """For each axis of a tensor its sums over all others; None for anything else, and where there are no numbers in it."""
    if not isinstance(out, Tensor) or not out.numel():
        return None
    return tuple(out.movedim(axis, 0).flatten(1).float().sum(1) for axis in range(out.ndim))


def _named_like(out, inputs: list[tuple[str, Tensor]]) -> tuple[str, ...]:
    """The inputs that have the shape of an output; none for an output that is no tensor."""
    shape = out.shape if isinstance(out, Tensor) else None
    return tuple(dict.fromkeys(name for name, one in inputs if one.shape == shape))


def _numbers(tokens: Tensor, headed: bool) -> Tensor:
    """[rows, heads, tokens, dim] or [rows, tokens, …] → [rows, tokens, NUMBERS], weighted sums of each token's numbers."""
    tokens = (tokens.transpose(1, 2) if headed else tokens).flatten(2).float()
    weights = torch.randn(tokens.shape[2], NUMBERS, generator=torch.Generator().manual_seed(1)).to(tokens)
    return tokens @ weights


@contextlib.contextmanager
def _replaced_attention(network: Module) -> Iterator[None]:
    """Within this context the host's attention functions, wherever they are known, ask the watch of this thread."""
    attention = comfy.ldm.modules.attention
    functions = {id(getattr(attention, name)) for name in FUNCTIONS}
    homes = {type(module).__module__ for module in network.modules()}
    replaced = []
    for home, module in list(sys.modules.items()):
        if module is not None and (home in homes or home.partition(".")[0] in ("comfy", "comfy_extras")):
            for name, value in list(vars(module).items()):
                if id(value) in functions or (name in FUNCTIONS and callable(value)):
                    replaced.append((module, name, value))
    for module, name, function in replaced:
        setattr(module, name, partial(_attention, function))
    try:
        yield
    finally:
        for module, name, function in replaced:
            setattr(module, name, function)


def _attention(function: Callable, *args, **kwargs):
    watch = _WATCH.get()
    return function(*args, **kwargs) if watch is None else watch.attention(*args, **kwargs)

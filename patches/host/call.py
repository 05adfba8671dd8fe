"""One network call in which some shares of the batch are perturbed."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial

from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from .. import architectures
from ..base import Moment, Perturbation
from ..layers import Layer
from .attention import ATTENTION, Layout, Present, Report, Shares, TransformerAttention, UNetAttention
from .lookup import Blocks, check_layers, is_compiled, uncompiled
from .modules import (
    AttendingModule,
    Forward,
    Inputs,
    SkippedBlock,
    Streams,
    TimeModule,
    ToldAttention,
    UntoldModule,
    around,
    attention_told,
    takes_options,
)
from .others import said
from .sharing import Sharing
from .tiles import Watch

KEY = "beyond_cfg"


@dataclass
class Plan:
    """What one network call is to do, and the perturbations whose first call this is."""

    shares: Shares
    unproven: set[Perturbation]
    moment: Moment
    report: Report | None = None  # told what is observed
    copies: tuple[Hashable, ...] = ()  # what each share is a copy of, but for its perturbation
    sharing: Sharing = field(default_factory=Sharing)  # of the run
    blocks: Blocks = Blocks(None, {})  # of the network when the run began


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
    network = uncompiled(compiled)
    reached: set[Perturbation] = set()
    present = Present()
    options = {key: value for key, value in transformer_options.items() if key != KEY}  # compiled networks guard them
    architecture, blocks = architectures.find(network), plan.blocks.now(network)
    unproven = plan.unproven.intersection(plan.shares)
    for perturbation in (one for one in unproven if not hasattr(one, "observe")):
        check_layers(perturbation.about.title, perturbation.layers, network, blocks)
    inputs = {"x": x, "t": t, "c_concat": c_concat, "c_crossattn": c_crossattn, **kwargs}
    shared = plan.sharing.forwards(architecture, compiled, inputs, options, plan.shares, plan.copies, present)
    forwards, untold = _time(architecture, network, x, kwargs, plan, reached), []
    others = partial(said, network, options)
    if architecture.stacks:
        transformer = _Transformer(architecture, network, blocks, x, kwargs, plan, reached, present, others)
        forwards, untold = forwards + transformer.forwards(options.get(ATTENTION)), transformer.untold
        if untold:
            options = {**options, ATTENTION: ToldAttention(options.get(ATTENTION))}
    else:
        options = _with_attn1_patches(options, network, plan, reached, present, others)
    with attention_told(untold), around(forwards + shared, options) as options:
        denoised = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    if not is_compiled(compiled):  # a compiled graph calls ours without Python to witness it
        for perturbation in unproven - reached:
            layers = ", ".join(map(str, perturbation.layers))
            what = f"none of the layers {layers} ran" if layers else "the time embedding did not run"
            raise RuntimeError(
                f"{perturbation.about.title}: {what} in the host's way in {type(network).__name__}, so it would have no "
                f"effect. {others()} Take the node out that is in the way, or choose other layers."
            )
    plan.sharing.say(plan.shares)
    plan.unproven.difference_update(unproven)  # later calls may be skipped by a cache, and need no proof
    return denoised


def _layers(plan: Plan) -> dict[Layer, Shares]:
    """The layers that are touched, and by what in each share."""
    layers = dict.fromkeys(layer for perturbation in plan.shares if perturbation for layer in perturbation.layers)
    return {layer: tuple(p if p is not None and layer in p.layers else None for p in plan.shares) for layer in layers}


def _those(has: tuple[str, ...], shares: Shares) -> Shares:
    """Those of `shares` that define one of `has`."""
    return tuple(p if any(hasattr(p, name) for name in has) else None for p in shares)


def _moment(plan: Plan) -> Moment | None:
    """A compiled network would be compiled again for every new one, so it is given where something draws only."""
    return plan.moment if any(getattr(p, "random", False) for p in plan.shares) else None


def _with_attn1_patches(options: dict, network, plan: Plan, reached: set, present: Present, others: Callable) -> dict:
    replace = {kind: dict(patches) for kind, patches in options.get("patches_replace", {}).items()}
    attn1, patches, layers = replace.setdefault("attn1", {}), dict(options.get("patches", {})), _layers(plan)
    pictures = set() if architectures.has_frames(network) else None
    watch = Watch({_place(layer) for layer in layers})
    if patches.get("attn1_patch"):
        patches["attn1_patch"] = [watch.first, *patches["attn1_patch"], watch.last]
    for layer, shares in layers.items():
        key = _place(layer)
        previous = attn1.get(key, attn1.get(key[:2]))  # the host looks for them in this order
        shares = _those(("attention", "observe"), shares)
        of_call = (pictures, _moment(plan), plan.report, reached, present, watch, others)
        attn1[key] = UNetAttention(shares, previous, str(layer), *of_call)
    return {**options, "patches": patches, "patches_replace": replace}


def _place(layer: Layer) -> tuple[str, int, int]:
    """As the host names it."""
    return layer.stack, layer.index, layer.part


class _Transformer:
    """What is put around the modules of a transformer in one call."""

    def __init__(
        self,
        architecture,
        network,
        blocks,
        x,
        conds: dict,
        plan: Plan,
        reached: set,
        present: Present,
        others: Callable,
    ):
        self.others = others
        self.architecture, self.network, self.blocks, self.plan = architecture, network, blocks, plan
        self.reached, self.present = reached, present
        self.tokens = partial(architecture.tokens, network, tuple(x.shape), conds)
        self.grid = self.tokens()
        self.shift = architecture.shift(network, conds, self.grid)
        self.across = architecture.across(network, conds, self.grid)
        self.layers = _layers(plan)
        attending = [layer for layer, shares in self.layers.items() if any(_those(("attention", "observe"), shares))]
        self.attentions = {layer: architecture.attention(blocks[layer], layer) for layer in attending}
        self.untold = [module for module in self.attentions.values() if not takes_options(module)]

    def forwards(self, previous: Callable | None) -> list[Forward]:
        """What is put around which module; `previous` is another pack's attention override."""
        moment, found = _moment(self.plan), []
        for layer, shares in self.layers.items():
            stack = self.architecture.stack(layer)
            if layer in self.attentions:
                module = self.attentions[layer]
                grid = self.tokens(layer) if stack.grid else self.grid
                layout = Layout(grid, self.architecture.is_set, stack.image, self.shift, self.across, stack.prefix)
                where, attending = f"{type(self.network).__name__} {layer}", _those(("attention", "observe"), shares)
                attention = TransformerAttention(
                    attending,
                    previous,
                    layout,
                    where,
                    moment,
                    self.plan.report,
                    self.reached,
                    self.present,
                    self.others,
                )
                found.append(Forward(f"attention of {layer}", module, self._attending(module, attention, stack)))
            if any(skipped := _those(("skips",), shares)):
                block = self.blocks[layer]
                streams = Streams.of(block, stack.streams)
                skip = partial(
                    SkippedBlock,
                    streams=streams,
                    axis=stack.rows,
                    shares=skipped,
                    reached=self.reached,
                    present=self.present,
                )
                found.append(Forward(f"skipped {layer}", block, skip))
        return found

    def _attending(self, module, attention: TransformerAttention, stack: architectures.Stack) -> Callable:
        if module in self.untold:
            return partial(UntoldModule, attention=attention)
        text = Inputs.of(module, (stack.text,)) if stack.text not in ("", "img_slice") else None
        return partial(
            AttendingModule, attention=attention, text=text, parts=stack.parts, sliced=stack.text == "img_slice"
        )


def _time(architecture, network, x, conds: dict, plan: Plan, reached: set) -> list[Forward]:
    shares = _those(("time_embedding",), plan.shares)
    if not any(shares):
        return []
    module = network.get_submodule(architecture.time)
    setting = {"shares": shares, "rows": x.shape[0], "which": architecture.time_rows, "moment": plan.moment}
    if architecture.time_rows == "tokens":
        setting["grid"] = architecture.tokens(network, tuple(x.shape), conds)
    return [Forward("time", module, partial(TimeModule, **setting, reached=reached))]

"""One network call in which something is done in some chunks of the batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from comfy.model_management import OOM_EXCEPTION, soft_empty_cache
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor
from torch.nn import Module

from .. import architectures
from ..architectures import Architecture
from ..base import (
    AttentionPerturbation,
    BlockPerturbation,
    Intervention,
    Moment,
    Observation,
    Perturbation,
    PromptGuidance,
    TimePerturbation,
    TimeShift,
    TokenPerturbation,
)
from ..discovery import NotProven
from ..layers import Layer, Unread
from ..layout import Layout
from .attention import ATTENTION, Report, TransformerAttention, UNetAttention
from .chunks import Chunks, PresentChunks, only, titles
from .forwards import ForwardPatch, Inputs, Streams, parameters, patched_forwards, takes_options
from .lookup import Blocks, architecture_in, check_layers, is_compiled, is_to_be_probed, read, time_of, uncompiled
from .modules import AttendingModule, Entrance, SkippedBlock, TimeModule, ToldTime
from .options_free import OptionsFreeModule, OptionsFreeOverride, replaced_attention_functions
from .others import may_answer, said, whose
from .prefix_sharing import PrefixSharing
from .probe import Pictures, discovered, is_checked, mark_checked, pictures
from .prompts import Negatives, PromptAttention, Prompts, UNetPromptAttention
from .tiles import Watch

KEY = "beyond_cfg"  # of everything that the pack puts into the host's options
ATTENDING = (AttentionPerturbation, Observation)
PROVEN = (Perturbation, PromptGuidance)  # what has to be seen to act


class Proofs:
    """Which perturbations of a run have been seen to act. One that has not by the end of its first call is an error. So is
    one that does not act in a later call, unless something of others may have answered for the network, as a cache does."""

    def __init__(self, perturbations: Iterable[Intervention | None]):
        self._missing = {one for one in perturbations if isinstance(one, PROVEN)}

    def missing(self, acting: Iterable[Intervention | None]) -> set[Perturbation | PromptGuidance]:
        """Those of `acting` that have not been seen to act."""
        return self._missing.intersection(acting)

    def settle(self, perturbations: set[Perturbation | PromptGuidance]) -> None:
        """These need no proof any more."""
        self._missing -= perturbations


@dataclass(frozen=True)
class Plan:
    """What is to be done in one network call."""

    chunks: Chunks
    proofs: Proofs  # of the run
    moment: Moment
    report: Report | None = None  # gets what is observed
    copies: tuple[Hashable, ...] = ()  # for each chunk what it is a copy of, but for what is done in it; empty: unknown
    prefix_sharing: PrefixSharing = field(default_factory=PrefixSharing)  # of the run
    blocks: Blocks = field(default_factory=Blocks)  # of the network when the run began
    checks: bool = True  # whether the table of networks is checked by a probe
    negatives: Negatives = ()  # for each chunk the negative prompt that acts in its attention; empty: none

    @property
    def acting(self) -> tuple[Intervention | None, ...]:
        """All that is done in some chunk."""
        return (*self.chunks, *(negative and negative.guidance for negative in self.negatives))

    @property
    def moment_if_random(self) -> Moment:
        """The moment, where something draws; else always the same: a compiled network would be compiled again for each
        new one."""
        return self.moment if any(chunk is not None and chunk.random for chunk in self.chunks) else Moment()

    def of_layers(self) -> dict[Layer, Chunks]:
        """The layers in which something is done, and what in each chunk."""
        layers = dict.fromkeys(layer.whole for chunk in self.chunks if chunk is not None for layer in chunk.layers)

        def acting(chunk: Intervention | None, layer: Layer) -> Intervention | None:
            return None if chunk is None or chunk.heads_in(layer) is None else chunk

        return {layer: tuple(acting(chunk, layer) for chunk in self.chunks) for layer in layers}


def planned(transformer_options: dict, plan: Plan) -> dict:
    """A copy of a network call's transformer_options that carries `plan`."""
    wrappers = transformer_options.get("wrappers", {})
    wrappers = {**wrappers, WrappersMP.APPLY_MODEL: dict(wrappers.get(WrappersMP.APPLY_MODEL, {}))}
    options = {**transformer_options, KEY: plan, "wrappers": wrappers}
    add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, apply_model, options)
    return options


def apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
    """The host's APPLY_MODEL wrapper of a call that carries a plan. Raises RuntimeError where the plan cannot be carried
    out, or where a perturbation is seen to have had no effect."""
    given: dict = transformer_options or {}
    plan: Plan = given[KEY]
    compiled = executor.class_obj.diffusion_model
    network = uncompiled(compiled)
    options = {key: value for key, value in given.items() if key != KEY}  # compiled networks guard them
    inputs = {"x": x, "t": t, "c_concat": c_concat, "c_crossattn": c_crossattn, **kwargs}
    architecture = _architecture(executor.class_obj, network, inputs, options, plan)
    asked = {_read(one, architecture, network): one for one in plan.proofs.missing(plan.acting)}
    plan = dataclasses.replace(plan, chunks=tuple(one and _read(one, architecture, network) for one in plan.chunks))
    blocks, missing = plan.blocks.now(network, architecture), set(asked)
    for perturbation in missing:
        check_layers(perturbation.about.name, perturbation.layers, network, blocks)
    seen = _pictures(executor.class_obj, network, architecture, blocks, inputs, options, plan)
    others = partial(said, network, options)
    prompts = None
    if any(plan.negatives):
        titles = _titles(one and one.guidance for one in plan.negatives)
        prompts = Prompts.of(plan.negatives, c_crossattn, x.shape[2:], kwargs, architecture, titles)
        c_crossattn, kwargs = prompts.inputs(kwargs)
        inputs |= {"c_crossattn": c_crossattn, **kwargs}
    call = NetworkCall(architecture, network, blocks, tuple(x.shape), kwargs, plan, others, seen or {}, prompts)
    shared = plan.prefix_sharing.patches(
        architecture, compiled, inputs, options, plan.chunks, plan.copies, call.present
    )
    forwards, options_free = call.time_patches() + call.told_time(executor.class_obj.model_sampling), []
    if architecture.stacks:
        options_free = call.options_free()
        forwards += call.transformer_patches(options.get(ATTENTION)) + call.prompt_patches(options.get(ATTENTION))
        if options_free:
            options = {**options, ATTENTION: OptionsFreeOverride(options.get(ATTENTION))}
    else:
        options = call.with_attn2_patches(call.with_attn1_patches(options))
        forwards += call.token_patches_of_unet()
    with replaced_attention_functions(options_free), patched_forwards(forwards + shared, options) as options:
        denoised = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    if not is_compiled(compiled):  # a compiled graph runs no Python that could note what it reached
        call.check_effect(missing, given)
    if seen is not None:
        mark_checked(network)
    plan.prefix_sharing.log(plan.chunks)
    plan.proofs.settle({asked[perturbation] for perturbation in missing})
    return denoised


def _architecture(model, network: Module, inputs: dict, options: dict, plan: Plan) -> Architecture:
    """The row of a network, or what probes of it prove. Raises RuntimeError where there is neither."""
    if not is_to_be_probed(network):
        if architectures.find(network) is None:  # it was put in place of the one that layers were chosen in
            for perturbation in plan.proofs.missing(plan.chunks):
                check_layers(perturbation.about.name, perturbation.layers, network, {})
        return architecture_in(network)
    try:
        return discovered(model, network, inputs, options)
    except NotProven as reason:
        raise RuntimeError(
            f"{_titles(plan.chunks)}: {whose(network)} is a network that this pack has no row for, and probes of it do not "
            f"prove where its picture is. What failed: {reason.step}, since {reason}. {said(network, options)} Take the "
            f"guidance out, or use one that needs no layers, such as Autoguidance or CFG."
        ) from reason


def _read(intervention: Intervention, architecture: Architecture, network: Module) -> Any:
    """An intervention with the layers that its text names in `network`. Raises ValueError where that names none."""
    if not any(isinstance(layer, Unread) for layer in intervention.layers):
        return intervention
    try:
        return dataclasses.replace(cast(Any, intervention), layers=read(intervention.layers, architecture, network))
    except ValueError as error:
        raise ValueError(f"{_titles([intervention])}: {error}") from None


def _pictures(
    model,
    network: Module,
    architecture: Architecture,
    blocks: dict[Layer, Module],
    inputs: dict,
    options: dict,
    plan: Plan,
) -> Pictures | None:
    """Where the picture is in the attention of each block, by a probe, in the first call of a network of the table in
    which something is done in its attention; empty where the probe proves nothing. None in all other calls."""
    checks = plan.checks and any(only(ATTENDING, plan.chunks)) and not is_checked(network)
    if not checks or architectures.find(network) is None or not architecture.stacks:
        return None
    layers = [layer for layer, chunks in plan.of_layers().items() if _attends(chunks)]
    try:
        seen = pictures(model, network, inputs, options)
        for layer in layers:
            size = math.prod(architecture.tokens(network, tuple(inputs["x"].shape), inputs, layer))
            of_layer = seen.get(architecture.attention(blocks[layer], layer), {})
            if any(len(tokens) != size for tokens in of_layer.values()):
                discovered(model, network, inputs, options)  # tokens beside the picture may follow the latent too
        return seen
    except NotProven:
        return {}
    except OOM_EXCEPTION:  # a probe has two rows, where a run may do with one after the other
        soft_empty_cache()
        return {}


@dataclass(frozen=True)
class NetworkCall:
    """A plan and the network that carries it out, and what is put into the network for the length of the call."""

    architecture: Architecture
    network: Module
    blocks: dict[Layer, Module]
    shape: tuple[int, ...]  # of x
    conds: dict  # the host's further inputs of the network
    plan: Plan
    others: Callable[[], str]  # a sentence of what other nodes have put into the network
    pictures: Pictures  # where a probe has seen the picture, to check the table by
    prompts: Prompts | None = None  # the negative prompts that act in its attention
    reached: set[Intervention | None] = field(default_factory=set)  # what has come to where it acts
    present: PresentChunks = field(default_factory=PresentChunks)

    def check_effect(self, missing: set[Perturbation | PromptGuidance], options: dict) -> None:
        """Raise RuntimeError where a perturbation has not come to where it acts. One that is not `missing` any more has
        done so in an earlier call; something of others may have answered for the network now."""
        idle = {one for one in self.plan.acting if isinstance(one, PROVEN)} - self.reached
        if idle - missing and may_answer(self.network, options):
            idle &= missing
        for perturbation in idle:
            layers = ", ".join(map(str, perturbation.layers))
            of_time = "the network" if isinstance(perturbation, TimeShift) else "the time embedding"
            what = f"none of the layers {layers} ran" if layers else f"{of_time} did not run"
            raise RuntimeError(
                f"{perturbation.about.name}: {what} in the host's way in {type(self.network).__name__}, so it would have "
                f"no effect. {self.others()} Take the node out that is in the way, or choose other layers."
            )

    def time_patches(self) -> list[ForwardPatch]:
        """What stands around the module that embeds the time."""
        chunks = only(TimePerturbation, self.plan.chunks)
        if not any(chunks):
            return []
        which = self.architecture.time_rows
        module = self.network.get_submodule(time_of(self.architecture))
        grid = self.architecture.tokens(self.network, self.shape, self.conds) if which == "tokens" else ()
        setting = {"rows": self.shape[0], "which": which, "moment": self.plan.moment, "grid": grid}
        return [ForwardPatch("time", module, partial(TimeModule, chunks=chunks, reached=self.reached, **setting))]

    def told_time(self, sampling) -> list[ForwardPatch]:
        """What stands around the network itself, if it is told another time. `sampling`: the host's model_sampling."""
        chunks = only(TimeShift, self.plan.chunks)
        if not any(chunks):
            return []
        least, largest = (sampling.timestep(sigma).float() for sigma in (sampling.sigma_min, sampling.sigma_max))
        _, time, *_ = parameters(self.network)  # the host calls every network with (x, time, ...)
        setting = {"least": least.clamp(max=0), "largest": largest, "rows": self.shape[0], "reached": self.reached}
        make = partial(ToldTime, streams=Streams.of(self.network, (time,)), chunks=chunks, **setting)
        return [ForwardPatch("told time", self.network, make)]

    def with_attn1_patches(self, options: dict) -> dict:
        """A copy of a UNet's transformer_options with an attention function for each layer in which something is done."""
        replace = {kind: dict(patches) for kind, patches in options.get("patches_replace", {}).items()}
        attn1, patches, layers = (
            replace.setdefault("attn1", {}),
            dict(options.get("patches", {})),
            self.plan.of_layers(),
        )
        pictures = set() if architectures.has_frames(self.network) else None
        watch = Watch({_place(layer) for layer in layers})
        if patches.get("attn1_patch"):
            patches["attn1_patch"] = [watch.first, *patches["attn1_patch"], watch.last]
        for layer, chunks in layers.items():
            if not _attends(chunks):
                continue
            key = _place(layer)
            attn1[key] = UNetAttention(
                only(ATTENDING, chunks),
                _heads(layer, chunks),
                attn1.get(key, attn1.get(key[:2])),  # the host looks for patches in this order
                str(layer),
                pictures,
                self.plan.moment_if_random,
                self.plan.report,
                self.reached,
                self.present,
                watch,
                self.others,
            )
        return {**options, "patches": patches, "patches_replace": replace}

    def options_free(self) -> list:
        """The attending modules of a transformer that the host gives no options."""
        layers = [layer for layer, chunks in self.plan.of_layers().items() if _attends(chunks)]
        modules = [(layer, self._attending_module(layer)) for layer in layers]
        modules += [(layer, module) for layer in self._prompt_layers() for module, _ in self._prompt_modules(layer)]
        return [module for layer, module in modules if self._is_options_free(layer, module)]

    def transformer_patches(self, previous: Callable | None) -> list[ForwardPatch]:
        """What stands around which module of a transformer; `previous` is another pack's attention override."""
        found = []
        for layer, chunks in self.plan.of_layers().items():
            if _attends(chunks):
                found.append(self._attention_patch(layer, only(ATTENDING, chunks), previous))
            if any(skipped := only(BlockPerturbation, chunks)):
                stack, block = self.architecture.stack(layer), self.blocks[layer]
                setting = {"streams": Streams.of(block, stack.streams), "axis": stack.rows, "chunks": skipped}
                setting["samples"] = self._left_out(layer, skipped)
                skip = partial(SkippedBlock, **setting, reached=self.reached, present=self.present)
                found.append(ForwardPatch(f"skipped {layer}", block, skip))
            if any(changed := only(TokenPerturbation, chunks)):
                found.append(self._entrance(layer, changed))
        return found

    def prompt_patches(self, previous: Callable | None) -> list[ForwardPatch]:
        """What stands around the modules of a transformer in whose attention the prompt is, and nothing else is done."""
        done = {layer for layer, chunks in self.plan.of_layers().items() if _attends(chunks)}
        found = self.prompts.patches(self.architecture, self.network) if self.prompts else []
        for layer in self._prompt_layers():
            for module, place in self._prompt_modules(layer):
                if place == "keys" or layer not in done:
                    attention = self._prompt_attention(layer, previous, place)
                    make = partial(OptionsFreeModule, attention=attention)
                    if not self._is_options_free(layer, module):
                        make = partial(AttendingModule, attention=attention, text=None)
                    found.append(ForwardPatch(f"prompt {len(found)} of {layer}", module, make))
        return found

    def with_attn2_patches(self, options: dict) -> dict:
        """A copy of a UNet's transformer_options with a function for each attention to the prompt."""
        layers = self._prompt_layers()
        if not layers:
            return options
        replace = {kind: dict(patches) for kind, patches in options.get("patches_replace", {}).items()}
        attn2 = replace.setdefault("attn2", {})
        for layer in layers:
            key, attention = _place(layer), self._prompt_attention(layer, None, "keys")
            attn2[key] = UNetPromptAttention(attention, attn2.get(key, attn2.get(key[:2])))
        return {**options, "patches_replace": replace}

    def _prompt_layers(self) -> tuple[Layer, ...]:
        """The layers in whose attention the negative's tokens are to be told from the prompt's."""
        return self.architecture.prompt_layers(self.network) if self.prompts else ()

    def _prompt_modules(self, layer: Layer) -> list[tuple[Any, str]]:
        """The modules of a transformer in whose attention the prompt of `layer` is, and where in it."""
        place = self.architecture.place_of_text
        if place != "keys":
            return [(self._attending_module(layer), place)]
        paths, block = self.architecture.stack(layer).prompt, self.blocks[layer]
        blocks = [block]
        for name in self.architecture.text.also:
            lists = getattr(self.network, name, ())
            blocks += lists if layer == self._prompt_layers()[0] else ()
        return [(architectures.submodule(one, path), "keys") for one in blocks for path in paths]

    def _prompt_attention(self, layer: Layer, inner: Callable | None, place: str) -> PromptAttention:
        guides = any(one.guidance.heads_in(layer) is not None for one in self.plan.negatives if one)
        prompts = cast(Prompts, self.prompts)
        return PromptAttention(
            inner,
            prompts.negatives,
            guides,
            prompts.lengths,
            place,
            f"{type(self.network).__name__} {layer}",
            self.architecture.layout(self.network, self.shape, self.conds, layer)
            if self.architecture.stacks
            else Layout(()),
            self.reached,
            self.present,
        )

    def token_patches_of_unet(self) -> list[ForwardPatch]:
        """What stands around the transformers of a UNet whose tokens are changed as they enter."""
        layers = {layer: only(TokenPerturbation, chunks) for layer, chunks in self.plan.of_layers().items()}
        return [self._entrance(layer, chunks) for layer, chunks in layers.items() if any(chunks)]

    def _entrance(self, layer: Layer, chunks: Chunks) -> ForwardPatch:
        setting = {"chunks": chunks, "moment": self.plan.moment_if_random, "layer": str(layer), "reached": self.reached}
        setting |= {"present": self.present, "others": self.others}
        if not self.architecture.stacks:
            block = architectures.unet_transformer(self.network, layer)
            setting |= {"streams": Streams.of(block, ("x",)), "layout": None}
            return ForwardPatch(f"entrance of {layer}", block, partial(Entrance, **setting))
        stack, block = self.architecture.stack(layer), self.blocks[layer]
        if not self.architecture.knows_what_enters(layer):
            raise RuntimeError(f"{_titles(chunks)}: what enters {layer} of {self.architecture.name} is not known")
        setting |= {"streams": Streams.of(block, stack.streams), "picture": stack.picture, "axis": stack.rows}
        setting |= {"layout": self.architecture.layout(self.network, self.shape, self.conds, layer)}
        return ForwardPatch(
            f"entrance of {layer}", block, partial(Entrance, sliced=stack.text == "img_slice", **setting)
        )

    def _left_out(self, layer: Layer, chunks: Chunks) -> dict[Perturbation, Tensor]:
        """For each perturbation that leaves `layer` out in some samples: which ones. It is drawn here, since a compiled
        network would be compiled again for each draw."""
        samples = self.shape[0] // len(chunks)
        skips = {chunk for chunk in chunks if isinstance(chunk, BlockPerturbation)}
        found = {skip: skip.left_out(layer, samples, self.plan.moment_if_random) for skip in skips}
        return {skip: which for skip, which in found.items() if which is not None}

    def _is_options_free(self, layer: Layer, module) -> bool:
        known = self.architecture.stack(layer).options_free
        return not takes_options(module) if known is None else known

    def _layout(self, layer: Layer, module) -> Layout:
        """Where the picture is in the attention of `layer`, which is in `module`."""
        layout = self.architecture.layout(self.network, self.shape, self.conds, layer)
        return dataclasses.replace(layout, seen=self.pictures.get(module, {}))

    def _attending_module(self, layer: Layer):
        return self.architecture.attention(self.blocks[layer], layer)

    def _attention_patch(self, layer: Layer, chunks: Chunks, previous: Callable | None) -> ForwardPatch:
        module, stack = self._attending_module(layer), self.architecture.stack(layer)
        attention = TransformerAttention(
            chunks,
            _heads(layer, chunks),
            previous,
            self._layout(layer, module),
            f"{type(self.network).__name__} {layer}",
            self.plan.moment_if_random,
            self.plan.report,
            self.reached,
            self.present,
            self.others,
        )
        if self.prompts and self.architecture.place_of_text != "keys":
            attention = self._prompt_attention(layer, attention, self.architecture.place_of_text)
        if not self._is_options_free(layer, module):
            sliced = stack.text == "img_slice"
            text = Inputs.of(module, (stack.text,)) if stack.text and not sliced else None
            make = partial(AttendingModule, attention=attention, text=text, parts=stack.parts, sliced=sliced)
        else:
            make = partial(OptionsFreeModule, attention=attention)
        return ForwardPatch(f"attention of {layer}", module, make)


def _titles(interventions: Iterable[Intervention | None]) -> str:
    """The titles of their nodes; an observation's node is not known here."""
    return titles(one for one in interventions if isinstance(one, PROVEN)) or "The guidance"


def _heads(layer: Layer, chunks: Chunks) -> dict[Intervention, tuple[int, ...]]:
    """The heads of `layer` in which something is done, for what is not done in all of them."""
    found = {chunk: chunk.heads_in(layer) for chunk in chunks if chunk is not None}
    return {chunk: heads for chunk, heads in found.items() if heads}


def _attends(chunks: Chunks) -> bool:
    return any(only(ATTENDING, chunks))


def _place(layer: Layer) -> tuple[str, int, int]:
    """A layer of a UNet, as the host names it."""
    return layer.stack, layer.index, layer.part

"""Nodes that stand in for those of other packs, where those are missing, with their inputs and their picture.

The host swaps a missing node for one of these (replacements.py). They are in no search and no menu. Each is a line of
PEERS: what its pack calls it, its inputs, and what it puts on a MODEL. Where the same picture cannot be had it refuses,
and says which value is why. Where nodes of this pack do the same, the page can put those in its place.

The inputs are those of the packs' definitions, read in November 2026: sd-perturbed-attention 904319b, ComfyUI-ppm 200f460,
ComfyUI-SEGAttention, ComfyUI-APG_ImYourCFGNow.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comfy_api.latest import io

from ..guiders import PerturbationGuidance
from ..guiders.base import About, GuidanceRule
from ..guiders.host import KEY, Term, add_term
from ..guiders.others import AdaptivePerturbation, MomentumProjection, NoiseLimit, OwnCFG
from ..guiders.schedule import Interval, Schedule
from ..patches.blurred_query import INFINITE, BlurredQuery
from ..patches.host import choose_layers, select_layers
from ..patches.layers import Layer, print_layers
from ..patches.texts import shown
from . import schema
from .presets import BY_NODE, full_values


@dataclass(frozen=True)
class Made:
    """A rule that stands for a node or for a part of one, and the node of ours that makes the same rule, if one does."""

    rule: GuidanceRule
    between: Interval | None = None  # noise levels between which it acts
    node: str = ""  # the end of its id, after BeyondCFG
    values: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Peer:
    """A node of another pack, MODEL → MODEL."""

    node: str  # its id there
    pack: str
    inputs: Sequence[io.Input]  # but for the model
    make: Callable[..., Sequence[Made]]  # (model, **values); raises ValueError
    refuse: Callable[[Mapping[str, Any]], str | None] = lambda values: None  # what shows before a run: why not
    replaces_cfg: bool = False  # it takes the place of CFG, or acts before it, wherever in a chain it stands
    pictures_only: bool = False  # with a video it does something else
    note: str = ""  # what a user should know

    @property
    def about(self) -> About:
        """As a node of ours."""
        return About(
            node_id="BeyondCFGAs" + re.sub(r"\W", "", self.node),
            name=self.node,
            title=f"{self.node} (by Beyond CFG)",
            group="Other packs",
            summary=f"Stands in for {self.node} of {self.pack}, where that pack is missing. The picture stays the same.",
        )


def stand_in(peer: Peer) -> type[schema.Node]:
    """The node of ours that stands in for another pack's."""

    class StandIn(schema.Node):
        about, inputs, output = peer.about, (schema.MODEL_IN, *peer.inputs), schema.MODEL_OUT
        hidden_in_page = True

        @classmethod
        def build(cls, model, **values):
            cls._refuse(values)
            if peer.pictures_only and model.get_model_object("latent_format").latent_dimensions != 2:
                raise ValueError(
                    "in its own pack it does something else with a video, so it is for pictures alone here"
                )
            terms = [*model.model_options.get(KEY, ())]
            others = [term.node for term in terms if term.node in REPLACES_CFG]
            if peer.replaces_cfg and others:
                raise ValueError(f"{others[0]} acts in the place of CFG too, and only one can. Take one of them out")
            made = peer.make(model, **values)
            for one in reversed(made) if peer.replaces_cfg else made:
                term = Term(one.rule, Schedule(curve=one.between), cls.about.name)
                model = add_term(model, term, first=peer.replaces_cfg)
            alone = not (peer.replaces_cfg and terms)
            apart = made if alone and all(one.node and one.between is None for one in made) else ()
            nodes = [{"type": f"BeyondCFG{one.node}", "values": one.values} for one in apart]
            return io.NodeOutput(model, ui={"text": (said(peer, apart),), "nodes": nodes})

        @classmethod
        def foresee(cls, written):
            if written.has(given.id for given in peer.inputs if not given.optional):
                cls._refuse(written.values)

        @classmethod
        def _refuse(cls, values):
            if why := peer.refuse(values):
                raise ValueError(why)

    StandIn.__name__ = StandIn.__qualname__ = peer.about.node_id
    return StandIn


def said(peer: Peer, apart: Sequence[Made]) -> str:
    """What the node writes on itself."""
    if not apart:
        return f"{peer.about.summary} {peer.note} No single node of this pack does the same.".replace("  ", " ")
    nodes = (
        f"{BY_NODE[one.node].about.title}, {', '.join(f'{k} {v}' for k, v in one.values.items())}" for one in apart
    )
    return f"{peer.about.summary} {peer.note} Here it is: {'; '.join(nodes)}.".replace("  ", " ")


# ----------------------------------------------------------------------------------------------------------- inputs

SAME = "As in the node that this one stands in for."


def number(name: str, default: float, low: float, high: float, step: float, **more: Any) -> io.Float.Input:
    """An input for a number."""
    return io.Float.Input(name, default=default, min=low, max=high, step=step, tooltip=SAME, **more)


def choice(name: str, default: str, *others: str) -> io.Combo.Input:
    """An input for one of several words."""
    return io.Combo.Input(name, options=[default, *others], default=default, tooltip=SAME)


def switch(name: str) -> io.Boolean.Input:
    """An input for on and off; off by default."""
    return io.Boolean.Input(name, default=False, tooltip=SAME)


def limits(high: float = -1.0, low: float = -1.0, prefix: str = "") -> tuple[io.Input, io.Input]:
    """Inputs for the noise levels between which it acts. One below 0 is no limit."""
    start, end = (f"{prefix}sigma_{name}" for name in ("start", "end"))
    return number(start, high, -1.0, 10000.0, 0.01), number(end, low, -1.0, 10000.0, 0.01)


SCALE = number("scale", 3.0, 0.0, 100.0, 0.1, round=0.01)
BLOCKS = (
    choice("unet_block", "middle", "input", "output"),
    io.Int.Input("unet_block_id", default=0, min=0, max=1000, tooltip=SAME),
)
RESCALE = (number("rescale", 0.0, 0.0, 1.0, 0.01), choice("rescale_mode", "full", "partial", "snf"))
BLOCK_LIST = io.String.Input("unet_block_list", default="", optional=True, tooltip=SAME)


def between(start: float, end: float) -> Interval | None:
    """end < σ ≤ start, where those are limits."""
    return None if start < 0 and end < 0 else Interval(end, math.inf if start < 0 else start)


# ------------------------------------------------------------------------------------------------------ layers of a UNet

STACKS = {"d": "input", "m": "middle", "u": "output"}
BLOCK = re.compile(r"([dmu])(\d{1,3})(?: ?- ?(\d{1,3}))?(?: ?\. ?(\d{1,3})(?: ?- ?(\d{1,3}))?)?", re.ASCII)


def blocks(model, unet_block: str, unet_block_id: int, unet_block_list: str = "") -> str:
    """The layers that these name, in our words. Raises ValueError for a network that is no UNet, and for layers that it has
    not."""
    layers = choose_layers(model, "all")
    if not {layer.stack for layer in layers} <= {*STACKS.values()}:
        raise ValueError("it is for UNets, such as SD 1.5 and SDXL. With this network it has no effect in its own pack")
    if unet_block_list:
        named = {layer for item in unet_block_list.split(",") for layer in _listed(item.strip(), layers)}
    else:
        named = {layer for layer in layers if (layer.stack, layer.index) == (unet_block, unet_block_id)}
    if not named:
        raise ValueError(
            f"there is no attention in the block {unet_block} {unet_block_id}. This model has {print_layers(layers)}"
        )
    return print_layers(layer for layer in layers if layer in named)


def _listed(item: str, layers: Sequence[Layer]) -> list[Layer]:
    """The layers of one item of a list: d, m or u, which of its blocks with attention, and which attention there."""
    match = BLOCK.fullmatch(item)
    if match is None:
        raise ValueError(f'unet_block_list: cannot read "{shown(item)}". Write a list such as d2.2-9, m0, u0.4')
    stack = [layer for layer in layers if layer.stack == STACKS[match[1]]]
    numbers = sorted({layer.index for layer in stack})
    found: list[Layer | None] = []
    for place in _range(match[2], match[3]):
        inside = [layer for layer in stack if place < len(numbers) and layer.index == numbers[place]]
        parts = _range(match[4], match[5]) if match[4] else range(max(1, len(inside)))
        found += [inside[number] if number < len(inside) else None for number in parts]
    there = [layer for layer in found if layer is not None]
    if not found or there != found:
        raise ValueError(f'unet_block_list: there is no "{shown(item)}". This model has {print_layers(layers)}')
    return there


def _range(first: str, last: str | None) -> range:
    return range(int(first), int(last or first) + 1)


# ------------------------------------------------------------------------------------------------------------- the nodes


def ours(model, node: str, interval: Interval | None = None, **values) -> Made:
    """What a node of ours makes with these values."""
    guidance = BY_NODE[node]
    own = {given.id for given in guidance.own_inputs}
    _, rule = guidance.make(model, **{k: v for k, v in full_values(guidance, values).items() if k in own})
    return Made(rule, interval, node, values)


def pag(
    model,
    scale,
    adaptive_scale,
    unet_block,
    unet_block_id,
    sigma_start,
    sigma_end,
    rescale,
    rescale_mode,
    unet_block_list="",
):
    """As PerturbedAttention."""
    layers = blocks(model, unet_block, unet_block_id, unet_block_list)
    made = ours(model, "PAG", between(sigma_start, sigma_end), scale=scale, layers=layers)
    return [changed(made, adaptive_scale, rescale, rescale_mode)]


def seg(
    model,
    scale,
    blur_sigma,
    unet_block,
    unet_block_id,
    sigma_start,
    sigma_end,
    rescale,
    rescale_mode,
    unet_block_list="",
):
    """As SmoothedEnergyGuidanceAdvanced."""
    layers = blocks(model, unet_block, unet_block_id, unet_block_list)
    made = blurred(model, between(sigma_start, sigma_end), scale, layers, blur_sigma, cut_by=-1)
    return [changed(made, 0.0, rescale, rescale_mode)]


def blurred(model, interval: Interval | None, scale: float, layers: str, blur_sigma: float, cut_by: int) -> Made:
    """SEG. One axis of the picture limits how far the authors' code blurs along both, which our node does not."""
    if blur_sigma < 0:
        return ours(model, "SEG", interval, scale=scale, layers=layers, blur_sigma=INFINITE)
    blur = BlurredQuery(select_layers(model, layers), blur_sigma, "reflect", cut_by)
    return Made(PerturbationGuidance(scale, blur), interval)


def changed(made: Made, adaptive: float, rescale: float, mode: str) -> Made:
    """The same guidance, weaker along sampling and with its contrast set back."""
    if adaptive == 0 and rescale == 0:
        return made
    rule = made.rule
    assert isinstance(rule, PerturbationGuidance)
    return Made(AdaptivePerturbation(rule.scale, rule.perturbation, adaptive, rescale, mode == "partial"), made.between)


def refuse_snf(values) -> str | None:
    """Of the three ways to rescale, the one that takes the larger of two guidances at each place."""
    if values["rescale_mode"] == "snf":
        return "rescale_mode is snf; here it must be full or partial"
    return "blur_sigma is 0, with which its own pack gives no picture" if values.get("blur_sigma") == 0 else None


def seg_in_place_of_cfg(model, scale, blur, inf_blur):
    """As SEGAttention of ComfyUI-SEGAttention."""
    if scale == 0 or blur == 0:
        return [Made(OwnCFG(1.0))]
    layers = blocks(model, "middle", 0)
    return [Made(OwnCFG(scale)), blurred(model, None, scale, layers, INFINITE if inf_blur else blur, cut_by=-2)]


def limiter(_model, sigma_start, sigma_end):
    """As Guidance Limiter."""
    interval = between(sigma_start, sigma_end)
    return [] if interval is None else [Made(NoiseLimit(interval.in_float32()))]


def rescaled(model, multiplier, sigma_start, sigma_end, **_):
    """As RescaleCFGPost."""
    return [ours(model, "Rescale", between(sigma_start, sigma_end), amount=multiplier)]


def renormed(model, renorm_cfg, sigma_start, sigma_end):
    """As RenormCFGPost."""
    if renorm_cfg == 0:
        return []
    return [ours(model, "NormCap", between(sigma_start, sigma_end), norm="whole", ratio=renorm_cfg)]


def tangential(model, multiplier, sigma_start, sigma_end):
    """As TCFGAdvanced."""
    return [ours(model, "Tangential", between(sigma_start, sigma_end), amount=multiplier)]


def projected(
    _model,
    momentum,
    adaptive_momentum,
    norm_threshold,
    eta,
    guidance_limiter,
    guidance_sigma_start,
    guidance_sigma_end,
    **_,
):
    """As APG_ImYourCFGNow."""
    rule = MomentumProjection(momentum, adaptive_momentum, norm_threshold, eta)
    interval = between(guidance_sigma_start, guidance_sigma_end) if guidance_limiter else None
    return [*([] if interval is None else [Made(NoiseLimit(interval.in_float32()))]), Made(rule, interval)]


PAM, PPM = "sd-perturbed-attention", "ComfyUI-ppm"
PEERS = (
    Peer(
        "PerturbedAttention",
        PAM,
        [SCALE, number("adaptive_scale", 0.0, 0.0, 1.0, 0.001, round=0.0001), *BLOCKS, *limits(), *RESCALE, BLOCK_LIST],
        pag,
        refuse_snf,
    ),
    Peer(
        "SmoothedEnergyGuidanceAdvanced",
        PAM,
        [SCALE, number("blur_sigma", -1.0, -1.0, 9999.0, 0.01, round=0.001), *BLOCKS, *limits(), *RESCALE, BLOCK_LIST],
        seg,
        refuse_snf,
    ),
    Peer(
        "SEGAttention",
        "ComfyUI-SEGAttention",
        [
            number("scale", 3.0, 0.0, 100.0, 0.01, round=0.01),
            number("blur", 10.0, 0.0, 999.0, 0.01, round=0.01),
            switch("inf_blur"),
        ],
        seg_in_place_of_cfg,
        note="Its scale takes the place of the sampler's cfg.",
    ),
    Peer("Guidance Limiter", PPM, limits(5.42, 0.28), limiter),
    Peer(
        "RescaleCFGPost",
        PPM,
        [number("multiplier", 0.7, 0.0, 1.0, 0.01, round=0.01), switch("alt_mode"), *limits()],
        rescaled,
        lambda values: "alt_mode is on, which this pack does not have" if values["alt_mode"] else None,
        pictures_only=True,
    ),
    Peer(
        "RenormCFGPost",
        PPM,
        [number("renorm_cfg", 1.0, 0.0, 100.0, 0.01), *limits()],
        renormed,
        lambda values: (
            f"renorm_cfg is {values['renorm_cfg']:g}; here it must be 0, or from 1 to 100"
            if 0 < values["renorm_cfg"] < 1
            else None
        ),
        pictures_only=True,
    ),
    Peer(
        "TCFGAdvanced",
        PPM,
        [number("multiplier", 0.5, 0.0, 1.0, 0.01, round=0.01), *limits()],
        tangential,
        replaces_cfg=True,
    ),
    Peer(
        "APG_ImYourCFGNow",
        "ComfyUI-APG_ImYourCFGNow",
        [
            number("momentum", 0.5, -1.5, 1.0, 0.01, round=0.001),
            number("adaptive_momentum", 0.18, 0.0, 1.0, 0.001, round=0.001),
            number("norm_threshold", 15.0, 0.0, 50.0, 0.05, round=0.01),
            number("eta", 1.0, 0.0, 1.0, 0.1, round=0.01),
            switch("guidance_limiter"),
            *limits(5.42, 0.28, "guidance_"),
            switch("print_data"),
        ],
        projected,
        replaces_cfg=True,
        pictures_only=True,
    ),
)
REPLACES_CFG = {peer.node for peer in PEERS if peer.replaces_cfg}
NODES = [stand_in(peer) for peer in PEERS]

"""MODEL, prompts and how to sample → what a guidance would do in each layer, and which layer is suggested."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui

from ..guiders.base import About
from ..guiders.host.distillation import Sampling, prompts_of
from ..guiders.host.layer_probe import decoded, probe_layers
from ..guiders.host.measured import keep
from ..guiders.layer_probe import Choice, Measures, choose
from ..patches import IdentityAttention
from ..patches.host import known_layers
from ..patches.layers import Layer, Unread, print_layers, with_auto
from . import schema
from .pictures.layer_probe import contact_sheet, draw_probe
from .terms import LAYERED, layers_for

AUTO = "auto"  # the row in which all layers of "auto" are perturbed together
MOST = 256  # rows: nobody could look at more


class LayerProbe(schema.Node):
    """MODEL, prompts, a guidance → which layers suit it on this model, by a measurement."""

    about = About(
        node_id="BeyondCFGLayerProbe",
        name="Layer Probe",
        title="Which Layers? (Layer Probe)",
        group="Tools",
        summary=(
            "Finds out which layers of your model suit PAG, SEG or another guidance, and at which scale. It samples once, "
            "and measures in each step what the guidance would do in every single layer. You get a picture, a suggestion "
            "with its reason, and what each layer guides towards."
        ),
        aliases=(
            "which layers", "best layers", "which scale", "layer search", "measure layers", "block analysis",
            "pag layers", "auto layers", "attention heads", "calibrate",
        ),
    )  # fmt: skip
    inputs = (
        io.Model.Input(
            "model",
            tooltip="The model to look into. It stays as it is. Guidance nodes on it act while it samples, as always.",
        ),
        io.Conditioning.Input(
            "positive",
            tooltip="Prompts like those that you use. Join several with Conditioning (Combine), or give a list: then each "
            "is sampled by itself.",
        ),
        io.Latent.Input(
            "latent",
            tooltip="The size of the pictures, such as Empty Latent Image. Its batch size is how many pictures run "
            "together.",
        ),
        io.Sampler.Input("sampler", tooltip="The sampler, from KSamplerSelect."),
        io.Sigmas.Input("sigmas", tooltip="The steps, from Basic Scheduler or another scheduler. 10 steps are enough."),
        io.Conditioning.Input(
            "negative",
            optional=True,
            tooltip="Your negative prompt. With it you also see the angle between each layer's direction and CFG's "
            "direction. Needed where cfg is not 1.",
        ),
        schema.cfg(1.0),
        io.Combo.Input(
            "guidance",
            options=list(LAYERED),
            default=IdentityAttention.about.name,
            tooltip="The guidance for which you look for layers. Each is taken with its default settings. Skip Layer needs "
            "a transformer, such as SD3.5, Flux or Wan.",
        ),
        schema.layers(
            "Which layers are measured, each by itself. all: every layer of the network.",
            "single.3:h0,h5 measures two heads of one layer, each by itself.",
            default="all",
        ),
        io.Float.Input(
            "scale",
            default=3.0,
            min=0.01,
            max=100.0,
            step=0.05,
            round=0.001,
            tooltip="The scale that you use when layers is auto. For each layer the node finds the scale that changes the "
            "picture as much. The output predictions uses these scales, so that all are equally strong.",
        ),
        io.Int.Input(
            "pictures",
            default=2,
            min=1,
            max=1000,
            tooltip="How many pictures are sampled, with a seed each. At least one for each prompt. With more you know "
            "better whether a layer is really ahead.",
        ),
        io.Int.Input("seed", default=0, min=0, max=2**64 - 1, tooltip="The seed of the first pictures."),
        io.Boolean.Input(
            "keep",
            default=True,
            tooltip="On: a suggested layer and all numbers are kept in a file of your user folder, for this very "
            "checkpoint. Guidance (easy) and the menu Values for a model then offer it first, and say that it was "
            "measured.",
        ),
        io.Vae.Input(
            "vae",
            optional=True,
            tooltip="With it, the picture also shows what each layer guides towards.",
        ),
    )
    output = io.Image.Output(
        "IMAGE", tooltip="The suggestion, and a line for each layer with all that was measured of it."
    )
    further = (
        io.String.Output(display_name="layers", tooltip="The suggested layers, for the input layers of the guidance."),
        io.Float.Output(display_name="scale", tooltip="The scale that goes with them. For ERG its weight."),
        io.String.Output(display_name="reason", tooltip="Why these layers, in sentences."),
        io.Latent.Output(
            display_name="predictions",
            tooltip="Of the first picture, half way through sampling: what the model predicts, and then what that becomes "
            "with the guidance in each layer, in the order of the lines. VAE Decode shows them.",
        ),
    )
    shows = True
    lists = ("positive",)

    @classmethod
    def build(
        cls, model, positive, latent, sampler, sigmas, cfg, guidance, layers, scale, pictures, seed, keep, negative=None,
        vae=None,
    ):  # fmt: skip
        method: Any = LAYERED[guidance]
        single, together = single_layers(model, method, layers), layers_of(model, method, AUTO)
        rows = [(str(layer), method(layers=(layer,))) for layer in single] + [(AUTO, method(layers=together))]
        sampling = Sampling(sampler, sigmas, cfg, negative, seed)
        prompts = prompts_of(positive)
        probed = probe_layers(model, prompts, latent["samples"], pictures, sampling, rows, cls.about.name)
        measures = probed.measures
        choice = choose(measures, len(single))
        scales = alike(measures, scale)
        chosen = print_layers(together if choice.at is None else (single[choice.at],))
        at = len(single) if choice.at is None else choice.at
        strength = round(scales[at] + method.about.off, 4)  # as the guidance's node has it
        reason = reason_of(
            measures, choice, guidance, f"{method.about.strength} {strength:g}", scale, print_layers(together)
        )
        picture = draw_probe(measures, at, scales, guidance, reason)
        if keep and choice.at is not None:
            file = keep_choice(model, method, measures, chosen, strength, reason)
            reason = [*reason, f"Kept for this checkpoint in {file}."]
        predictions = probed.towards(scales)
        if vae is not None:
            names = [f"{name}, scale {at:.3g}" for name, at in zip(measures.names, scales, strict=True)]
            picture = contact_sheet(picture, decoded(vae, predictions), ["as it is", *names])
        text = "\n".join(reason)
        shows = {**ui.PreviewImage(picture, cls=cls).as_dict(), **ui.PreviewText(text).as_dict()}
        return io.NodeOutput(picture, chosen, strength, text, {"samples": predictions}, ui=shows)


def layers_of(model, method: Any, text: str) -> tuple[Layer, ...]:
    """The layers of MODEL that `text` names for a perturbation. Raises ValueError where it names none."""
    layers = layers_for(model, method, text)
    if any(isinstance(layer, Unread) for layer in layers):  # of a network that probes have found
        text = with_auto(text, method.about.auto) if method.about.auto else text
        layers = known_layers(model, text, any(layer.skip for layer in layers if isinstance(layer, Unread)))
    return layers


def single_layers(model, method: Any, text: str) -> list[Layer]:
    """The same, each by itself, and each head that `text` names. Raises ValueError for too many."""
    layers = layers_of(model, method, text)
    found = [part for layer in layers for part in (heads_of(layer) if layer.heads else [layer])]
    if len(found) > MOST:
        raise ValueError(f"layers names {len(found)} layers and heads; at most {MOST} can be measured. Write fewer")
    return found


def heads_of(layer: Layer) -> list[Layer]:
    """A layer's chosen heads, each by itself."""
    return [Layer(layer.stack, layer.index, layer.part, layer.parts, (head,)) for head in layer.heads]


def alike(measures: Measures, scale: float) -> list[float]:
    """For each row the scale with which it moves the picture as far as `scale` does in the last row, that of "auto"."""
    moved = measures.moved.mean(1).tolist()
    wanted = scale * moved[-1]
    usual = wanted > 0 and wanted < float("inf")
    return [min(100.0, float(f"{wanted / one:.3g}")) if usual and one > 0 else scale for one in moved]


def reason_of(measures: Measures, choice: Choice, guidance: str, strength: str, scale: float, auto: str) -> list[str]:
    """What is suggested, in sentences."""
    row = len(measures.names) - 1
    if choice.best is None:
        return [
            f"{guidance} changes nothing in these layers, or gives values that are no numbers. Stay at auto ({auto})."
        ]
    best, of_auto = (measures.line(at) for at in (choice.best, row))
    name, many = measures.names[choice.best], measures.moved.shape[1]
    ahead = f"{best['ahead']:.2f} against {of_auto['ahead']:.2f} of auto ({auto})"
    if choice.at is None:
        why = f"No layer is clearly further ahead. The furthest is {name}, by {ahead}."
        if best["ahead"] <= 0:
            why = f"No layer guides to where the model itself goes in its next step. {name} comes nearest: {ahead}."
        return [f"Stay at auto ({auto}).", why, f"That is of {_pictures(many)}."]
    found = [
        f"Put {guidance} into {name}, at {strength}.",
        f"Of the {len(choice.acting)} layers that act, it guides most to where the model itself goes in its next step: "
        f"{ahead}. 1 is straight there, 0 is sideways.",
        f"So it moves the picture as far as scale {scale:g} does in auto.",
    ]
    if many == 1:
        found.append("That is of one picture, which may be chance: take more pictures.")
    elif choice.margin:
        found.append(f"That is of {_pictures(many)}; auto is {min(choice.margin, 99):.1f} standard errors behind.")
    return found


def _pictures(count: int) -> str:
    return f"{count} picture{'s' * (count != 1)}"


def keep_choice(model, method: Any, measures: Measures, chosen: str, strength: float, reason: Sequence[str]) -> Path:
    """Keep what is suggested for MODEL's checkpoint, with the numbers that it is made of; the file."""
    about: About = method.about
    table = [{"layer": name, **measures.line(at)} for at, name in enumerate(measures.names)]
    source = f"Layer Probe, {time.strftime('%Y-%m-%d')}, {_pictures(measures.moved.shape[1])}"
    values = {"layers": chosen, about.strength: strength}
    return keep(model, about.node_id.removeprefix("BeyondCFG"), values, source, reason=[*reason], table=table)


NODES = [LayerProbe]

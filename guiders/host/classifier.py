"""Classifiers of clean pictures made of the host's own parts: VAE decoder, CLIP vision, and a head on its embedding.
And classifiers of noisy latents, each a network in a file (guiders/noisy_network.py).

A head is a linear layer: log p(y | picture) = log_softmax(weight e + bias)[y]. Of CLIP's text encoder: weight are the
labels' directions times CLIP's own temperature, e the embedding's direction. Of a file, a .safetensors in the host's
model folder `classifiers`, e is the embedding itself (CLIP_VISION_OUTPUT's image_embeds, crop "none"):

    weight   [classes, features]
    bias     [classes]
    labels   optional, in the file's metadata: a JSON list of the classes' names

Where the host loads models in inference mode their weights have no place in a backward pass, so each run holds copies
of them, made before the diffusion model is loaded, which then finds less room, and freed with the run. A network of
noisy latents is small: its copy is made where the latents are, when the first ones come.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ...patches.texts import shown
from ..base import Step
from ..classifier import LogProbability
from ..noisy_network import NoisyNetwork, depth
from .trace import warn

FOLDER = "classifiers"
TEMPERATURE = 100.0  # CLIP's learned one, the same in all its sizes; the host does not load it
SUFFIX = ".safetensors"
MOST_LABELS = 1000  # each goes through the text encoder
ENCODERS = ("network.encoder.", "network.taesd_encoder.", "network.quant_conv.")  # what decoding has no use for


@dataclass(frozen=True, eq=False)
class Head:
    weight: Tensor  # [classes, features]
    bias: Tensor  # [classes]
    wanted: int  # the class y
    of_direction: bool = False  # whether it is a layer on e / |e|

    def log_probability(self, embedding: Tensor) -> Tensor:  # [batch, features] → [batch]
        if self.of_direction:
            embedding = torch.nn.functional.normalize(embedding, dim=-1)
        return torch.nn.functional.linear(embedding, self.weight, self.bias).log_softmax(-1)[:, self.wanted]

    def to(self, device) -> Head:
        """A copy there, in float32."""
        weight, bias = (tensor.to(device, torch.float32, copy=True) for tensor in (self.weight, self.bias))
        return Head(weight, bias, self.wanted, self.of_direction)


class PictureClassifier:
    """log p(y | latent) of clean latents of MODEL. Raises ValueError where the parts do not fit."""

    def __init__(self, model, vae, clip_vision, head: Head):
        self.format, self.vae, self.clip_vision, self.head = (
            model.get_model_object("latent_format"),
            vae,
            clip_vision,
            head,
        )
        if vae.first_stage_model is None:
            raise ValueError("the VAE is empty: its checkpoint has none. Load one from a file of its own")
        if vae.latent_dim != 2 or self.format.latent_dimensions != 2:
            raise ValueError("works on pictures; this VAE or model is of another kind, such as video or sound")
        if vae.latent_channels != self.format.latent_channels:
            raise ValueError(
                f"the VAE has {vae.latent_channels} channels and the model's latents have "
                f"{self.format.latent_channels}. Use a VAE of the model's family"
            )

    def begin(self) -> LogProbability:
        vae, vision = self.vae, self.clip_vision
        with torch.inference_mode(False):
            decode = differentiable(vae.first_stage_model, "decode", vae.device)
            embed = differentiable(vision.model, "forward", vision.load_device)
            head, form = self.head.to(vision.load_device), copy.copy(self.format)
            for name, value in vars(form).items():
                if isinstance(value, Tensor):
                    setattr(form, name, value.clone())

        @checked
        def log_probability(step: Step) -> Tensor:
            latent = form.process_out(step.x)
            pixels = vae.process_output(decode((latent.to(vae.device, vae.vae_dtype),)).float())  # [batch, 3, h, w]
            embedding = embed((preprocess(pixels.to(vision.load_device), vision),))[2]  # [batch, features]
            return head.log_probability(embedding.float()).to(step.x)

        return log_probability


class LatentClassifier:
    """log p(y | x; σ) of noisy latents, by the network in a file of the folder `classifiers`; `label` is as of a head.
    Raises ValueError where the file does not fit MODEL."""

    def __init__(self, model, name: str, label: str):
        form = model.get_model_object("latent_format")
        if form.latent_dimensions != 2:
            raise ValueError("works on pictures; this model is of another kind, such as video or sound")
        self.network, self.wanted = load_network(form.latent_channels, name, label)

    def begin(self) -> LogProbability:
        copy_to = functools.cache(self.network.to)

        @checked
        def log_probability(step: Step) -> Tensor:
            network = copy_to(step.x.device, step.x.dtype)
            return network(step.x, step.noise, step.signal)[:, self.wanted]

        return log_probability


def checked(log_probability: LogProbability) -> LogProbability:
    """Refuses what is no picture's latent, and says in the log where the first numbers of a run are not finite."""
    first = True

    @functools.wraps(log_probability)
    def of(step: Step) -> Tensor:
        nonlocal first
        if step.x.ndim != 4:
            raise ValueError(f"Classifier Guidance needs the latents of pictures, not of shape {[*step.x.shape]}")
        found = log_probability(step)
        if first and not found.isfinite().all():
            warn("Classifier Guidance has no effect where its classifier gives no finite number, as now")
        first = False
        return found

    return of


def preprocess(picture: Tensor, vision) -> Tensor:
    """[batch, 3, h, w] from 0 to 1 → what CLIP sees: the whole picture. The host's own also rounds to 8 bits, which has
    no gradient."""
    size = (vision.image_size, vision.image_size)
    if picture.shape[-2:] != size:
        picture = torch.nn.functional.interpolate(picture, size=size, mode="bicubic", antialias=True)
    mean, std = (picture.new_tensor(values).view(3, 1, 1) for values in (vision.image_mean, vision.image_std))
    return (picture - mean) / std


def differentiable(network: torch.nn.Module, method: str, device: torch.device) -> Callable[..., Tensor]:
    """A method of a network of the host's, with weights that autograd takes: copies of those it does not."""
    called = _Called(network, method)
    own = {**dict(called.named_parameters()), **dict(called.named_buffers())}
    own = {name: tensor.detach() for name, tensor in own.items() if not name.startswith(ENCODERS)}
    copied = {name for name, tensor in own.items() if tensor.is_inference() or tensor.device != device}
    if not comfy.model_management.is_device_cpu(device):
        comfy.model_management.free_memory(sum(own[name].nbytes for name in copied), device)
    own |= {name: own[name].to(device, copy=True) for name in copied}
    return functools.partial(torch.func.functional_call, called, own)


class _Called(torch.nn.Module):
    """A network whose forward is a method of it."""

    def __init__(self, network: torch.nn.Module, method: str):
        super().__init__()
        self.network, self._method = network, method

    def forward(self, *args, **kwargs):
        return getattr(self.network, self._method)(*args, **kwargs)


# --------------------------------------------------------------------------------------------------------------- heads


def features_of(clip_vision) -> int:
    """The width of its picture embedding. Raises ValueError where it is none of CLIP's."""
    kind = getattr(clip_vision, "model_type", "clip_vision_model")
    if kind != "clip_vision_model":
        raise ValueError(f"clip_vision is a {kind}; use one of CLIP, such as ViT-L/14")
    config = clip_vision.config
    return config.get("projection_dim", config["hidden_size"])


def zero_shot(clip_vision, clip, label: str, others: str) -> Head:
    """The head of a label against `others`, one per line, from CLIP's text encoder."""
    label = label.strip()
    labels = [label, *dict.fromkeys(line for line in map(str.strip, others.splitlines()) if line not in ("", label))]
    if not label:
        raise ValueError("label is empty; write what the picture should be taken for, such as a photo of a cat")
    if len(labels) == 1:
        raise ValueError("other_labels is empty; write at least one that label is told apart from, such as a photo")
    if len(labels) > MOST_LABELS:
        raise ValueError(f"other_labels has {len(labels) - 1:,} lines; at most {MOST_LABELS - 1:,} are told apart")
    width = features_of(clip_vision)
    if "projection_dim" not in clip_vision.config:
        raise ValueError("clip_vision has no projection to where words and pictures meet. Use another, or a head")
    name, encoder = _text_encoder(clip, width)
    directions = torch.cat([_embed_text(clip, name, encoder, text) for text in labels])
    weight = TEMPERATURE * torch.nn.functional.normalize(directions.float(), dim=-1)
    return Head(weight, torch.zeros(len(labels)), wanted=0, of_direction=True)


def _text_encoder(clip, width: int):
    """The one of CLIP's text encoders that has the picture embedding's width, and a projection that was trained."""
    encoders = {
        name: encoder
        for name, encoder in clip.cond_stage_model.named_children()
        if name.startswith("clip_") and hasattr(getattr(encoder, "transformer", None), "text_projection")
    }
    widths = {name: encoder.transformer.text_projection.weight.shape[0] for name, encoder in encoders.items()}
    name = next((name for name in encoders if widths[name] == width), None)
    if name is None:
        has = ", ".join(f"{name} of {widths[name]}" for name in widths) or "no text encoder of CLIP's"
        raise ValueError(
            f"clip has {has}, and clip_vision gives {width} features; the two must be halves of one CLIP. "
            "Load the text encoder that clip_vision was trained with, or use a head"
        )
    if not _is_trained(clip, name, encoders[name].transformer.text_projection.weight):
        raise ValueError(
            f"the {name} of this clip has no trained projection (the text encoders of SD 1.5 and SDXL checkpoints have "
            "none of CLIP-L, and the usual clip_l.safetensors has none either): its words do not lie where pictures do. "
            "Load a whole CLIP, such as model.safetensors of openai/clip-vit-large-patch14, with CLIPLoader, or use a head"
        )
    return name, encoders[name]


def _is_trained(clip, name: str, projection: Tensor) -> bool:
    """Where a file lacks the projection the host leaves zeros, or whatever the memory held."""
    source = getattr(clip.patcher, "cached_patcher_init", None)
    of_checkpoint = source is not None and "checkpoint" in source[0].__name__
    without = ("comfy.sd1_clip", "comfy.sdxl_clip")
    if of_checkpoint and name == "clip_l" and type(clip.cond_stage_model).__module__ in without:
        return False
    projection = projection.detach().float().cpu()
    norms = projection.norm(dim=1)  # of trained ones from 0.3 to 2
    is_one = torch.equal(projection, torch.eye(*projection.shape))
    return bool(projection.isfinite().all() and ((norms > 0.02) & (norms < 50)).all()) and not is_one


def _embed_text(clip, name: str, encoder, text: str) -> Tensor:
    """[1, features]; of the first 77 tokens."""
    try:
        tokens = clip.tokenize(text)
    except RecursionError:
        raise ValueError(f'the label "{shown(text)}" has too many brackets within brackets') from None
    clip.load_model()
    clip.cond_stage_model.reset_clip_options()
    encoder.set_clip_options({"projected_pooled": True, "execution_device": clip.patcher.load_device})
    try:
        return encoder.encode_token_weights(tokens[name.removeprefix("clip_")])[1].cpu()
    finally:
        clip.cond_stage_model.reset_clip_options()


# --------------------------------------------------------------------------------------------------------------- files


def load_head(clip_vision, name: str, label: str) -> Head:
    """The head in a file of the folder `classifiers`; `label` is one of its labels, or a class's number from 0."""
    tensors, metadata = _load(name)
    width = features_of(clip_vision)
    return _head(name, tensors, metadata, label, width, f", since clip_vision gives {width} features")


def load_network(channels: int, name: str, label: str) -> tuple[NoisyNetwork, int]:
    """(the network in a file, the class y), for latents of so many channels."""
    tensors, metadata = _load(name)
    why, features, known = f", since the model's latents have {channels} channels", "F", []
    for i in range(max(1, depth(tensors))):
        out = len(_tensor(name, tensors, f"conv.{i}.weight", ("out", channels, 3, 3), why))
        _tensor(name, tensors, f"conv.{i}.bias", (out,))
        features = _tensor(name, tensors, f"film.{i}.weight", (2 * out, features), ", gains before shifts").shape[1]
        _tensor(name, tensors, f"film.{i}.bias", (2 * out,))
        channels, why = out, f", since conv.{i} gives {out} channels"
        known += [f"{layer}.{i}.{part}" for layer in ("conv", "film") for part in ("weight", "bias")]
    if features % 2:
        raise ValueError(f'{name}: "film.0.weight" takes {features} features; it must be an even number')
    head = _head(name, tensors, metadata, label, channels, why, prefix="head.")
    unknown = sorted(tensors.keys() - {*known, "head.weight", "head.bias"})
    if unknown:
        raise ValueError(
            f"{name}: has {shown(', '.join(unknown), 1000)}, which the network of guiders/noisy_network.py has not"
        )
    return NoisyNetwork(tensors), head.wanted


def _load(name: str) -> tuple[dict[str, Tensor], dict | None]:
    """(tensors, metadata) of a file in the folder `classifiers`."""
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None or not name.endswith(SUFFIX):
        folders = map(Path, folder_paths.get_folder_paths(FOLDER))  # whose files the host does not list
        names = sorted(str(path.relative_to(folder)) for folder in folders for path in folder.rglob(f"*{SUFFIX}"))
        has = shown(", ".join(names), 1000) or f"no {SUFFIX}"
        raise ValueError(f'there is no file "{shown(name)}". The folder {FOLDER} has: {has}')
    try:
        return comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    except Exception as error:  # each way of being broken has its own
        raise ValueError(f"{name} cannot be read: {error}") from None


def _head(name: str, tensors: dict, metadata: dict | None, label: str, width: int, why: str, prefix: str = "") -> Head:
    """The linear layer on `width` features, and the class that `label` is of it."""
    weight = _tensor(name, tensors, f"{prefix}weight", ("classes", width), why)
    classes = len(weight)
    if classes < 2:
        raise ValueError(f'{name}: "{prefix}weight" is {[*weight.shape]}; it must have two classes at least')
    bias = _tensor(name, tensors, f"{prefix}bias", (classes,), ", one for each class")
    return Head(weight, bias, _class(name, label.strip(), _labels(name, metadata, classes), classes))


def _tensor(name: str, tensors: dict, key: str, shape: tuple[int | str, ...], why: str = "") -> Tensor:
    """A tensor of a file, of a shape in which a text stands for any size."""
    wanted = f"[{', '.join(map(str, shape))}]{why}"
    if key not in tensors:
        raise ValueError(
            f'{name}: has no "{key}", which must be {wanted}; it has {shown(", ".join(tensors), 1000) or "nothing"}'
        )
    tensor = tensors[key]
    sizes = zip(shape, tensor.shape, strict=False)
    if tensor.ndim != len(shape) or any(isinstance(size, int) and size != found for size, found in sizes):
        raise ValueError(f'{name}: "{key}" is {[*tensor.shape]}; it must be {wanted}')
    if not tensor.is_floating_point() or not tensor.numel() or not tensor.float().isfinite().all():
        raise ValueError(f'{name}: "{key}" is {tensor.dtype} and must hold finite floating-point numbers')
    return tensor


def _labels(name: str, metadata: dict | None, classes: int) -> list[str]:
    if "labels" not in (metadata or {}):
        return []
    try:
        labels = json.loads(metadata["labels"])
    except (ValueError, RecursionError):
        labels = None
    if not isinstance(labels, list) or len(labels) != classes or not all(isinstance(label, str) for label in labels):
        raise ValueError(f'{name}: "labels" in its metadata must be a JSON list of {classes} texts, one for each class')
    return labels


def _class(name: str, label: str, labels: list[str], classes: int) -> int:
    if label in labels:
        return labels.index(label)
    if label.isdecimal() and len(label) < 20 and int(label) < classes:
        return int(label)
    named = f", or one of: {shown(', '.join(labels), 1000)}" if labels else ""
    raise ValueError(f'label is "{shown(label)}"; for {name} it must be a number from 0 to {classes - 1}{named}')


def picture_classifier(model, vae, clip_vision, label: str, other_labels: str, head: str = "", clip=None):
    """Of a head's file where one is named, else of words."""
    if head.strip():
        return PictureClassifier(model, vae, clip_vision, load_head(clip_vision, head.strip(), label))
    if clip is None:
        raise ValueError("needs a clip, to understand the labels, or the name of a head")
    return PictureClassifier(model, vae, clip_vision, zero_shot(clip_vision, clip, label, other_labels))

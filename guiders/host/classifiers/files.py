"""Classifiers in files: a .safetensors in the host's model folder `classifiers`.

A head on CLIP_VISION_OUTPUT's image_embeds, crop "none":

    weight   [classes, features]
    bias     [classes]
    labels   optional, in the file's metadata: a JSON list of the classes' names

A network of noisy latents: see guiders/noisy_network.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import comfy.utils
import folder_paths
from torch import Tensor

from ....patches.texts import shown
from ...noisy_network import NoisyNetwork, depth
from .heads import Head, features_of

FOLDER = "classifiers"
SUFFIX = ".safetensors"


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


def path_of(name: str) -> str:
    """Where a file of the folder `classifiers` is. Raises ValueError, with those that there are, where it is not."""
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None or not name.endswith(SUFFIX):
        folders = map(Path, folder_paths.get_folder_paths(FOLDER))  # whose files the host does not list
        names = sorted(str(path.relative_to(folder)) for folder in folders for path in folder.rglob(f"*{SUFFIX}"))
        has = shown(", ".join(names), 1000) or f"no {SUFFIX}"
        raise ValueError(f'there is no file "{shown(name)}". The folder {FOLDER} has: {has}')
    return path


def _load(name: str) -> tuple[dict[str, Tensor], dict | None]:
    """(tensors, metadata) of a file in the folder `classifiers`."""
    path = path_of(name)
    try:
        tensors, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    except Exception as error:  # each way of being broken has its own
        raise ValueError(f"{name} cannot be read: {error}") from None
    return tensors, metadata


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
    if metadata is None or "labels" not in metadata:
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

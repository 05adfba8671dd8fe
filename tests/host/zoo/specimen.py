"""What a specimen is: a network, what it is called with, and what a reader of the host's code knows of its attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import comfy.model_base
import comfy.ops
import comfy.supported_models
import torch
from pack.tests.host import networks


@dataclass
class Specimen:
    name: str
    row: str  # the name of its architecture
    build: Callable  # () → ModelPatcher
    latent: tuple[int, ...]  # [channels, *spatial] of one sample
    conds: dict  # input of BaseModel.apply_model → its shape for one row; a list of them for a list; else the value
    calls: list[
        str
    ]  # the attention calls of one forward, in order: the layer's name if it is its self-attention, else ""
    image: slice | list[int]  # the picture's tokens among those of that self-attention
    grid: tuple[int, ...] | None  # of the picture's tokens
    grids: dict[str, tuple[int, ...]] = field(default_factory=dict)  # layer → its grid, where layers differ
    images: dict[int, slice] = field(default_factory=dict)  # number of a call → its image, where a layer has several
    blocks: dict[str, str] = field(default_factory=dict)  # layer → path of its block in the network; none: no skipping
    since: str = ""  # the host's class that has to be there, as "module.Class" under comfy
    prefix: bool = False  # whether keys of other tokens come before the queries' own
    time: bool = True  # whether its time embedding can be perturbed
    time_0_first: bool = False  # whether embeddings of the references' time 0 come before those of the sampler's

    def __str__(self) -> str:
        return self.name

    @property
    def layers(self) -> list[str]:
        return list(dict.fromkeys(call for call in self.calls if call))

    def grid_of(self, layer: str) -> tuple[int, ...] | None:
        return self.grids.get(layer, self.grid)

    def image_of(self, layer: str, call: int | None = None) -> slice:
        image = slice(0, math.prod(self.grids[layer])) if layer in self.grids else self.image
        return self.images.get(call, image)

    def inputs(self, seeds: list[int]) -> tuple[torch.Tensor, dict]:
        """(x, conditionings) with one row for each seed; equal seeds, equal conditionings and x."""

        def rows(shape, salt):
            return torch.stack(
                [torch.randn(shape, generator=torch.Generator().manual_seed(100 * seed + salt)) for seed in seeds]
            )

        def made(value, salt):
            if isinstance(value, tuple):
                return rows(value, salt)
            if isinstance(value, list):
                return [rows(shape, salt + 7 * at) for at, shape in enumerate(value, 1)]
            return value(len(seeds)) if callable(value) else value

        return rows(self.latent, 0), {key: made(value, at) for at, (key, value) in enumerate(self.conds.items(), 1)}


def model(model_class: str, config_class: str, settings: dict, seed: int = 0, **options):
    """A small model of the host's classes, by their names in comfy.model_base and comfy.supported_models."""
    config = getattr(comfy.supported_models, config_class)(settings)
    return networks.patcher(getattr(comfy.model_base, model_class), config, seed, **options)


def repeated(count: int, *calls: str) -> list[str]:
    """The calls of `count` blocks in series; "{}" is the block's number."""
    return [call.format(at) for at in range(count) for call in calls]


def paths(count: int, layer: str, path: str) -> dict[str, str]:
    """layer.{0..count} → path.{0..count}"""
    return {f"{layer}.{at}": f"{path}.{at}" for at in range(count)}


def has(since: str) -> bool:
    """Whether this host has a class or a function."""
    module, _, name = since.rpartition(".")
    try:
        return hasattr(__import__(f"comfy.{module}", fromlist=[name]), name)
    except ImportError:
        return False

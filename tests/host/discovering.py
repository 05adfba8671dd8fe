"""Invented networks as a user runs them, with rows written by hand where a test wants some."""

from __future__ import annotations

import comfy.model_management
import comfy.sample
import torch
from pack.patches import (
    architectures,
)
from pack.patches.architectures import Architecture, Stack, patched
from pack.patches.host import probe
from pack.patches.layout import first, last
from pack.tests.host import invented
from pack.tests.host.harness import TERM_NODES, noise_like, prompts


def written(network: str, auto: str, *stacks: Stack) -> Architecture:
    """The row that somebody would have written."""
    at = {"auto": auto, "auto_skip": auto, "time": "time_embedder"}
    return Architecture(network, f"invented.{network}", stacks, **at, grid=lambda _, spatial: patched(2, spatial))


def stack(name: str, image, *streams: str) -> Stack:
    return Stack(name, name, "attn", image=image, streams=streams, prefix_sharing=False)


ROWS = {
    "text last": written("TextLast", "layers.2", stack("layers", first, "x")),
    "references": written("References", "joint_blocks.1", stack("joint_blocks", last, "text", "image")),
    "two stacks": written(
        "TwoStacks", "second_blocks.1", stack("first_blocks", first, "x"), stack("second_blocks", first, "x")
    ),
}


def with_row(name: str, monkeypatch) -> None:
    rows = (*architectures.ARCHITECTURES, ROWS[name])
    monkeypatch.setattr(architectures, "ARCHITECTURES", rows)


def values_of(node: str) -> dict:
    """The defaults of a node's inputs, acting everywhere."""
    defaults = {
        given.id: given.default for given in TERM_NODES[node].inputs if getattr(given, "default", None) is not None
    }
    return {**defaults, "start_percent": 0.0, "end_percent": 1.0}


PAG, TSG = values_of("BeyondCFGPAG"), values_of("BeyondCFGTSG")


def guided(name: str, node: str, **values) -> torch.Tensor:
    """A picture of KSampler's by an invented network, with the term of a node, and cfg 1."""
    known = values_of(node)
    values = {key: value for key, value in values.items() if key in known}
    model = TERM_NODES[node].execute(model=invented.model(name), **{**known, **values})[0]
    return sample_of(model, name)


def sample_of(model, name: str) -> torch.Tensor:
    latent = torch.zeros(invented.LATENT[name])
    noise = noise_like(latent)
    conds = prompts("unet")
    return comfy.sample.sample(model, noise, 3, 1.0, "euler", "normal", *conds, latent, disable_pbar=True, seed=4)


def count_probes(monkeypatch) -> list:
    made, call = [], probe.Prober.__call__

    def counted(self, change):
        made.append(change)
        return call(self, change)

    monkeypatch.setattr(probe.Prober, "__call__", counted)
    return made

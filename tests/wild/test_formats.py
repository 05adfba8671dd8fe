"""Weights in formats of eight bits, from files and by the loader's own choice: on a running host."""

import json
import uuid
from dataclasses import replace

import pytest
import torch
from pack.tests.wild.graphs import DEMO, SD3, SD15
from pack.tests.wild.guidances import faults
from pack.tools.places import MODELS

PREFIX = "model.diffusion_model."


def cast(dtype: torch.dtype):
    """Every weight of the diffusion model, as such files have it."""
    return lambda tensors: {
        key: tensor.to(dtype) if key.startswith(PREFIX) and tensor.is_floating_point() else tensor
        for key, tensor in tensors.items()
    }


def scaled(tensors: dict) -> dict:
    """The matrices of the diffusion model in eight bits with a scale for each, in the host's own format. Not those of
    nothing but zeros, of which the host makes NaN when any patch is put on them."""
    out = dict(tensors)
    for key, tensor in tensors.items():
        if key.startswith(PREFIX) and key.endswith(".weight") and tensor.ndim == 2 and tensor.any():
            layer = key.removesuffix("weight")
            scale = tensor.float().abs().max().clamp(min=1e-12) / torch.finfo(torch.float8_e4m3fn).max
            out[key] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            out[f"{layer}weight_scale"] = scale
            text = json.dumps({"format": "float8_e4m3fn"}).encode()
            out[f"{layer}comfy_quant"] = torch.tensor([*text], dtype=torch.uint8)
    return out


FORMATS = {"e4m3fn": cast(torch.float8_e4m3fn), "e5m2": cast(torch.float8_e5m2), "scaled e4m3fn": scaled}


@pytest.fixture
def in_format(server):
    """family, format → the family with its checkpoint in that format, in the models' folder until the test ends."""
    made = []

    def make(family, name: str):
        kind, key, file = family.model
        folder = MODELS / "checkpoints"
        tensors = torch.load(folder / file, weights_only=True)
        made.append(folder / f"test_{uuid.uuid4().hex}.ckpt")
        torch.save(FORMATS[name](tensors.get("state_dict", tensors)), made[-1])
        return replace(family, model=(kind, key, made[-1].name))

    yield make
    for place in made:
        place.unlink()


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize("weight_dtype", ["fp8_e4m3fn", slow("fp8_e4m3fn_fast"), slow("fp8_e5m2")])
def test_guidances_act_on_a_model_that_is_loaded_in_eight_bits(weight_dtype, server):
    assert faults(server, server.ask("/object_info"), replace(DEMO, weight_dtype=weight_dtype)) == []


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("scaled e4m3fn", SD3),
        slow("scaled e4m3fn", SD15),
        *(slow(name, family) for name in ("e4m3fn", "e5m2") for family in (SD15, SD3)),
    ],
    ids=str,
)
def test_guidances_act_on_a_file_of_eight_bits(name, family, server, in_format):
    assert faults(server, server.ask("/object_info"), in_format(family, name)) == []

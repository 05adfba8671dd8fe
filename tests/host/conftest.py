"""What several files of tests on the real host share."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import folder_paths
import pytest
import torch
from pack.guiders.host.classifiers import FOLDER
from pack.tests.host import classifiers
from pack.tests.host.harness import SHARED
from pack.tests.host.zoo import SPECIMENS
from pack.tests.host.zoo.specimen import has
from pack.tools import tiny_models


@pytest.fixture(params=SPECIMENS, ids=str)
def specimen(request):
    missing = request.param.since and not has(request.param.since)
    if missing:
        pytest.skip(f"this host has no {request.param.since}")
    return request.param


@pytest.fixture(autouse=True)
def _networks_are_left_as_they_were():
    yield
    SHARED.check()


@pytest.fixture(autouse=True)
def _no_model_stays_loaded():
    """A test drops its MODELs, but networks are shared. The host would take those for a leak: it collects all garbage at
    each later load, which takes a second where thousands of tests have run."""
    yield
    comfy.model_management.unload_all_models()
    comfy.model_management.current_loaded_models.clear()  # those whose MODEL is gone


@pytest.fixture
def model(specimen):
    """The specimen's, of one network for all tests."""
    torch.manual_seed(0)
    return SHARED.get(specimen.name, specimen.build)


@pytest.fixture
def classifier_folder(tmp_path, monkeypatch) -> Path:
    """The host's model folder `classifiers`, with a head in it."""
    places = folder_paths.folder_names_and_paths | {FOLDER: ([str(tmp_path)], {""})}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", places)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    classifiers.save(tmp_path / "pets.safetensors")
    return tmp_path


@pytest.fixture(scope="module")
def sd3_weights() -> list[dict[str, torch.Tensor]]:
    """Three tiny SD3 networks, as the diffusion models of half precision that checkpoints hold."""
    return [tiny_models.half(tiny_models.sd3(seed, side=16)) for seed in range(3)]

"""Two different checkpoint files in one run, as people load them: over HTTP, from the models folder."""

import re
import uuid
from io import BytesIO

import pytest
import torch
from pack.tools import examples, workflows
from pack.tools.places import MODELS
from PIL import Image, ImageChops


@pytest.fixture(scope="module")
def weak_file(server):
    """The demo checkpoint with a network that is worse: an eighth of noise on each of its weights."""
    folder, name = MODELS / "checkpoints", f"test_weak_{uuid.uuid4().hex}.ckpt"
    tensors = torch.load(folder / "tiny_sd15.ckpt", weights_only=True)
    tensors = tensors.get("state_dict", tensors)
    generator = torch.Generator().manual_seed(0)
    for key, tensor in tensors.items():
        if key.startswith("model.diffusion_model.") and tensor.ndim > 1:
            noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std(correction=0)
            tensors[key] = (tensor.float() + noise / 8).to(tensor.dtype)
    try:
        torch.save({"state_dict": tensors}, folder / name)
        yield name
    finally:
        (folder / name).unlink(missing_ok=True)


@pytest.fixture
def picture(server, weak_file):
    def run(weight: float, weak: str = weak_file, **guidance):
        workflow = workflows.load(examples.api_of("autoguidance"))
        workflow = {key: node for key, node in workflow.items() if node["class_type"] != "BeyondCFGGrid"}
        (guider,) = (node for node in workflow.values() if node["class_type"] == "BeyondCFGAutoguidanceGuider")
        guider["inputs"].update(weight=weight, **guidance)
        files = {guider["inputs"]["model"][0]: "tiny_sd15.ckpt", guider["inputs"]["weak_model"][0]: weak}
        for key, node in workflow.items():
            if node["class_type"] == "CheckpointLoaderSimple":
                node["inputs"]["ckpt_name"] = files[key]
            if node["class_type"] == "EmptyLatentImage":
                node["inputs"].update(width=64, height=64)
            if node["class_type"] == "BasicScheduler":
                node["inputs"]["steps"] = 4
        content = server.run(workflow)[-1][1]
        return Image.open(BytesIO(content)).convert("RGB")

    return run


def differ(one, other) -> bool:
    return ImageChops.difference(one, other).getbbox() is not None


def free(server) -> None:
    """Let the host forget all models and outputs: it does so after the next prompt, or before."""
    server.get("/free", {"unload_models": True, "free_memory": True})
    nothing = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    server.run(nothing)


def test_autoguidance_with_another_file_acts_and_at_weight_one_is_the_main_model_alone(picture, weak_file):
    alone, guided = picture(1.0), picture(3.0)
    assert differ(guided, alone) and not differ(picture(1.0, weak="tiny_sd15.ckpt"), alone)
    assert differ(picture(0.0), alone)  # the weak model's own
    assert not differ(picture(3.0, weak="tiny_sd15.ckpt"), alone)  # the same file says nothing
    assert not differ(picture(3.0), guided)


def test_both_files_are_loaded_in_one_go_before_the_first_step(server, picture):
    log = server.log
    free(server)
    before = len(log.read_text("utf-8", "replace"))
    picture(2.0, cfg=3.0)
    said = log.read_text("utf-8", "replace")[before:]
    loads = [line for line in said.splitlines() if re.search("Requested to load", line)]
    diffusion = [at for at, line in enumerate(loads) if line.endswith("BaseModel")]
    assert len(diffusion) == 2 and diffusion[1] == diffusion[0] + 1, loads
    first, second = (m.start() for m in re.finditer("Requested to load BaseModel", said))
    assert "it/s" not in said[first:second] and "loaded completely" not in said[first:second]

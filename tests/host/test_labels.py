"""Guidance Grid labels itself by what really ran. Prompts in the API format, on the host's own nodes."""

import asyncio
import json

import pytest
from pack.nodes.extension import BeyondCFG
from pack.nodes.graph import Graph, Link, Unknown
from pack.nodes.labels import Pictures, arrange, sources
from pack.tools import workflows
from pack.tools.places import ROOT

import nodes as host_nodes


@pytest.fixture(scope="module", autouse=True)
def _registry():
    """The host's nodes and the pack's, as a running host has them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_nodes, "NODE_CLASS_MAPPINGS", dict(host_nodes.NODE_CLASS_MAPPINGS))
        patch.setattr(host_nodes, "NODE_DISPLAY_NAME_MAPPINGS", dict(host_nodes.NODE_DISPLAY_NAME_MAPPINGS))
        asyncio.run(host_nodes.init_builtin_extra_nodes())
        for node in asyncio.run(BeyondCFG().get_node_list()):
            host_nodes.NODE_CLASS_MAPPINGS[node.define_schema().node_id] = node
        yield


def pictures(prompt: dict, grid: str | None = None) -> Pictures:
    """Of the last Guidance Grid of a prompt, or of that id."""
    grids = [key for key, node in prompt.items() if node["class_type"] == "BeyondCFGGrid"]
    graph = Graph(prompt.__getitem__)
    return Pictures(graph, sources(graph, Link(*prompt[grid or grids[-1]]["inputs"]["images"])))


def labels(prompt: dict) -> list[str]:
    found = pictures(prompt)
    return found.labels([[at] for at in range(found.outputs)])


def example(name: str) -> dict:
    return workflows.load(ROOT / f"workflows/api/{name}.json")


def of_kind(prompt: dict, kind: str) -> list[dict]:
    return [node["inputs"] for node in prompt.values() if node["class_type"] == kind]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pag_ksampler", ["CFG 4 + PAG 3", "CFG 4"]),
        ("pag_guider", ["CFG 4 + PAG 3", "CFG 4"]),
        ("cfg", ["CFG 7", "no guidance"]),
        ("pag_flux", ["PAG 3", "no guidance"]),
        ("cfg_interval_sdxl", ["CFG 16 + CFG Interval, 0.19 to 0.93", "CFG 16"]),
        ("high_cfg", ["CFG 12 + Adaptive Projected, eta 0, norm threshold 165", "CFG 12 + Rescale 0.7", "CFG 12"]),
        (
            "cfg_pag_seg_compose",
            ["CFG 5 + CFG Interval, 0.2 to 0.9 + PAG 2, with a schedule + SEG 2 + Rescale 0.7", "CFG 5"],
        ),
        ("region_sdxl", ["CFG 4 + PAG 3, in a region", "CFG 4"]),
        ("reuse_sdxl", ["CFG 4 + PAG 3 + Guidance Reuse, every 3", "CFG 4 + PAG 3"]),
        ("sims_lora", ["CFG 4 + SIMS 0.5", "CFG 4"]),
        ("guidance_report", ["CFG 4 + PAG 3", "CFG 4", "CFG from Guidance Report"]),
    ],
)
def test_the_labels_of_an_example_name_what_guides_each_picture(name, said):
    assert labels(example(name)) == said


def test_a_label_is_of_the_value_that_runs():
    prompt = example("pag_ksampler")
    for sampler in of_kind(prompt, "KSampler"):
        sampler["cfg"] = 1.5
    of_kind(prompt, "BeyondCFGPAG")[0]["scale"] = 1
    assert labels(prompt) == ["CFG 1.5 + PAG 1", "CFG 1.5"]
    first, second = of_kind(prompt, "KSampler")
    second["cfg"] = 6
    assert labels(prompt) == ["CFG 1.5 + PAG 1", "CFG 6"]
    first["steps"] = 30
    assert labels(prompt) == ["CFG 1.5 + PAG 1, steps 30", "CFG 6, steps 20"]


def test_a_value_by_a_link_is_found_in_a_node_that_holds_it_and_else_its_node_is_named():
    prompt = example("pag_ksampler")
    prompt["90"] = {"class_type": "PrimitiveFloat", "inputs": {"value": 2.5}}
    prompt["91"] = {"class_type": "BeyondCFGReport", "inputs": {}, "_meta": {"title": "My report"}}
    of_kind(prompt, "BeyondCFGPAG")[0]["scale"] = ["90", 0]
    assert labels(prompt) == ["CFG 4 + PAG 2.5", "CFG 4"]
    of_kind(prompt, "BeyondCFGPAG")[0]["scale"] = ["91", 3]
    assert labels(prompt) == ["CFG 4 + PAG from My report", "CFG 4"]
    assert Graph(prompt.__getitem__).resolved(Link("91", 3)) == Unknown("My report")


def of_values(count: int, **changes) -> dict:
    """Pictures of KSamplers on a chain loader → PAG; changes: name_at_input=value."""
    prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a/model.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a lake"}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "99": {
            "class_type": "BatchImagesNode",
            "inputs": {f"images.image{at}": [f"decode{at}", 0] for at in range(count)},
        },
        "100": {"class_type": "BeyondCFGGrid", "inputs": {"images": ["99", 0]}},
    }
    for at in range(count):
        pag = {"model": ["1", 0], "scale": 3.0, "layers": "auto", "start_percent": 0.0, "end_percent": 1.0}
        sampler = {"model": [f"pag{at}", 0], "seed": 1, "steps": 4, "cfg": 4.0, "positive": ["2", 0], "negative": ["2", 0],
                   "sampler_name": "euler", "scheduler": "normal", "latent_image": ["3", 0], "denoise": 1.0}  # fmt: skip
        prompt[f"pag{at}"] = {"class_type": "BeyondCFGPAG", "inputs": pag}
        prompt[f"sampler{at}"] = {"class_type": "KSampler", "inputs": sampler}
        prompt[f"decode{at}"] = {"class_type": "VAEDecode", "inputs": {"samples": [f"sampler{at}", 0], "vae": ["1", 2]}}
    for key, value in changes.items():
        node, _, name = key.partition("__")
        prompt[node]["inputs"][name] = value
    return prompt


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"pag1__scale": 0.0}, ["PAG 3", "PAG 0 (off)"]),
        ({"pag1__layers": "middle"}, ["PAG 3, layers auto", "PAG 3, layers middle"]),
        ({"pag0__end_percent": 0.5}, ["PAG 3, 0 to 0.5", "PAG 3, 0 to 1"]),
        ({"sampler1__seed": 2}, ["seed 1", "seed 2"]),
        ({"sampler1__sampler_name": "heun"}, ["euler", "heun"]),
        ({"sampler0__cfg": 1.0, "sampler1__cfg": 1, "sampler1__model": ["1", 0]}, ["PAG 3", "no guidance"]),
        ({"sampler1__cfg": 7, "pag1__scale": 1}, ["CFG 4 + PAG 3", "CFG 7 + PAG 1"]),
    ],
)
def test_a_label_says_only_what_differs(changes, said):
    assert labels(of_values(2, **changes)) == said


def test_what_other_nodes_do_to_a_model_is_named_and_never_called_no_guidance():
    prompt = of_values(2, sampler0__cfg=1, sampler1__cfg=1, sampler1__model=["lora", 0])
    lora = {"model": ["1", 0], "lora_name": "styles/detail.safetensors", "strength_model": 0.8}
    prompt["lora"] = {"class_type": "LoraLoaderModelOnly", "inputs": lora, "_meta": {"title": "My LoRA"}}
    assert labels(prompt) == ["PAG 3", "My LoRA, detail, strength model 0.8"]
    prompt["pag0"]["inputs"]["model"] = ["lora", 0]
    assert labels(prompt) == ["PAG 3", "as it is"]


def test_what_acts_on_a_weak_model_alone_guides_no_picture():
    prompt = of_values(2, sampler0__model=["auto", 0], sampler1__model=["1", 0])
    prompt["auto"] = {
        "class_type": "BeyondCFGAutoguidance",
        "inputs": {"weight": 2.0, "model": ["1", 0], "weak_model": ["pag0", 0]},
    }
    assert labels(prompt) == ["CFG 4 + Autoguidance 2", "CFG 4"]


def test_pictures_of_a_batch_stand_below_each_other():
    found = pictures(of_values(3, pag1__scale=1.0, pag2__scale=2.0))
    across = ["PAG 3", "PAG 1", "PAG 2"]
    assert arrange(3, [], [], "rows", found) == (across, [("", [0, 1, 2])])
    assert arrange(6, [], [], "rows", found) == (across, [("", [0, 2, 4]), ("", [1, 3, 5])])
    assert arrange(6, [], ["a", "b", "c"], "rows", found) == ([], [("a", [0, 1]), ("b", [2, 3]), ("c", [4, 5])])
    assert arrange(6, ["x", "y"], [], "rows", found) == (
        ["x", "y"],
        [("PAG 3", [0, 1]), ("PAG 1", [2, 3]), ("PAG 2", [4, 5])],
    )
    assert arrange(6, ["x", "y", "z"], [], "columns", found)[1] == [("", [0, 2, 4]), ("", [1, 3, 5])]
    assert arrange(4, [], [], "rows", found) == ([], [("", [0, 1, 2, 3])])  # whose is the fourth?
    assert arrange(3, ["by hand"] * 3, [], "rows", found)[0] == ["by hand"] * 3


def test_columns_and_rows_say_what_their_pictures_have_in_common():
    strengths = {"pag0__scale": 1.0, "pag1__scale": 2.0, "pag2__scale": 1.0, "pag3__scale": 2.0}
    seeds = {"sampler2__seed": 7, "sampler3__seed": 7}
    found = pictures(of_values(4, **strengths, **seeds))
    assert arrange(4, ["a", "b"], [], "rows", found)[1] == [("seed 1", [0, 1]), ("seed 7", [2, 3])]
    assert arrange(4, [], ["a", "b"], "rows", found)[0] == ["PAG 1", "PAG 2"]


def test_batches_of_sizes_that_nobody_knows_get_no_label():
    prompt = of_values(2, pag1__scale=1.0)
    prompt["4"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 3}}
    prompt["sampler1"]["inputs"]["latent_image"] = ["4", 0]
    assert arrange(4, [], [], "rows", pictures(prompt)) == ([], [("", [0, 1, 2, 3])])


def test_pictures_are_found_through_nodes_that_change_each_of_them():
    prompt = of_values(2, pag1__scale=1.0)
    prompt["98"] = {"class_type": "ImageScale", "inputs": {"image": ["99", 0], "width": 8, "height": 8}}
    prompt["100"]["inputs"]["images"] = ["98", 0]
    assert labels(prompt) == ["PAG 3", "PAG 1"]
    prompt["99"] = {"class_type": "ImageBatch", "inputs": {"image1": ["decode0", 0], "image2": ["decode1", 0]}}
    assert labels(json.loads(json.dumps(prompt))) == ["PAG 3", "PAG 1"]

"""The blocks in subgraphs/: the host offers them, and each converts in the page to its chain of nodes and samples."""

import json
from pathlib import Path

import pytest
from pack.tools import thumbnails

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parent.parent.parent
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
SD3 = "tiny_sd3.ckpt"  # stands for the transformers that are not here
SMALL = {"SDXL": "", "SD3.5": SD3, "Wan": SD3, "LTX": SD3}


def node(number: int, kind: str, inputs: dict[str, str], outputs: list[str], values=()) -> dict:
    return {
        "id": number, "type": kind, "pos": [400 * number, 0], "size": [300, 200], "flags": {}, "order": number, "mode": 0,
        "inputs": [{"name": name, "type": socket, "link": None} for name, socket in inputs.items()],
        "outputs": [{"name": name, "type": name, "links": []} for name in outputs],
        "properties": {}, "widgets_values": list(values),
    }  # fmt: skip


def workflow(blueprint: dict, checkpoint: str) -> dict:
    """The block between a loader and a sampler, as a saved workflow."""
    (block,) = blueprint["nodes"]
    block = block | {"id": 9, "pos": [900, 400]}
    nodes = [
        node(1, "CheckpointLoaderSimple", {}, ["MODEL", "CLIP", "VAE"], [checkpoint]),
        node(2, "CLIPTextEncode", {"clip": "CLIP"}, ["CONDITIONING"], ["a lake"]),
        node(3, "EmptyLatentImage", {}, ["LATENT"], [64, 64, 1]),
        node(
            4, "KSampler",
            {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent_image": "LATENT"},
            ["LATENT"], [5, "fixed", 12, 3.0, "euler", "normal", 1.0],
        ),
        node(5, "VAEDecode", {"samples": "LATENT", "vae": "VAE"}, ["IMAGE"]),
        node(6, "PreviewImage", {"images": "IMAGE"}, []),
        block,
    ]  # fmt: skip
    ends = [
        (1, 0, 9, 0, "MODEL"), (9, 0, 4, 0, "MODEL"), (1, 1, 2, 0, "CLIP"), (2, 0, 4, 1, "CONDITIONING"),
        (2, 0, 4, 2, "CONDITIONING"), (3, 0, 4, 3, "LATENT"), (4, 0, 5, 0, "LATENT"), (1, 2, 5, 1, "VAE"),
        (5, 0, 6, 0, "IMAGE"),
    ]  # fmt: skip
    if len(block["inputs"]) > 1:
        ends.append((2, 0, 9, 1, "CONDITIONING"))
    by_id = {each["id"]: each for each in nodes}
    for number, (origin, slot, target, into, _) in enumerate(ends, 1):
        by_id[origin]["outputs"][slot]["links"].append(number)
        by_id[target]["inputs"][into]["link"] = number
    links = [[number, *end] for number, end in enumerate(ends, 1)]
    return blueprint | {"nodes": nodes, "links": links, "last_node_id": 9, "last_link_id": len(links)}


def test_the_host_offers_them_all(server):
    offered = {entry["name"] for entry in server.ask("/global_subgraphs").values()}
    assert {path.stem for path in BLUEPRINTS} <= offered and len(BLUEPRINTS) >= 10


@pytest.mark.some_cases(4)
@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_block_is_its_chain_of_nodes_and_samples(path, page, graph, server):
    blueprint = json.loads(path.read_text("utf-8"))
    inside = blueprint["definitions"]["subgraphs"][0]["nodes"]
    checkpoint = next((file for word, file in SMALL.items() if word in path.stem), "tiny_sd15.ckpt")
    page.evaluate("workflow => app.loadGraphData(workflow)", workflow(blueprint, checkpoint or "tiny_sd15.ckpt"))
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    found = [entry for entry in prompt.values() if entry["class_type"].startswith("BeyondCFG")]
    assert sorted(entry["class_type"] for entry in found) == sorted(entry["type"] for entry in inside)
    for entry in inside:
        (given,) = (one["inputs"] for one in found if one["class_type"] == entry["type"])
        names = [one["widget"]["name"] for one in entry["inputs"] if "widget" in one]
        assert [given[name] for name in names] == entry["widgets_values"]
    graph.photograph(f"blueprint_{path.stem.split(' (')[0].replace(' ', '_')}")
    if checkpoint:  # else it names layers that no small model has
        assert server.run(thumbnails.on_demo_model(prompt) if "Flux" in path.stem else prompt)

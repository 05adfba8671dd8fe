"""Guidance Sweep on a running host: one input, a list of values, one grid."""

import contextlib
import json
import urllib.parse
import uuid
from io import BytesIO

import pytest
import websocket
from pack.tools.console import Failure
from PIL import Image


def prompt_of(setting="PAG.scale", values="0, 2, 3", **changes) -> dict:
    """Loader → PAG → KSampler → VAE Decode → Guidance Sweep, and the sweep's pictures saved. changes: id__input=value."""
    sampler = {"model": ["2", 0], "seed": ["7", 0], "steps": 3, "cfg": 4.0, "positive": ["3", 0], "negative": ["11", 0],
               "sampler_name": "euler", "scheduler": "normal", "latent_image": ["4", 0], "denoise": 1.0}  # fmt: skip
    pag = {"model": ["1", 0], "scale": 3.0, "layers": "auto", "start_percent": 0.0, "end_percent": 1.0}
    prompt = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": "tiny_sd15.ckpt"}),
        "2": ("BeyondCFGPAG", pag),
        "3": ("CLIPTextEncode", {"clip": ["1", 1], "text": "a lake"}),
        "11": ("CLIPTextEncode", {"clip": ["1", 1], "text": "blurry"}),
        "4": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "5": ("KSampler", sampler),
        "6": ("VAEDecode", {"samples": ["5", 0], "vae": ["1", 2]}),
        "7": ("PrimitiveInt", {"value": 5}),
        "8": ("BeyondCFGSweep", {"images": ["6", 0], "setting": setting, "values": values, "title": ""}),
        "9": ("SaveImage", {"images": ["8", 1], "filename_prefix": "sweep"}),
    }
    prompt = {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in prompt.items()}
    for key, value in changes.items():
        node, _, name = key.removeprefix("_").partition("__")
        prompt[node]["inputs"][name] = value
    return prompt


def alone(**changes) -> dict:
    """The same without the sweep."""
    prompt = prompt_of(**changes)
    del prompt["8"]
    prompt["9"]["inputs"]["images"] = ["6", 0]
    return prompt


def run(server, prompt: dict) -> tuple[dict, list[str]]:
    """(outputs by id, the ids of the nodes that were computed)."""
    client, computed = str(uuid.uuid4()), []
    address = "ws" + server.url.removeprefix("http") + f"/ws?clientId={client}"
    with contextlib.closing(websocket.create_connection(address, timeout=60)) as events:
        body = {"prompt": prompt, "client_id": client, "prompt_id": str(uuid.uuid4())}
        number = server.ask("/prompt", body)["prompt_id"]
        while True:
            message = events.recv()
            kind, data = (
                (json.loads(message)[key] for key in ("type", "data")) if isinstance(message, str) else ("", {})
            )
            if kind == "executing" and data.get("node"):
                computed.append(data["node"])
            if kind in ("execution_success", "execution_error") and data["prompt_id"] == number:
                break
    record = server.wait_for(number)
    assert record["status"]["status_str"] == "success", record["status"]
    return record["outputs"], computed


def pictures(server, outputs: dict, node: str) -> list[bytes]:
    found = (server.get("/view?" + urllib.parse.urlencode(image)) for image in outputs[node]["images"])
    return [Image.open(BytesIO(each)).convert("RGB").tobytes() for each in found]


def copies(computed: list[str], node: str) -> int:
    """How often a node was computed, itself or a copy of it."""
    return sum(each.rpartition(".")[2] == node for each in computed)


def refusal(server, prompt: dict) -> str:
    with pytest.raises(Failure) as caught:
        server.run(prompt)
    text = str(caught.value)
    assert "(BeyondCFGSweep) failed with ValueError" in text
    return text.partition("Guidance Sweep: ")[2]


def test_each_picture_is_that_of_its_value_and_what_does_not_depend_on_it_is_computed_once(server):
    outputs, computed = run(server, prompt_of(values="0, 2, 3", _7__value=11))
    assert [copies(computed, node) for node in "256"] == [3, 3, 3]
    assert all(copies(computed, node) <= 1 for node in "1347")  # none where the prompt before had the same node
    swept = pictures(server, outputs, "9")
    for value, picture in zip((0, 2, 3), swept, strict=True):
        assert pictures(server, run(server, alone(_2__scale=value, _7__value=11))[0], "9") == [picture]
    assert len({*swept}) == 3
    (grid,) = (output for key, output in outputs.items() if key.startswith("8."))
    assert len(grid["images"]) == 1


def test_a_value_more_is_all_that_is_computed_anew(server):
    run(server, prompt_of(values="0.5, 1", _7__value=12))
    _, computed = run(server, prompt_of(values="0.5, 1, 1.5", _7__value=12))
    assert copies(computed, "5") == 1
    assert copies(run(server, prompt_of(values="0.5, 1, 1.5", _7__value=12))[1], "5") == 0


def test_the_value_that_the_graph_has_is_sampled_with_the_picture_itself(server):
    prompt = prompt_of(values="1, 3", _7__value=13)
    prompt["10"] = {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}}
    outputs, computed = run(server, prompt)
    assert copies(computed, "5") == 2
    assert pictures(server, outputs, "10") == pictures(server, outputs, "9")[1:]


@pytest.mark.parametrize(
    ("setting", "values", "node", "name", "parsed"),
    [
        ("KSampler.cfg", "1, 7.5", "5", "cfg", [1.0, 7.5]),
        ("5.steps", "2\n4", "5", "steps", [2, 4]),
        ("ksampler.sampler_name", "euler, heun", "5", "sampler_name", ["euler", "heun"]),
        ("KSampler.seed", "1, 2", "5", "seed", [1, 2]),  # which comes by a link
        ("7.value", "1, 2", "7", "value", [1, 2]),
        ("BeyondCFGPAG.layers", "middle\ninput.1, middle", "2", "layers", ["middle", "input.1, middle"]),
        (
            "3.text",
            "a lake, at dawn\na wood, at noon",
            "3",
            "text",
            ["a lake, at dawn", "a wood, at noon"],
        ),
    ],
)
def test_any_input_of_any_node_before_the_picture_can_be_swept(setting, values, node, name, parsed, server):
    outputs, _ = run(server, prompt_of(setting, values, _7__value=14))
    for value, picture in zip(parsed, pictures(server, outputs, "9"), strict=True):
        single = alone(**{"_7__value": 14, f"_{node}__{name}": value})
        assert pictures(server, run(server, single)[0], "9") == [picture]


def test_a_title_with_dots_and_a_batch(server):
    prompt = prompt_of("My PAG 1.5.scale", "0, 3", _4__batch_size=2, _7__value=15)
    prompt["2"]["_meta"] = {"title": "My PAG 1.5"}
    outputs, _ = run(server, prompt)
    assert len(pictures(server, outputs, "9")) == 4
    (grid,) = (output for key, output in outputs.items() if key.startswith("8."))
    with Image.open(BytesIO(server.get("/view?" + urllib.parse.urlencode(grid["images"][0])))) as drawn:
        assert drawn.height > 2 * 128 and drawn.width < 3 * 136  # a column for each value


@pytest.mark.parametrize(
    ("setting", "values", "says"),
    [
        ("PAG.skale", "1", 'setting is "PAG.skale", but PAG has these inputs: scale, layers, start_percent, end_percent, '),
        ("PAX.scale", "1", 'setting is "PAX.scale"; it must be a node before the picture and one of its inputs, such as '
                           "PAG.scale. The nodes are "),
        ("scale", "1", 'setting is "scale"; it must be a node before the picture'),
        ("PAG.scale", " ", "values is empty; write some, such as 0, 1.5, 3"),
        ("PAG.scale", "1, two", 'values has "two", but scale of PAG must be a number from 0.0 to 100.0'),
        ("PAG.scale", "1, 200", 'values has "200", but scale of PAG must be a number from 0.0 to 100.0'),
        ("PAG.scale", "nan", 'values has "nan", but scale of PAG must be a number'),
        ("KSampler.steps", "1.5", 'values has "1.5", but steps of KSampler must be a whole number from 1 to 10000'),
        ("KSampler.scheduler", "smooth", 'values has "smooth", but scheduler of KSampler must be one of simple, '),
        ("PAG.scale", ",".join(["1"] * 51), "values has 51 values; at most 50 can be compared"),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_said_before_anything_is_sampled(setting, values, says, server):
    assert says in refusal(server, prompt_of(setting, values))


def test_two_nodes_of_one_name_are_told_apart_by_their_numbers(server):
    prompt = prompt_of()
    prompt["12"] = {"class_type": "BeyondCFGPAG", "inputs": {**prompt["2"]["inputs"], "layers": "input.1"}}
    prompt["2"]["inputs"]["model"] = ["12", 0]
    text = refusal(server, prompt)
    assert (
        'setting is "PAG.scale", and 2 nodes before the picture are called so. Write the number of one: 2.scale or 12'
        in text
    )
    outputs, _ = run(
        server, {**prompt, "8": {**prompt["8"], "inputs": {**prompt["8"]["inputs"], "setting": "12.scale"}}}
    )
    assert len(pictures(server, outputs, "9")) == 3


def test_an_error_of_a_copy_names_its_node(server):
    with pytest.raises(Failure, match=r'PAG: layers "input\.99": there is no "input\.99"'):
        server.run(prompt_of("PAG.layers", "auto\ninput.99"))


def test_a_sweep_of_a_sweep_has_both(server):
    prompt = prompt_of("PAG.scale", "0, 3", _7__value=16)
    prompt["20"] = {"class_type": "BeyondCFGSweep",
                    "inputs": {"images": ["8", 1], "setting": "KSampler.cfg", "values": "1, 4", "title": ""}}  # fmt: skip
    prompt["9"]["inputs"]["images"] = ["20", 1]
    outputs, _ = run(server, prompt)
    assert len({*pictures(server, outputs, "9")}) == 4

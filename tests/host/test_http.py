"""The pack as people run it: a host of its own, the demo model, POST /prompt."""

import contextlib
import copy
import json
import time
import urllib.parse
import uuid

import pytest
import requests
import websocket
from pack.tests.host.harness import CAN_COPY, NO_COPY, needs_copy
from pack.tools import examples, thumbnails, workflows
from pack.tools.console import Failure

WORKFLOWS = examples.names()
SMALL = {  # class_type: what makes the example small enough for a test
    "EmptyLatentImage": {"width": 64, "height": 64},
    "EmptySD3LatentImage": {"width": 64, "height": 64},
    "EmptyHunyuanLatentVideo": {"width": 64, "height": 64, "length": 5},
    "ImageFromBatch": {"batch_index": 1},
    "KSampler": {"steps": 4},
    "BasicScheduler": {"steps": 4},
    "TrainLoraNode": {"steps": 2, "training_dtype": "fp32"},
    "BeyondCFGDistil": {"pictures": 3, "iterations": 2, "batch_size": 1},
    "BeyondCFGClassifier": {
        "start_percent": 0.6,
        "end_percent": 0.9,
    },  # one step: the smallest CLIP that the host loads has 300 M weights
    "BeyondCFGPostHocEMA": {"snapshots": "tiny_sd15.ckpt @ 1\ntiny_sd15.ckpt @ 2"},
    "BeyondCFGLayerMap": {"layers": "middle"},
    "BeyondCFGSweep": {"values": "0, 3"},
    "LoraLoaderModelOnly": {"lora_name": "demo_own_pictures_lora.safetensors"},
    "BeyondCFGNoisyClassifier": {"classifier": "demo_left.safetensors", "label": "red seven"},
}
FAMILIES = {"sd3": "tiny_sd3.ckpt", "flux": "tiny_flux.ckpt", "wan": "WAN"}  # how a name ends; all others are UNets
OF_THE_DEMO = ("sims_lora", "noisy_classifier")  # what they need is trained for the demo model
LOADED = {"UNETLoader": 0, "CLIPLoader": 1, "VAELoader": 2}  # which output of Load Checkpoint does for it


def on_tiny_model(workflow: dict, checkpoint: str) -> dict:
    """With Load Checkpoint in place of all loaders. Flux's and Wan's text encoder, a T5, is never tiny: SD3's does."""
    instead = {}  # (node, output): the output that takes its place
    for key, node in workflow.items():
        kind, inputs = node["class_type"], node["inputs"]
        if kind in LOADED and inputs.get("type") in (None, "wan"):
            instead[key, 0] = ["text" if kind == "CLIPLoader" else "tiny", LOADED[kind]]
        if kind == "CheckpointLoaderSimple":
            inputs["ckpt_name"] = checkpoint
            instead |= {(key, 1): ["text", 1]} if checkpoint == "tiny_flux.ckpt" else {}
    for node in workflow.values():
        links = {key: value for key, value in node["inputs"].items() if isinstance(value, list)}
        node["inputs"] |= {key: instead.get(tuple(value), value) for key, value in links.items()}
    load = {"tiny": checkpoint, "text": "tiny_sd3.ckpt"}
    loaders = {
        key: {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": name}} for key, name in load.items()
    }
    kept = {key: node for key, node in workflow.items() if (key, 0) not in instead}
    return {**kept, **loaders} if instead else kept


@pytest.fixture
def workflow(small_files):
    def load(name, whole=False, **inputs):
        """The example, small and with four steps; further inputs as class_type__input=value. Not whole: without its
        Guidance Grid, and so without the sampling that is for comparison only."""
        loaded = workflows.load(examples.api_of(name))
        if not whole:
            loaded = {key: node for key, node in loaded.items() if node["class_type"] != "BeyondCFGGrid"}
        if name in OF_THE_DEMO:
            loaded = thumbnails.on_demo_model(loaded)
        else:
            family = FAMILIES.get(name.rpartition("_")[2], "tiny_sd15.ckpt")
            loaded = on_tiny_model(loaded, small_files.get(family, family))
        for node in loaded.values():
            node["inputs"].update(SMALL.get(node["class_type"], {}))
            if node["inputs"].get("clip_name", "").startswith("clip-vit"):
                node["inputs"]["clip_name"] = small_files["CLIP"]
            for key, value in inputs.items():
                class_type, _, given = key.partition("__")
                if node["class_type"] == class_type:
                    node["inputs"][given] = value
        return loaded

    return load


@pytest.fixture
def picture(server):
    def run(workflow):
        return server.run(workflow)[-1][1]

    return run


@contextlib.contextmanager
def heard_by(server, client: str):
    """A context: a function from an event to what the host has sent of it to this client since the last call."""
    address = "ws" + server.url.removeprefix("http") + f"/ws?clientId={client}"
    host = urllib.parse.urlsplit(server.url).hostname
    with contextlib.closing(websocket.create_connection(address, timeout=60, http_no_proxy=[host])) as events:
        events.settimeout(1)

        def heard(event: str) -> list[dict]:
            found = []
            with contextlib.suppress(websocket.WebSocketTimeoutException):
                while True:
                    message = events.recv()
                    if isinstance(message, str) and json.loads(message)["type"] == event:
                        found.append(json.loads(message)["data"])
            return found

        yield heard


def failure(server, workflow) -> str:
    with pytest.raises(Failure) as caught:
        server.run(workflow)
    return str(caught.value)


@pytest.mark.some_cases(12)
@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_example_runs_to_success(name, server, workflow):
    whole = workflow(name, whole=True)
    try:
        pictures = server.run(whole)
    except Failure as failure:
        if not CAN_COPY and name.startswith(("sims", "distil")) and "cannot copy a loaded model" in str(failure):
            pytest.skip(NO_COPY)  # as the message says
        raise
    show = (
        "BeyondCFGGrid",
        "BeyondCFGSweep",
        "BeyondCFGReport",
        "BeyondCFGLayerMap",
        "SaveImage",
        "SaveAnimatedWEBP",
        "PreviewImage",
    )
    assert len(pictures) >= sum(node["class_type"] in show for node in whole.values())
    for file, content in pictures:
        assert content[:4] == (b"RIFF" if file.endswith(".webp") else b"\x89PNG")


def is_learnt(workflow: dict, model: str) -> bool:
    """Whether a MODEL has a LoRA that was trained in this workflow, which has learnt the cfg too."""
    return workflow[model]["class_type"] == "LoraModelLoader"


@pytest.mark.parametrize("name", sorted(set(WORKFLOWS) - {"layer_map", "sweep_sdxl"}))  # nothing and one is sampled
def test_every_example_compares_on_one_seed(name):
    workflow = workflows.load(examples.api_of(name))
    (batch,) = (node for node in workflow.values() if node["class_type"] == "BatchImagesNode")
    assert any(
        workflow[node["inputs"]["images"][0]] is batch
        for node in workflow.values()
        if node["class_type"] == "BeyondCFGGrid"
    )
    samplers = []
    for source, _ in batch["inputs"].values():
        while not (inputs := workflow[source]["inputs"]).keys() & {"seed", "noise"}:
            source, _ = inputs.get("samples") or inputs["image"]
        samplers.append(inputs)
    assert all(len({str(each.get(key)) for each in samplers}) == 1 for key in ("seed", "noise"))
    set_by_hand = [each for each in samplers if not isinstance(each.get("cfg"), list)]
    learnt = [each for each in set_by_hand if "model" in each and is_learnt(workflow, each["model"][0])]
    assert all(each["cfg"] == 1 for each in learnt)
    assert len(set_by_hand) > 1 and len({str(each.get("cfg")) for each in set_by_hand if each not in learnt}) == 1
    assert len({str(each.get("model") or each["guider"]) for each in set_by_hand}) == len(set_by_hand)
    for each in (each for each in samplers if each not in set_by_hand):  # CFG alone, as strong as a report has measured
        assert workflow[each["cfg"][0]]["class_type"] == "BeyondCFGReport"
        assert each["model"] in [other["model"] for other in set_by_hand]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_example_has_a_note_that_says_whose_picture_its_thumbnail_is(name):
    nodes = json.loads(examples.page_of(name).read_text("utf-8"))["nodes"]
    (note,) = (node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote")
    assert note.splitlines()[-1].startswith("The thumbnail ") and "small demo model of two digits" in note
    assert 1000 < examples.picture_of(name).stat().st_size < 40_000


def test_the_ksampler_and_the_guider_give_the_same_picture(server, workflow):
    from io import BytesIO

    from PIL import Image, ImageChops

    pictures = []
    for name in ("pag_ksampler", "pag_guider"):
        ((_, content),) = server.run(workflow(name))
        pictures.append(Image.open(BytesIO(content)).convert("RGB"))
    assert ImageChops.difference(*pictures).getbbox() is None


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"BeyondCFGPAG__layers": "input.99"},
            'PAG: layers "input.99": there is no "input.99". This model has input.1, middle.',
        ),
        ({"BeyondCFGPAG__layers": "nonsense!"}, 'PAG: layers "nonsense!": cannot read "nonsense!".'),
    ],
)
def test_bad_input_is_an_error_at_our_node_that_names_it(inputs, message, server, workflow):
    text = failure(server, workflow("pag_ksampler", **inputs))
    assert "(BeyondCFGPAG) failed with ValueError" in text and message in text


def refusal(server, workflow) -> dict:
    """What the host answers to a prompt that it refuses: node id → the details of its errors."""
    answer = requests.post(f"{server.url}/prompt", json={"prompt": workflow}, timeout=60)
    assert answer.status_code == 400
    errors = answer.json()["node_errors"]
    return {node: [error["details"] for error in found["errors"]] for node, found in errors.items()}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"start_percent": 0.8, "end_percent": 0.2},
            "PAG: start_percent is 0.8 and end_percent is 0.2; start must come before end, both from 0 to 1",
        ),
        ({"scale": "NaN"}, "PAG: scale is nan; it must be a number from 0 to 100"),
        ({"scale": "Infinity"}, "PAG: scale is inf; it must be a number from 0 to 100"),
        ({"scale": -1}, "PAG: scale is -1.0; it must be a number from 0 to 100"),
    ],
)
def test_what_cannot_work_is_refused_once_in_our_words_before_anything_runs(inputs, message, server, workflow):
    whole = workflow("pag_ksampler", **{f"BeyondCFGPAG__{name}": value for name, value in inputs.items()})
    (pag,) = (key for key, node in whole.items() if node["class_type"] == "BeyondCFGPAG")
    assert refusal(server, whole) == {pag: [message]}


def test_a_guider_with_cfg_and_no_negative_says_what_to_do(server, workflow):
    without = workflow("pag_guider")
    (key,) = (key for key, node in without.items() if node["class_type"] == "BeyondCFGPAGGuider")
    del without[key]["inputs"]["negative"]
    said = "PAG Guider: cfg is 4 but no negative is connected; connect one, or set cfg to 1 (no CFG)"
    assert refusal(server, without) == {key: [said]}
    without[key]["inputs"]["cfg"] = 1.0
    assert server.run(without)


def test_an_interrupted_run_leaves_the_cached_model_as_it_was(server, workflow, picture):
    def with_seed(seed):
        return workflow("pag_ksampler", KSampler__seed=seed)

    before = picture(with_seed(1))
    long = with_seed(2)
    for node in long.values():
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 2000
    body = {"prompt": long, "client_id": str(uuid.uuid4()), "prompt_id": str(uuid.uuid4())}
    prompt = server.ask("/prompt", body)["prompt_id"]
    while not server.ask("/queue")["queue_running"]:
        time.sleep(0.05)
    time.sleep(1)
    server.get("/interrupt", {})
    status = server.wait_for(prompt)["status"]
    assert "execution_interrupted" in [event for event, _ in status["messages"]]
    failure(server, workflow("pag_ksampler", BeyondCFGPAG__layers="input.99"))
    assert picture(with_seed(1)) == before


@needs_copy
def test_a_lora_makes_a_weak_model_of_one_checkpoint_that_is_not_silently_the_main_one(workflow, picture):
    """SIMS on a model and the same model with a LoRA: the host is made to copy the network."""
    away, plain = (
        workflow("sims_training", BeyondCFGSIMS__scale=3.0),
        workflow("sims_training", BeyondCFGSIMS__scale=0.0),
    )
    assert picture(away) != picture(plain)


def test_the_hosts_lora_training_on_a_model_with_terms_trains_the_model_without_them(server, workflow):
    """Model patches are active in the host's training loop; ours stand aside there, and the log says so."""
    train = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny_sd3.ckpt"}},
        "2": {"class_type": "BeyondCFGPAG", "inputs": {"model": ["1", 0], "scale": 3.0, "layers": "auto",
                                                       "start_percent": 0.0, "end_percent": 1.0}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a cottage"}},
        "4": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 7600000}},
        "5": {"class_type": "VAEEncode", "inputs": {"pixels": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "TrainLoraNode", "inputs": {
            "model": ["2", 0], "latents": ["5", 0], "positive": ["3", 0], "batch_size": 1,
            "grad_accumulation_steps": 1, "steps": 1, "learning_rate": 0.0001, "rank": 2, "optimizer": "SGD",
            "loss_function": "MSE", "seed": 5, "training_dtype": "fp32", "lora_dtype": "fp32", "algorithm": "LoRA",
            "gradient_checkpointing": False, "checkpoint_depth": 1, "offloading": False, "existing_lora": "[None]",
            "bucket_mode": False, "bypass_mode": False, "quantized_backward": False}},
        "7": {"class_type": "PreviewAny", "inputs": {"source": ["6", 1]}},
    }  # fmt: skip
    known = server.ask("/object_info/TrainLoraNode").get("TrainLoraNode")
    if not known:
        pytest.skip("this host has no TrainLoraNode")
    options = {**known["input"]["required"], **known["input"].get("optional", {})}
    train["6"]["inputs"] = {name: value for name, value in train["6"]["inputs"].items() if name in options}

    def first_loss(model):
        prompt = copy.deepcopy(train)
        prompt["6"]["inputs"]["model"] = [model, 0]
        body = {"prompt": prompt, "client_id": str(uuid.uuid4()), "prompt_id": str(uuid.uuid4())}
        record = server.wait_for(server.ask("/prompt", body)["prompt_id"])
        return record["outputs"]["7"]["text"]

    assert first_loss("2") == first_loss("1")
    assert "guidance does not act while a model is trained" in server.log.read_text("utf-8", "replace")


def test_the_page_is_told_everything_about_our_nodes(server):
    for name in ("BeyondCFGPAG", "BeyondCFGInterval", "BeyondCFGGuider", "BeyondCFGPAGGuider"):
        info = server.ask(f"/object_info/{name}")[name]
        assert info["category"].startswith("Beyond CFG/") and info["description"] and info["search_aliases"]
        for inputs in info["input"].values():
            assert all(options[1]["tooltip"] for options in inputs.values())


def test_what_had_no_effect_is_sent_to_the_page_and_kept_for_those_who_ask(server, workflow):
    from pack.nodes.warnings import EVENT

    without = workflow("pag_ksampler", BeyondCFGPAG__start_percent=0.401, BeyondCFGPAG__end_percent=0.402)
    (pag,) = (key for key, node in without.items() if node["class_type"] == "BeyondCFGPAG")
    (sampler,) = (key for key, node in without.items() if node["inputs"].get("model") == [pag, 0])
    said = "PAG had no effect: no step of this run lies in 0.401 to 0.402 of sampling"
    client, other = (str(uuid.uuid4()) for _ in range(2))
    with heard_by(server, client) as page, heard_by(server, other) as another:
        prompt = server.ask("/prompt", {"prompt": without, "client_id": client})["prompt_id"]
        assert server.wait_for(prompt)["status"]["status_str"] == "success"
        assert page(EVENT) == [{"node": sampler, "text": said}] and another(EVENT) == []
        assert server.ask(f"/beyond_cfg_warnings/{prompt}") == [said]
        without[pag]["inputs"]["scale"] += 1
        nobodys = server.ask("/prompt", {"prompt": without})["prompt_id"]
        server.wait_for(nobodys)
        assert page(EVENT) == another(EVENT) == []
        assert server.ask(f"/beyond_cfg_warnings/{nobodys}") == [said]
    assert server.ask("/beyond_cfg_warnings/of-no-prompt") == []

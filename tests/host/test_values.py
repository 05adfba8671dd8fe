"""Hostile values: whatever an input of a node is given, the node works or says in a sentence of its own why it cannot."""

import asyncio
import functools
import math
import re
from pathlib import Path

import folder_paths
import pytest
import torch
from comfy.samplers import sampler_object
from comfy_api.latest import io
from comfy_execution.graph import DynamicPrompt
from pack.guiders.host import Recorder
from pack.guiders.host.classifiers import FOLDER
from pack.guiders.host.recorder import Call
from pack.guiders.schedule import Curve
from pack.nodes.extension import BeyondCFG
from pack.nodes.values import LONGEST, check
from pack.patches.host import ema
from pack.tests.host.classifiers import FEATURES, clip_vision, save_tensors, whole_vae
from pack.tests.host.harness import CAN_COPY, SKIPPING, loadable, network, pag, prompts
from pack.tools import tiny_models

CLASSIFIERS = Path(__file__).resolve().parent.parent.parent / "benchmarks/models/classifiers"
NODES = {node.about.node_id: node for node in asyncio.run(BeyondCFG().get_node_list())}
if not CAN_COPY:  # then it refuses whatever it is given
    NODES.pop("BeyondCFGDistil")
INPUTS = [(key, given.id) for key, node in NODES.items() for given in node.inputs]
HOSTILE = {
    "nothing": None,
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "-0": -0.0,
    "-1": -1,
    "a huge float": 1e308,
    "a huge integer": 10**400,
    "a longer integer than Python prints": 10**5000,
    "2^64": 2**64,
    "true": True,
    "an empty text": "",
    "white space": " \n\t\r",
    "1500 spaces": f"a{' ' * 1500}b",
    "a NUL": "a\0b",
    "lines": "a\nb\n\nc" * 50,
    "unicode": "é⁰١🎲ﬀ\u202e",
    "half a character": "\ud800",
    "many digits": "9" * 5000,
    "many negative digits": "-" + "9" * 5000,
    "many times @": "a @ " * 2000,
    "many brackets": "(" * 3000 + "a" + ")" * 3000,
    "many commas": "," * 3000,
    "a very long text": "x" * 200_000,
    "a long text": "word " * 3000,
    "the folder above": "../..",
    "a list": [],
    "a list of numbers": [1.0, 2.0],
    "a dict": {"samples": None},
    "bytes": b"bytes",
    "of another type": Path(),
    "a tensor": torch.ones(3),
    "no pictures": torch.zeros(0, 4, 4, 3),
    "a picture of two channels": torch.zeros(1, 4, 4, 2),
}
GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.ckpt"}},
    "2": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "cfg": 4.0}},
    "3": {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0], "vae": ["1", 2]}},
    "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
}
PYTHONS = re.compile(  # words that no sentence of ours has
    r"object|invalid literal|could not convert|codec|Exceeds|supported between|unpack|argument|NoneType|expected|"
    r"index|hashable|real number|Traceback|Error\b|subscript|iterable|overflow|recursion|embedded|0x|\{|\bint\(",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """given(node_id) → values for all its inputs with which it works."""
    places = {name: tmp_path_factory.mktemp(name) for name in ("output", FOLDER, *ema.FOLDERS)}
    save_tensors(
        places[FOLDER] / "head.safetensors", {"weight": torch.ones(3, FEATURES), "bias": torch.ones(3)}, None, {}
    )
    torch.save(tiny_models.half(tiny_models.sd3(0, side=16)), places["diffusion_models"] / "a.ckpt")
    folders = {name: ([str(path)], {".ckpt", ".safetensors"}) for name, path in places.items()}
    folders[FOLDER] = ([str(places[FOLDER]), str(CLASSIFIERS)], {""})
    recorder = Recorder()
    recorder.calls.append(Call(0, 1.0, 1, 2, 3.0, ("PAG",), torch.ones(1, 1)))
    positive, negative = prompts("unet")
    common = {
        "model": network("unet"),
        "weak_model": network("unet", seed=5),
        "auxiliary_model": network("unet", seed=5),
        "negative_model": network("unet", seed=5),
        "empty_conditioning": negative,
        "region": torch.ones(1, 8, 8),
        "positive": positive,
        "negative": negative,
        "vae": whole_vae(),
        "clip_vision": clip_vision(),
        "head": "head.safetensors",
        "label": "1",
        "snapshots": "a.ckpt",
        "report": recorder,
        "samples": {"samples": torch.zeros(1, 4, 8, 8)},
        "latent": {"samples": torch.zeros(1, 4, 8, 8)},
        "sampler": sampler_object("euler"),
        "sigmas": torch.tensor([1.0, 0.0]),
        "images": torch.rand(2, 8, 8, 3),
        "schedule": Curve(),
    }
    own = {key: {"model": network("sd3")} for key in SKIPPING}
    own["BeyondCFGDistil"] = {
        "model": pag(loadable("unet")),
        "pictures": 1,
        "iterations": 1,
        "batch_size": 1,
        "rank": 1,
    }
    own["BeyondCFGLayerProbe"] = {"cfg": 1.0, "layers": "middle", "pictures": 1}
    own["BeyondCFGSweep"] = {"images": ["3", 0], "setting": "KSampler.cfg"}
    own["BeyondCFGNoisyClassifier"] = {"model": network("flux"), "classifier": "demo_left.safetensors", "label": "0"}

    @functools.cache
    def values(node_id: str) -> dict:
        defaults = {given.id: given.default for given in NODES[node_id].inputs if hasattr(given, "default")}
        known = defaults | common | own.get(node_id, {})
        return {given.id: known[given.id] for given in NODES[node_id].inputs if given.id in known}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "folder_names_and_paths", folder_paths.folder_names_and_paths | folders)
        patch.setattr(folder_paths, "filename_list_cache", {})
        patch.setattr(folder_paths, "get_output_directory", lambda: str(places["output"]))
        patch.setattr(folder_paths, "get_user_directory", lambda: str(places["output"]))
        yield values


def _execute(node, inputs: dict):
    """What the host calls. A node with an input that takes lists gets a list for each, one that asks for a graph one."""
    if node.hears:
        hidden = {io.Hidden.dynprompt: DynamicPrompt(GRAPH), io.Hidden.unique_id: "4"}
        node = node.PREPARE_CLASS_CLONE({"hidden_inputs": hidden})
    return node.execute(**{name: [value] for name, value in inputs.items()} if node.lists else inputs)


@pytest.mark.parametrize("node_id", NODES)
def test_the_values_that_the_hostile_ones_stand_among_are_good_ones(node_id, given):
    _execute(NODES[node_id], given(node_id))


def foreseen(node, inputs: dict) -> str:
    """What a node says before a run, where links give all that is no setting; else nothing."""
    settings = {one.id for one in node.inputs if hasattr(one, "default")}
    written = {name: value if name in settings else None for name, value in inputs.items()}
    try:
        assert node.validate_inputs(**{name: (value,) for name, value in written.items()} if node.lists else written)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("node_id", "name"), INPUTS)
def test_a_node_works_with_what_it_is_given_or_says_why_not(node_id, name, given):
    node = NODES[node_id]
    for value in HOSTILE.values():
        said, inputs = "", given(node_id) | {name: value}
        try:
            _execute(node, inputs)
        except ValueError as error:
            said = str(error)
            title, _, message = said.partition(": ")
            assert title == node.about.name
            assert name in message and not PYTHONS.search(message), message
            assert len(message) < 2000 and message.encode(), message[:3000]
        assert foreseen(node, inputs) in ("", said)


FORESEEN = [
    ("BeyondCFGPAG", {"scale": 101.0}, "PAG: scale is 101.0; it must be a number from 0 to 100"),
    ("BeyondCFGPAG", {"start_percent": 0.8, "end_percent": 0.3}, "PAG: start_percent is 0.8 and end_percent is 0.3; "),
    ("BeyondCFGPAGGuider", {"negative": ...}, "PAG Guider: cfg is 4 but no negative is connected; connect one, or "),
    ("BeyondCFGGuider", {"negative": ...}, "CFG Interval Guider: cfg is 7 but no negative is connected; connect one"),
    ("BeyondCFGHiGS", {"t_min": 0.5, "t_max": 0.5}, "HiGS: t_min is 0.5 and t_max is 0.5; t_min must be less"),
    ("BeyondCFGICG", {"conditions": "prompts"}, "ICG: conditions is prompts, but no prompts are connected. Connect "),
    ("BeyondCFGSchedule", {"curve_type": "points", "points": "0: 1, x"}, 'Guidance Schedule: points "0: 1, x": write '),
    ("BeyondCFGClassifier", {"head": "", "label": ""}, "Classifier Guidance: needs a clip, to understand the labels, "),
    ("BeyondCFGNoisyClassifier", {"classifier": "no"}, 'Noise-Aware Classifier Guidance: there is no file "no". The '),
    ("BeyondCFGPostHocEMA", {"snapshots": ""}, "Post-hoc EMA: snapshots is empty; write one file name per line. The "),
    ("BeyondCFGDegradedModel", {"degradation": "input noise", "layers": "2"}, 'Degraded Model: layers is "2", which '),
    ("BeyondCFGRecorder", {"predictions_at": "first"}, 'Guidance Recorder: predictions_at is "first"; write step numb'),
]


@pytest.mark.parametrize(("node_id", "wrong", "message"), FORESEEN)
def test_what_can_be_known_before_a_run_is_said_then_in_the_words_of_the_run(node_id, wrong, message, given):
    node = NODES[node_id]
    inputs = {name: value for name, value in (given(node_id) | wrong).items() if value is not ...}
    with pytest.raises(ValueError) as error:
        _execute(node, inputs)
    assert foreseen(node, inputs) == str(error.value) and str(error.value).startswith(message)


def test_nothing_is_said_before_a_run_of_what_a_link_will_give_or_the_host_will_miss(given):
    node = NODES["BeyondCFGPAGGuider"]
    assert node.validate_inputs(**given("BeyondCFGPAGGuider") | {"model": None, "positive": None, "negative": None})
    linked = given("BeyondCFGPAGGuider") | {"start_percent": None, "end_percent": 0.0, "negative": None}
    assert node.validate_inputs(**linked | {"model": None, "positive": None})
    without = {name: value for name, value in given("BeyondCFGPAGGuider").items() if name not in ("negative", "scale")}
    assert node.validate_inputs(**without | {"model": None, "positive": None, "cfg": 4.0})


@pytest.mark.parametrize(
    ("node_id", "name", "value", "message"),
    [
        ("BeyondCFGPAG", "scale", True, "scale is True; it must be a number from 0 to 100"),
        ("BeyondCFGPAG", "scale", 10**400, "scale is beyond all range; it must be a number from 0 to 100"),
        ("BeyondCFGPAG", "scale", "3", 'scale is "3"; it must be a number from 0 to 100'),
        ("BeyondCFGPAG", "scale", None, "scale is empty; it must be a number from 0 to 100"),
        ("BeyondCFGPAG", "layers", ["middle"], "layers is of the type list; it must be a text"),
        ("BeyondCFGPAG", "layers", "\ud800", "layers has half of a character in it, which is no text; write it anew"),
        ("BeyondCFGPAG", "model", None, "model is empty; it must be a model"),
        ("BeyondCFGDegradedModel", "bits", 4.0, "bits is 4.0; it must be a whole number from 2 to 8"),
        ("BeyondCFGMaskedAttention", "keep_diagonal", 1, "keep_diagonal is 1; it must be true or false"),
        ("BeyondCFGSchedule", "over", "time", 'over is "time"; it must be one of percent, sigma'),
        ("BeyondCFGGrid", "title", "x" * (LONGEST + 1), "title has 20,001 characters; at most 20,000 are read"),
        (
            "BeyondCFGGrid",
            "images",
            torch.zeros(0, 4, 4, 3),
            "images is a tensor [0, 4, 4, 3] of torch.float32; it must be pictures: one at least, "
            "[pictures, height, width, channels] with 1, 3 or 4 channels",
        ),
    ],
)  # fmt: skip
def test_a_refusal_names_the_input_the_value_and_what_it_must_be(node_id, name, value, message, given):
    with pytest.raises(ValueError) as error:
        NODES[node_id].execute(**given(node_id) | {name: value})
    assert str(error.value) == f"{NODES[node_id].about.name}: {message}"


@pytest.mark.parametrize(("node_id", "name"), [("BeyondCFGICG", "pool_seed"), ("BeyondCFGDegradedModel", "seed")])
def test_a_seed_may_be_any_that_the_hosts_nodes_give(node_id, name, given):
    NODES[node_id].execute(**given(node_id) | {name: 2**64 - 1})


def test_every_kind_of_input_is_checked(given):
    for node_id, node in NODES.items():
        for one in node.inputs:
            if one.get_io_type() != "CURVE":  # whose check is the schedule's own
                with pytest.raises(ValueError):
                    check(one, object())
                check(one, given(node_id).get(one.id))

"""Workflows from the command line: read, changed, and what the host says of them."""

import json

import pytest
from pack.tools import workflows
from pack.tools.console import Failure


@pytest.fixture
def workflow():
    return {
        "1": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 4, "model": ["2", 0], "kind.blocks": "mid"}},
        "2": {"class_type": "Loader", "inputs": {"name": "x"}, "_meta": {"title": "Model v1.5"}},
        "3": {"class_type": "Text", "inputs": {"text": "a"}},
        "4": {"class_type": "Text", "inputs": {"noise_seed": 2}},
    }


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("1.steps=8", (["1"], "steps", 8)),
        ("KSampler.steps=2.5", (["1"], "steps", 2.5)),
        ("Model v1.5.name=file.ckpt", (["2"], "name", "file.ckpt")),
        ("1.kind.blocks=all", (["1"], "kind.blocks", "all")),
        ("3.text=a = b", (["3"], "text", "a = b")),
        ('3.text="8"', (["3"], "text", "8")),
        ('1.model=["3", 0]', (["1"], "model", ["3", 0])),
        ("3.text=NaN", (["3"], "text", "NaN")),
        ("3.text=", (["3"], "text", "")),
    ],
)
def test_set_takes_ids_classes_and_titles(workflow, setting, expected):
    assert workflows.parse_setting(workflow, setting) == expected


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("1.stepz=8", "its inputs are seed, steps, model, kind.blocks"),
        ("9.steps=8", r"the nodes are 1 \(KSampler\), 2 \(Loader\)"),
        ("Text.text=b", "its inputs are noise_seed"),  # of the second
        ("steps", "NODE.INPUT=VALUE"),
        ("steps=8", "NODE.INPUT=VALUE"),
    ],
)
def test_a_wrong_set_names_the_choices(workflow, setting, says):
    with pytest.raises(Failure, match=says):
        workflows.parse_setting(workflow, setting)


def test_set_reaches_all_nodes_of_a_class(workflow):
    workflow["5"] = {"class_type": "KSampler", "inputs": {"steps": 3}}
    assert workflows.parse_setting(workflow, "KSampler.steps=8") == (["1", "5"], "steps", 8)


def test_seed_reaches_every_seed_and_the_node_that_several_have_it_from_but_no_other_link(workflow):
    workflow["2"]["inputs"]["seed"] = ["1", 0]
    workflow["5"] = {"class_type": "PrimitiveInt", "inputs": {"value": 1}}
    workflow["6"] = {"class_type": "KSampler", "inputs": {"seed": ["5", 0]}}
    workflows.set_seed(workflow, 7)
    assert workflow["1"]["inputs"]["seed"] == workflow["4"]["inputs"]["noise_seed"] == 7
    assert workflow["5"]["inputs"]["value"] == 7 and workflow["6"]["inputs"]["seed"] == ["5", 0]
    assert workflow["2"]["inputs"]["seed"] == ["1", 0]
    with pytest.raises(Failure, match="No node"):
        workflows.set_seed({"3": workflow["3"]}, 7)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ('{"nodes": []}', r"Export \(API\)"),
        ("[]", "API format"),
        ("{}", "API format"),
        ('{"1": {"inputs": {}}}', "API format"),
    ],
)
def test_a_wrong_workflow_file_is_explained(tmp_path, text, says):
    path = tmp_path / "w.json"
    path.write_text(text)
    with pytest.raises(Failure, match=says):
        workflows.load(path)
    with pytest.raises(Failure, match="no file"):
        workflows.load(tmp_path / "none.json")


def test_host_errors_become_lines():
    refused = {
        "error": {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed", "details": ""},
        "node_errors": {"5": {"class_type": "Pag", "errors": [{"message": "Value too big", "details": "scale"}]}},
    }
    text = workflows.rejection(json.dumps(refused))
    assert text.splitlines()[1] == "  node 5 (Pag): Value too big: scale"
    failed = {"node_id": "5", "node_type": "Pag", "exception_type": "torch.OutOfMemory", "exception_message": "a\nb\n"}
    text = workflows.execution_error([["execution_start", {}], ["execution_error", failed]])
    assert text == "Node 5 (Pag) failed with OutOfMemory:\n  a\n  b"


def test_pictures_are_never_overwritten(tmp_path):
    names = []
    for _ in range(3):
        path = workflows.unused(tmp_path / "a.png")
        path.touch()
        names.append(path.name)
    assert names == ["a.png", "a-2.png", "a-3.png"]

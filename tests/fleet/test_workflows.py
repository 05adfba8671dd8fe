"""Workflows on a real ComfyUI, and what is made of a command's words. No Ray is needed here."""

import copy
import json
import os
import signal
import sys

import pytest
from pack.fleet import report
from pack.fleet.cells import Cell, Failed, Result
from pack.fleet.kinds.base import Worker
from pack.fleet.store import Store
from pack.fleet.sweeps import loaded, swept
from pack.fleet.worker import Doer
from pack.tools.console import Failure

GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny_sd15.ckpt"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a cat"}, "_meta": {"title": "Good"}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}, "_meta": {"title": "Bad"}},
    "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 2}},
    "10": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": 1, "steps": 2,
            "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
        },
    },
    "6": {"class_type": "VAEDecode", "inputs": {"samples": ["10", 0], "vae": ["1", 2]}},
    "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
    "8": {"class_type": "PreviewAny", "inputs": {"source": ["11", 0]}},
    "11": {"class_type": "PrimitiveFloat", "inputs": {"value": 2.5}},
}  # fmt: skip


def changed(**inputs) -> dict:
    """The graph with other inputs: node_name=value."""
    graph = copy.deepcopy(GRAPH)
    for name, value in inputs.items():
        node, _, key = name[1:].partition("_")
        graph[node]["inputs"][key] = value
    return graph


# ---------------------------------------------------------------------------------------------------- what is to be done


def test_a_sweep_has_each_combination_once_with_its_values_in_its_labels():
    cells = swept(GRAPH, ["KSampler.cfg=1,3", "good.text=a dog,a hen"], [5, 6])
    assert len({cell.id for cell in cells}) == len(cells) == 8
    assert cells[0].labels == {"10.cfg": 1.0, "2.text": "a dog", "seed": 5}
    node = cells[-1].work["workflow"]["10"]["inputs"]
    assert (node["cfg"], node["seed"], cells[-1].labels["2.text"]) == (3.0, 6, "a hen") and GRAPH["10"]["inputs"][
        "cfg"
    ] == 4
    assert [c.work["workflow"]["2"]["inputs"]["text"] for c in swept(GRAPH, ['2.text=["a, b", "c"]'])] == ["a, b", "c"]
    assert swept(GRAPH, ["10.cfg=3"])[0].id == swept(GRAPH, ["KSampler.cfg=3.0"])[0].id


BAD = {
    "cfg=1": "must be a node and one of its inputs, such as 5.cfg; the nodes are 1 (CheckpointLoaderSimple)",
    "10.cgf=1": "KSampler has no such input; its inputs are model, positive",
    "CLIPTextEncode.text=1": "2 nodes are called so. Write the number of one: 2.text or 3.text",
    "10.cfg=high": "high must be a number",
    "10.cfg=": "there is no value",
    "10.model=1": "model of KSampler comes from another node",
    "10.cfg": "must be of the form NODE.INPUT=VALUE",
}


@pytest.mark.parametrize(("text", "said"), BAD.items(), ids=BAD)
def test_what_cannot_be_varied_is_said_with_the_choices(text, said):
    with pytest.raises(Failure) as failure:
        swept(GRAPH, [text])
    assert said in str(failure.value) and str(failure.value).startswith("--vary ")


def test_a_file_of_cells_names_no_code_to_run(tmp_path):
    path = tmp_path / "cells.json"
    path.write_text(json.dumps([{"kind": "os:system", "work": {}}]))
    with pytest.raises(Failure, match=r"cell 1 must have a kind \(one of echo, sleep, workflow\)"):
        loaded(path, (), ())
    path.write_text(json.dumps([{"kind": "echo", "work": {"values": {}}, "labels": {"a": 1}}]))
    assert loaded(path, (), ()) == [Cell("echo", {"values": {}}, {"a": 1})]


# ------------------------------------------------------------------------------------------------------------- ComfyUI


@pytest.fixture
def doer(server, tmp_path):
    """A worker of the ComfyUI that runs for the tests."""
    return Doer(Worker("w", url=server.url), tmp_path, {})


def test_a_workflow_gives_its_pictures_and_numbers_the_same_each_time(doer):
    outcome, (values, pictures, seconds) = doer.do("workflow", {"workflow": GRAPH}, 300)
    assert outcome == "done" and values == {"8.text": "2.5"} and len(pictures) == 2 and seconds > 0
    again = doer.do("workflow", {"workflow": changed(_10_cfg=5.0)}, 300)[1][1]
    assert again != pictures and doer.do("workflow", {"workflow": GRAPH}, 300)[1][1] == pictures


def test_missing_nodes_and_models_are_said_in_one_sentence(doer):
    graph = changed(_1_ckpt_name="no.safetensors") | {"9": {"class_type": "NoSuchNode", "inputs": {}}}
    kind = doer._kind("workflow")
    said = doer.check({"workflow": kind.needs([Cell("workflow", {"workflow": graph})])})
    lacks = 'the node NoSuchNode and the choice "no.safetensors" for ckpt_name of CheckpointLoaderSimple'
    assert said == f"this ComfyUI does not have {lacks}."
    assert doer.check({"workflow": kind.needs([Cell("workflow", {"workflow": GRAPH})])}) == ""


def test_an_error_of_the_workflow_is_not_tried_again(doer):
    outcome, said = doer.do("workflow", {"workflow": changed(_10_steps="many")}, 300)
    assert outcome == "wrong" and "KSampler" in said and "\n" not in said
    chain = {f"{at}": {"class_type": "BeyondCFGReuse", "inputs": {"model": [f"{at - 1}", 0]}} for at in range(21, 27)}
    chain["21"]["inputs"]["model"] = ["1", 0]
    outcome, said = doer.do("workflow", {"workflow": changed(_10_model=["26", 0]) | chain}, 300)
    assert (
        outcome == "wrong" and said.startswith("ComfyUI refused the workflow: ") and "Required input is missing" in said
    )


def test_a_workflow_that_takes_too_long_is_taken_back(doer, server):
    outcome, said = doer.do("workflow", {"workflow": changed(_10_steps=9000, _4_width=512, _4_height=512)}, 2)
    assert (outcome, said) == ("broken", "it took longer than 2 seconds")
    queue = server.ask("/queue")
    assert doer.do("workflow", {"workflow": GRAPH}, 300)[0] == "done", queue


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_a_wrong_url_is_one_sentence(url, tmp_path):
    said = Doer(Worker("w", url=url), tmp_path, {}).check({"workflow": {}})
    assert said == "" or "No ComfyUI answers" in said
    said = Doer(Worker("w", url=url), tmp_path, {}).check({"workflow": {"KSampler": {}}})
    assert said.startswith(f"No ComfyUI answers at {url} (") and said.endswith(").")


@pytest.mark.slow
def test_a_comfyui_that_is_killed_is_started_again(tmp_path):
    from pack.tools import hosts

    host = hosts.ready(hosts.Choice(comfyui=os.environ["COMFYUI_PATH"], python=sys.executable))
    place = {"folder": str(host.folder), "python": str(host.python), "version": host.version or ""}
    doer = Doer(Worker("w", host=place), tmp_path, {})
    try:
        first = doer.do("workflow", {"workflow": GRAPH}, 300)
        os.killpg(doer._kind("workflow").server.process.pid, signal.SIGKILL)
        outcome, said = doer.do("workflow", {"workflow": changed(_10_seed=2)}, 300)
        assert outcome == "broken"  # and how far the system is in ending it, when it is asked, says in which words
        assert "ComfyUI ended with code" in said or "the connection to ComfyUI broke" in said
        again = doer.do("workflow", {"workflow": GRAPH}, 300)
        assert again[0] == first[0] == "done" and again[1][:2] == first[1][:2]
    finally:
        doer.close()


# -------------------------------------------------------------------------------------------------------------- report


def reported(folder, order, monkeypatch) -> dict[str, bytes]:
    """The files of a report whose cells were finished in this order."""
    cells = [Cell("echo", {"values": {"at": at}}, {"<b>": at, "seed": 1}) for at in range(4)]
    store = Store(folder)
    for at in order:
        store.keep(
            cells[at], Result({"fd": at / 3, "said": "<script>alert(1)</script>"}, (), at + len(order), f"w{order[0]}")
        )
    report.plan(folder, cells, [Failed(cells[3], "w1: it <i>died</i>")])
    return {path.name: path.read_bytes() for path in report.write_report(folder)}


def test_a_report_is_the_same_whoever_did_the_cells_and_when_and_escapes_all(tmp_path, monkeypatch):
    parquet = pytest.importorskip(
        "pyarrow.parquet", reason="this Python has no pyarrow: python dev.py fleet installs it"
    )
    one, other = reported(tmp_path / "a", [0, 1, 2], monkeypatch), reported(tmp_path / "b", [2, 0, 1], monkeypatch)
    assert one["results.parquet"] == other["results.parquet"] and one["report.html"] == other["report.html"]
    assert one["times.parquet"] != other["times.parquet"]
    page = one["report.html"].decode()
    assert "<script" not in page and "<i>" not in page and "<b>" not in page and "&lt;script&gt;" in page
    table = parquet.read_table(tmp_path / "a/results.parquet").to_pydict()
    assert table["fd"] == [0, 1 / 3, 2 / 3, None] and table["failed"] == ["", "", "", "w1: it <i>died</i>"]


def test_a_folder_without_a_run_is_said(tmp_path):
    pytest.importorskip("pyarrow", reason="this Python has no pyarrow: python dev.py fleet installs it")
    with pytest.raises(Failure, match=r"holds no run of the fleet \(no plan.json\)"):
        report.write_report(tmp_path)

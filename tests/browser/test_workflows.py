"""The examples in the real page: they open complete, say in the API format what workflows/api says, and run.

`python dev.py test tests/browser --update-golden` rewrites workflows/api from workflows. Pictures of the page are left
in output/browser.
"""

import json
import time
from io import BytesIO
from urllib.parse import quote, urlencode

import pytest
from pack.tools import examples
from PIL import Image

NAMES = examples.names()
MARK = "beyondCfgExample"  # of web/examples.js
TEXT = 0.571  # the zoom below which the host draws none

pytestmark = pytest.mark.browser


def open_in(page, name: str):
    page.errors.clear()
    workflow = json.loads(examples.page_of(name).read_text(encoding="utf-8"))
    workflow["extra"].pop("linearMode", None)  # an app's nodes are wanted here
    page.evaluate("workflow => app.loadGraphData(workflow)", workflow)


def converted(page) -> dict:
    return page.evaluate("async () => (await app.graphToPrompt()).output")


def about_us(errors: list[str]) -> list[str]:
    return [error for error in errors if "beyond" in error.lower()]


def bypass(page, *titles: str):
    page.evaluate(
        "titles => app.rootGraph.nodes.forEach(node => { if (titles.includes(node.title)) node.mode = 4 })",
        list(titles),
    )


def sampled(prompt: dict, server) -> int:
    """How many samplers the outputs of this prompt need."""
    kinds = {node["class_type"] for node in prompt.values()}
    outputs = {kind for kind in kinds if server.ask(f"/object_info/{kind}")[kind]["output_node"]}
    ahead, needed = [key for key, node in prompt.items() if node["class_type"] in outputs], set()
    while ahead:
        needed.add(key := ahead.pop())
        ahead += [value[0] for value in prompt[key]["inputs"].values() if isinstance(value, list)]
    return sum(prompt[key]["class_type"] in ("KSampler", "SamplerCustomAdvanced") for key in needed)


def as_on(info: dict, expected: dict, prompt: dict, titled: set[str]) -> tuple[dict, dict, list[str]]:
    """Both prompts, with the titles that an older host gives to nodes that are not `titled`, and without what its page
    adds to the inputs; then which inputs the host lacks. A node that lacks one is left out, since a page reads a node's
    saved values by their places.

    `info`: the host's /object_info."""
    wanted, got, lacks = {}, {}, []
    for key, node in expected.items():
        kind, about = node["class_type"], info[node["class_type"]]
        known = {name for group in about["input"].values() for name in group}
        if unknown := [name for name in node["inputs"] if name.partition(".")[0] not in known]:
            lacks += [f"{name} of {kind}" for name in unknown]
            continue
        wanted[key] = node if key in titled else {**node, "_meta": {"title": about["display_name"] or kind}}
        inputs = prompt[key]["inputs"].items()
        got[key] = {**prompt[key], "inputs": {name: value for name, value in inputs if name.partition(".")[0] in known}}
    return wanted, got, lacks


def test_every_example_has_a_title_and_the_page_has_no_other():
    shown = {path for path in examples.FOLDER.iterdir() if path.suffix == ".json"}
    assert shown == {examples.page_of(name) for name in NAMES}
    assert set(NAMES) == set(examples.TITLES)


@pytest.mark.some_cases(9)
@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_opens_complete_and_converts_to_its_api_form(name, page, graph, server, request, older):
    open_in(page, name)
    missing = page.evaluate(
        "() => app.rootGraph.nodes.map(node => node.type).filter(type => !LiteGraph.registered_node_types[type])"
    )
    assert not missing
    saved = json.loads(examples.page_of(name).read_text(encoding="utf-8"))
    assert page.evaluate("() => app.rootGraph.nodes.length") == len(saved["nodes"])
    assert page.evaluate("() => app.rootGraph.links.size") == len(saved["links"])
    whole(graph, name)

    api = examples.api_of(name)
    prompt = converted(page)
    if request.config.getoption("--update-golden"):
        api.parent.mkdir(exist_ok=True)
        api.write_text(json.dumps(prompt, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    expected, got, lacks = json.loads(api.read_text(encoding="utf-8")), prompt, []
    if older and got != expected:
        assert got.keys() == expected.keys()
        titled = {str(node["id"]) for node in saved["nodes"] if node.get("title")}
        expected, got, lacks = as_on(server.ask("/object_info"), expected, got, titled)
    assert got == expected, "python dev.py test tests/browser --update-golden"
    both = sampled(prompt, server)
    if both > 1:  # the note: who bypasses these has the guided picture only
        bypass(page, "Batch Images", "SaveAnimatedWEBP: without")
        assert sampled(converted(page), server) == (2 if name == "sims_training" else 1) < both
    assert not about_us(page.errors)
    if lacks:
        pytest.skip(f"this host has no {' and no '.join(lacks)}: all but that node is as it should be")


@pytest.mark.some_cases(6)
@pytest.mark.parametrize("name", NAMES)
def test_it_opens_at_a_size_at_which_a_laptop_shows_text(name, page, graph):
    page.set_viewport_size({"width": 1536, "height": 864})
    workflow = json.loads(examples.page_of(name).read_text(encoding="utf-8"))
    open_as_template(page, workflow)
    view = workflow["extra"]["ds"]
    page.wait_for_function("view => Math.abs(app.canvas.ds.scale - view.scale) < 1e-6", arg=view)
    scale, *offset = page.evaluate("() => [app.canvas.ds.scale, ...app.canvas.ds.offset]")
    assert [scale, *offset] == pytest.approx([view["scale"], *view["offset"]]) and scale > TEXT
    graph.photograph(f"laptop_{name}")
    saved = page.evaluate("() => app.rootGraph.serialize().extra")
    assert MARK not in saved  # so that a user's own view of it is kept
    page.set_viewport_size({"width": 2000, "height": 1050})


def open_as_template(page, workflow: dict):
    """As the page does from its list of templates, which fits the view to all of the graph."""
    source = "workflow => app.loadGraphData(workflow, true, true, null, { openSource: 'template' })"
    page.evaluate(source, workflow)


def test_without_the_mark_the_page_fits_a_template_to_its_window(newest_page, page):
    workflow = json.loads(examples.page_of("pag_sdxl").read_text(encoding="utf-8"))
    del workflow["extra"][MARK]
    open_as_template(page, workflow)
    page.wait_for_timeout(300)
    assert page.evaluate("() => app.canvas.ds.scale") != pytest.approx(workflow["extra"]["ds"]["scale"], abs=0.01)


def test_the_app_opens_as_one_with_the_few_settings_that_it_is_for(newest_page, page, graph):
    workflow = json.loads(examples.page_of("easy_app").read_text(encoding="utf-8"))
    page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
    for setting in "prompt", "problem", "strength", "seed":
        page.get_by_text(setting, exact=True).locator("visible=true").first.wait_for(timeout=30_000)
    graph.photograph("app")
    open_in(page, "pag_sdxl")  # which shows its nodes again
    page.get_by_text("Number of runs").wait_for(state="detached", timeout=30_000)


def whole(graph, name: str):
    """A picture of all of it."""
    graph.page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    graph.page.wait_for_timeout(1500)  # the view moves there
    graph.photograph(name)


@pytest.mark.parametrize("name", ["cfg_pag_seg_compose", "pag_guider", "guidance_report"])
def test_a_workflow_runs_from_the_page_to_pictures(name, page, graph, server):
    server.get("/history", {"clear": True})
    open_in(page, name)
    graph.set("CheckpointLoaderSimple", "ckpt_name", "tiny_sd15.ckpt")
    for side in "width", "height":
        graph.set("EmptyLatentImage", side, 128)
    for node in "KSampler", "BasicScheduler":
        graph.set(node, "steps", 4)
    graph.run()

    deadline = time.monotonic() + 120
    while not (history := server.ask("/history")):
        assert time.monotonic() < deadline, "nothing in the history: was it refused? " + "; ".join(page.errors)
        page.wait_for_timeout(500)
    (record,) = history.values()
    assert record["status"]["status_str"] == "success", record["status"]
    shown = [image for output in record["outputs"].values() for image in output["images"]]
    assert len(shown) == (4 if name == "guidance_report" else 2)
    for image in shown:
        with Image.open(BytesIO(server.get("/view?" + urlencode(image)))) as drawn:
            assert drawn.size == (128, 128) if image["type"] == "output" else min(drawn.size) > 128
            assert len(drawn.convert("L").getcolors()) > 16, "the picture is almost flat"
    page.wait_for_function(
        """() => app.rootGraph.nodes.filter(node => ["SaveImage", "BeyondCFGGrid", "BeyondCFGReport"].includes(node.type))
            .every(node => node.imgs?.length)"""
    )
    whole(graph, f"after_a_run_{name}")
    assert not about_us(page.errors)


def test_the_template_browser_lists_every_workflow(server):
    (folder,) = (folder for folder in server.ask("/workflow_templates") if "beyond-cfg" in folder)
    assert sorted(server.ask("/workflow_templates")[folder]) == sorted(map(examples.title_of, NAMES))
    for name in NAMES:
        title = quote(examples.title_of(name))
        assert server.get(f"/api/workflow_templates/{folder}/{title}.jpg")[:2] == b"\xff\xd8"

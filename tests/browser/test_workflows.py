"""The examples in the real page: they open complete, say in the API format what workflows/api says, and run.

`python dev.py test tests/browser --update-golden` rewrites workflows/api from workflows. Pictures of the page are left
in output/browser.
"""

import json
import time
from io import BytesIO
from pathlib import Path
from urllib.parse import urlencode

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
PICTURES = ROOT / "output" / "browser"

pytestmark = pytest.mark.browser


def open_in(page, workflow: Path):
    page.errors.clear()
    page.evaluate("workflow => app.loadGraphData(workflow)", json.loads(workflow.read_text(encoding="utf-8")))


def converted(page) -> dict:
    return page.evaluate("async () => (await app.graphToPrompt()).output")


def about_us(errors: list[str]) -> list[str]:
    return [error for error in errors if "beyond" in error.lower()]


def set_widget(page, node_type: str, name: str, value):
    page.evaluate(
        """([type, name, value]) => {
            const node = app.rootGraph.nodes.find(node => node.type === type)
            node.widgets.find(widget => widget.name === name).value = value
        }""",
        [node_type, name, value],
    )


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_opens_complete_and_converts_to_its_api_form(workflow, page, request):
    open_in(page, workflow)
    missing = page.evaluate(
        "() => app.rootGraph.nodes.map(node => node.type).filter(type => !LiteGraph.registered_node_types[type])"
    )
    assert not missing
    saved = json.loads(workflow.read_text(encoding="utf-8"))
    assert page.evaluate("() => app.rootGraph.nodes.length") == len(saved["nodes"])
    assert page.evaluate("() => app.rootGraph.links.size") == len(saved["links"])
    picture(page, workflow.stem)

    api = ROOT / "workflows" / "api" / workflow.name
    prompt = converted(page)
    if request.config.getoption("--update-golden"):
        api.parent.mkdir(exist_ok=True)
        api.write_text(json.dumps(prompt, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    assert prompt == json.loads(api.read_text(encoding="utf-8")), "python dev.py test tests/browser --update-golden"
    assert not about_us(page.errors)


def picture(page, name: str):
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(1500)  # the view moves there
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png")


def test_a_workflow_runs_from_the_page_to_a_picture(page, server):
    server.get("/history", {"clear": True})
    open_in(page, ROOT / "workflows" / "cfg_interval_pag.json")
    set_widget(page, "CheckpointLoaderSimple", "ckpt_name", "tiny_sd15.ckpt")
    for side in "width", "height":
        set_widget(page, "EmptyLatentImage", side, 128)
    set_widget(page, "KSampler", "steps", 4)
    page.evaluate("() => app.queuePrompt(0)")

    deadline = time.monotonic() + 120
    while not (history := server.ask("/history")):
        assert time.monotonic() < deadline, "nothing in the history: was it refused? " + "; ".join(page.errors)
        page.wait_for_timeout(500)
    (record,) = history.values()
    assert record["status"]["status_str"] == "success", record["status"]
    ((saved,),) = (output["images"] for output in record["outputs"].values())
    with Image.open(BytesIO(server.get("/view?" + urlencode(saved)))) as image:
        assert image.size == (128, 128)
        assert len(image.convert("L").getcolors()) > 16, "the picture is almost flat"
    page.wait_for_function("() => app.rootGraph.nodes.find(node => node.type === 'SaveImage').imgs?.length")
    picture(page, "after_a_run")
    assert not about_us(page.errors)


def test_the_template_browser_lists_every_workflow(server):
    (folder,) = (folder for folder in server.ask("/workflow_templates") if "beyond-cfg" in folder)
    assert sorted(server.ask("/workflow_templates")[folder]) == [workflow.stem for workflow in WORKFLOWS]
    for workflow in WORKFLOWS:
        assert server.get(f"/api/workflow_templates/{folder}/{workflow.stem}.jpg")[:2] == b"\xff\xd8"

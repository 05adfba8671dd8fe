"""Help pages on a running host: it serves each, and the page shows a node's own beside it."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted((ROOT / "web" / "docs").glob("*.md"))

pytestmark = pytest.mark.browser


def folder(server) -> str:
    """The pack's in custom_nodes, as the host calls it."""
    return server.ask("/object_info/BeyondCFGPAG")["BeyondCFGPAG"]["python_module"].rpartition(".")[2]


def test_the_host_serves_every_page(server):
    assert PAGES
    for path in PAGES:
        assert server.get(f"/extensions/{folder(server)}/docs/{path.name}") == path.read_bytes()


def test_a_nodes_help_opens_beside_it(page):
    workflow = json.loads((ROOT / "workflows" / "pag_ksampler.json").read_text(encoding="utf-8"))
    page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
    page.evaluate("() => app.canvas.selectItems(app.rootGraph.nodes.filter(node => node.type === 'BeyondCFGPAG'))")
    page.get_by_test_id("info-button").click()
    shown = page.locator(".node-help-content")
    shown.get_by_role("heading", name="When to use it").wait_for(timeout=30_000)
    assert shown.get_by_role("heading", level=1).first.inner_text() == "PAG"
    assert shown.locator("table", has_text="Stable Diffusion 1, 2, XL, SVD").count() == 1
    pictures = ROOT / "output" / "browser"
    pictures.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=pictures / "help.png")

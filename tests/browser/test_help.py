"""Help pages on a running host: it serves each, and the page shows each node's own beside it."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted((ROOT / "web" / "docs").glob("*.md"))
CHINESE = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))

NARROW = 270  # px: the help beside the graph of a page 1536 px wide
# What would have to be scrolled sideways, where the help is so wide.
TOO_WIDE = """async (help, width) => {
    help.style.width = help.style.maxWidth = `${width}px`
    await new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))
    const right = help.getBoundingClientRect().right + 1
    const found = [...help.querySelectorAll('*')].filter(part =>
        part.scrollWidth > part.clientWidth + 1 && getComputedStyle(part).display !== 'inline'
        || part.getBoundingClientRect().right > right)
    help.style.width = help.style.maxWidth = ''
    return found.map(part => `${part.tagName}: ${part.textContent.slice(0, 60)}`)
}"""

pytestmark = pytest.mark.browser


def folder(server) -> str:
    """The pack's in custom_nodes, as the host calls it."""
    return server.ask("/object_info/BeyondCFGPAG")["BeyondCFGPAG"]["python_module"].rpartition(".")[2]


def test_the_host_serves_every_page(server):
    assert PAGES
    for path in PAGES:
        assert server.get(f"/extensions/{folder(server)}/docs/{path.name}") == path.read_bytes()


@pytest.mark.some_cases(10)
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_nodes_help_opens_beside_it(path, page, graph):
    graph.only(path.stem)
    shown = page.locator(".node-help-content")
    if not shown.count():  # it stays open, and follows what is selected
        page.get_by_test_id("info-button").click()
    title, *sections = re.findall(r"^#+ (.*)$", text := path.read_text(encoding="utf-8"), re.M)
    shown.get_by_role("heading", level=1, name=title, exact=True).wait_for(timeout=30_000)
    assert shown.get_by_role("heading").all_inner_texts() == [title, *sections]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert shown.locator("tr").count() == len([row for row in rows if not set(row) <= set("|-: ")])
    for picture in shown.locator("img").all():
        picture.scroll_into_view_if_needed()
        page.wait_for_function("picture => picture.naturalWidth > 100", arg=picture.element_handle(), timeout=30_000)
    assert shown.locator("img").count() == text.count("![")
    graph.photograph(f"help_{path.stem}")
    assert shown.evaluate(TOO_WIDE, NARROW) == []


def test_in_chinese_a_node_has_its_chinese_name_and_words(open_page):
    with open_page(Locale="zh") as page:
        title, description = page.evaluate(
            """() => {
                const type = LiteGraph.registered_node_types.BeyondCFGInterval
                return [LiteGraph.createNode('BeyondCFGInterval').title, type.nodeData.description]
            }"""
        )
    assert title == CHINESE["BeyondCFGInterval"]["display_name"]
    assert description == CHINESE["BeyondCFGInterval"]["description"]

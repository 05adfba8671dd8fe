"""The page's own search for nodes finds ours by what people call them."""

import pytest

WORDS = {
    "PAG": "PAG",
    "perturbed attention": "PAG",
    "autoguidance": "Autoguidance",
    "weak model": "Autoguidance",
    "skip layer": "Skip Layer",
    "SLG": "Skip Layer",
    "self-attention guidance": "SAG",
    "smoothed energy": "SEG",
    "apg": "Adaptive Projected",
    "guidance interval": "CFG Interval",
    "guidance schedule": "Guidance Schedule",
    "compare": "Guidance Grid",
}

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("newest_page")]


@pytest.fixture
def search(page):
    """Type words into the box that opens on a double click, and read the names of what it lists."""
    page.evaluate("() => app.rootGraph.clear()")
    box = page.locator("[role=combobox][aria-controls=results-list]")
    for _ in range(30):  # the page may take a click for the second of an earlier one
        if box.is_visible():
            break
        page.mouse.dblclick(1000, 700)
        page.wait_for_timeout(1000)
    box.wait_for(timeout=1_000)
    results = page.get_by_test_id("result-item")

    def names(words: str) -> list[str]:
        box.fill("nothing is called this")
        results.first.wait_for(state="detached", timeout=30_000)
        box.fill(words)
        results.first.wait_for(timeout=30_000)
        return [text.splitlines()[0] for text in results.all_inner_texts()]

    yield names
    page.keyboard.press("Escape")
    box.wait_for(state="detached", timeout=30_000)


def test_ours_are_among_the_first_that_are_found(search, graph):
    for words, name in WORDS.items():
        assert name in search(words)[:5], words
        graph.photograph(f"search_{words.replace(' ', '_')}")


def test_every_node_is_found_by_its_own_name(search, server):
    names = [
        node["display_name"]
        for node in server.ask("/object_info").values()
        if node["category"].startswith("Beyond CFG/")
    ]
    assert names
    for name in names:
        assert name in search(name)[:5]

"""Guidance Schedule in the real page: its curve shows, and follows what is edited."""

from pathlib import Path

import pytest

PICTURES = Path(__file__).resolve().parent.parent.parent / "output" / "browser"
IMAGE = "document.querySelector('.beyond-cfg-schedule img')"
NODE = "app.rootGraph.nodes.find(node => node.type === 'BeyondCFGSchedule')"

pytestmark = pytest.mark.browser


def set_widget(page, name: str, value):
    page.evaluate(
        f"([name, value]) => {{ {NODE}.widgets.find(one => one.name === name).value = value }}", [name, value]
    )


def shown(page) -> str:
    return page.evaluate(f"() => {IMAGE}?.src ?? ''")


def test_the_curve_is_drawn_and_drawn_again_when_a_value_changes_and_an_error_is_said(page):
    page.errors.clear()
    page.evaluate(
        """() => {
            app.rootGraph.clear()
            const node = LiteGraph.createNode('BeyondCFGSchedule')
            node.pos = [300, 200]
            app.rootGraph.add(node)
        }"""
    )
    box = page.locator(".beyond-cfg-schedule")
    box.locator("img").wait_for(state="attached", timeout=30_000)
    width, height = page.evaluate(
        f"() => {{ const image = {IMAGE}; return [image.naturalWidth, image.naturalHeight] }}"
    )
    assert width > 300 and height > 100
    assert page.evaluate(f"() => {NODE}.size[1] >= {NODE}.computeSize()[1]")  # it has room
    first = shown(page)
    set_widget(page, "end", 0.7)
    page.wait_for_function(f"() => {IMAGE} && {IMAGE}.src !== '{first}'", timeout=10_000)
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.evaluate("() => app.canvas.setDirty(true, true)")
    page.wait_for_timeout(500)
    page.screenshot(path=PICTURES / "schedule.png")

    set_widget(page, "curve_type", "points")
    set_widget(page, "points", "0: 1, nonsense")
    box.get_by_text("write pairs of where and strength").wait_for(timeout=10_000)
    set_widget(page, "points", "0: 1, 0.4: 0")
    box.locator("img").wait_for(state="attached", timeout=10_000)
    (node,) = page.evaluate("async () => (await app.graphToPrompt()).output").values()
    assert "picture" not in node["inputs"]  # what is drawn is no part of a workflow
    assert not [error for error in page.errors if "beyond" in error.lower()]

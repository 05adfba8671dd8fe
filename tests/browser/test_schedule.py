"""Guidance Schedule in the real page: its curve shows, and follows what is edited."""

import pytest

IMAGE = "document.querySelector('.beyond-cfg-schedule img')"
NODE = "app.rootGraph.nodes.find(node => node.type === 'BeyondCFGSchedule')"
PIXELS = f"""() => {{
    const image = {IMAGE}
    if (!image?.naturalWidth) return ''
    const canvas = document.createElement('canvas')
    ;[canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight]
    canvas.getContext('2d').drawImage(image, 0, 0)
    return canvas.toDataURL()
}}"""

pytestmark = pytest.mark.browser


def shown(page) -> str:
    """The curve's pixels, or nothing."""
    return page.evaluate(PIXELS)


def wait_for_another(page, before: str):
    page.wait_for_function(f"old => ![old, ''].includes(({PIXELS})())", arg=before, timeout=30_000)


def test_the_curve_is_drawn_and_drawn_again_when_a_value_changes_and_an_error_is_said(page, graph):
    page.errors.clear()
    graph.only("BeyondCFGSchedule")
    box = page.locator(".beyond-cfg-schedule")
    box.locator("img").wait_for(state="attached", timeout=30_000)
    wait_for_another(page, "")
    width, height = page.evaluate(f"() => [{IMAGE}.naturalWidth, {IMAGE}.naturalHeight]")
    assert width > 300 and height > 100
    assert page.evaluate(f"() => {NODE}.size[1] >= {NODE}.computeSize()[1]")  # it has room
    first = shown(page)
    graph.set("BeyondCFGSchedule", "end", 0.7)
    wait_for_another(page, first)
    graph.photograph("schedule")

    graph.set("BeyondCFGSchedule", "curve_type", "points")
    graph.set("BeyondCFGSchedule", "points", "0: 1, nonsense")
    box.get_by_text("write pairs of where and strength").wait_for(timeout=30_000)
    graph.photograph("schedule_error")
    graph.set("BeyondCFGSchedule", "points", "0: 1, 0.4: 0")
    box.locator("img").wait_for(state="attached", timeout=30_000)
    (node,) = page.evaluate("async () => (await app.graphToPrompt()).output").values()
    assert "picture" not in node["inputs"]  # what is drawn is no part of a workflow
    assert not [error for error in page.errors if "beyond" in error.lower()]


def test_of_a_workflow_that_opens_the_saved_curve_is_drawn_and_follows_too(page, graph):
    graph.only("BeyondCFGSchedule")
    graph.set("BeyondCFGSchedule", "start", 0.2)
    saved = page.evaluate(f"() => {{ {NODE}.size = [210, 120]; return app.rootGraph.serialize() }}")
    page.evaluate("() => app.rootGraph.clear()")
    with page.expect_response(lambda answer: "beyond_cfg_schedule?" in answer.url and "start=0.2" in answer.url):
        page.evaluate("workflow => app.loadGraphData(workflow)", saved)
    wait_for_another(page, "")
    assert page.evaluate(f"() => {NODE}.size[1] >= {NODE}.computeSize()[1]")  # saved smaller, it has got room
    before = shown(page)
    graph.set("BeyondCFGSchedule", "curve_type", "cosine")
    wait_for_another(page, before)
    graph.photograph("schedule_opened")


def test_it_follows_the_mouse_where_the_page_draws_nodes_in_the_new_way(newest_page, open_page, graph_of):
    with open_page(**{"VueNodes.Enabled": True}) as page:
        graph = graph_of(page)
        graph.only("BeyondCFGSchedule")
        wait_for_another(page, "")
        before = shown(page)
        end = page.get_by_test_id("node-widget").filter(has_text="end")
        end.get_by_test_id("increment").click()
        wait_for_another(page, before)
        graph.photograph("schedule_vue")

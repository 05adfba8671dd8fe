"""Guidance Schedule in the real page: its curve shows, follows what is edited, and can be drawn with the mouse."""

import pytest

NODE = "app.rootGraph.nodes.find(node => node.type === 'BeyondCFGSchedule')"
LINE = "() => document.querySelector('.beyond-cfg-schedule polyline')?.getAttribute('points') ?? ''"
SHOWN = f"() => {NODE}.widgets.filter(widget => !widget.hidden && widget.name !== 'picture').map(widget => widget.name)"

pytestmark = pytest.mark.browser


def shown(page) -> str:
    """The curve's line, or nothing."""
    return page.evaluate(LINE)


def wait_for_another(page, before: str):
    page.wait_for_function(f"old => ![old, ''].includes(({LINE})())", arg=before, timeout=30_000)


def value(page, name: str):
    return page.evaluate(f"name => {NODE}.widgets.find(widget => widget.name === name).value", name)


def drag(page, handle: int, right: float, down: float):
    """Drag a handle by so many pixels."""
    box = page.locator(f".beyond-cfg-schedule circle[data-at='{handle}']").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + right / 2, y + down / 2)
    page.mouse.move(x + right, y + down)
    page.mouse.up()
    page.wait_for_timeout(600)  # the host has answered, and its curve is drawn


def test_the_curve_is_drawn_and_drawn_again_when_a_value_changes_and_an_error_is_said(page, graph):
    page.errors.clear()
    graph.only("BeyondCFGSchedule")
    box = page.locator(".beyond-cfg-schedule")
    wait_for_another(page, "")
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
    box.locator("svg").wait_for(state="attached", timeout=30_000)
    (node,) = page.evaluate("async () => (await app.graphToPrompt()).output").values()
    assert "picture" not in node["inputs"]  # what is drawn is no part of a workflow
    assert {"start", "power", "points"} <= node["inputs"].keys()  # hidden or not
    assert not [error for error in page.errors if "beyond" in error.lower()]


def test_settings_without_use_are_hidden_and_the_picture_keeps_its_height(page, graph):
    graph.only("BeyondCFGSchedule")
    wait_for_another(page, "")
    height = page.locator(".beyond-cfg-schedule").bounding_box()["height"]
    for curve, settings in {
        "power": ["curve_type", "start", "end", "power"],
        "points": ["curve_type", "points", "over"],
        "linear": ["curve_type", "start", "end"],
    }.items():
        graph.set("BeyondCFGSchedule", "curve_type", curve)
        page.wait_for_function(f"names => ({SHOWN})().join() === names.join()", arg=settings, timeout=30_000)
        page.wait_for_timeout(300)
        assert page.locator(".beyond-cfg-schedule").bounding_box()["height"] == pytest.approx(height, abs=2)


def test_of_a_workflow_that_opens_the_saved_curve_is_drawn_and_follows_too(page, graph):
    graph.only("BeyondCFGSchedule")
    graph.set("BeyondCFGSchedule", "start", 0.2)
    graph.set("BeyondCFGSchedule", "curve_type", "points")
    page.wait_for_function(f"() => ({SHOWN})().includes('over')", timeout=30_000)
    saved = page.evaluate(f"() => {{ {NODE}.size = [210, 120]; return app.rootGraph.serialize() }}")
    page.evaluate("() => app.rootGraph.clear()")
    page.evaluate("workflow => app.loadGraphData(workflow)", saved)
    wait_for_another(page, "")
    assert page.evaluate(f"() => {NODE}.size[1] >= {NODE}.computeSize()[1]")  # saved smaller, it has got room
    assert value(page, "start") == 0.2 and page.evaluate(SHOWN) == ["curve_type", "points", "over"]
    before = shown(page)
    graph.set("BeyondCFGSchedule", "points", "0: 0, 1: 0.3")
    wait_for_another(page, before)
    graph.photograph("schedule_opened")

    saved = page.evaluate(f"() => {{ {NODE}.size = [300, 400]; return app.rootGraph.serialize() }}")
    page.evaluate("workflow => app.loadGraphData(workflow)", saved)
    page.wait_for_timeout(1000)
    assert page.evaluate(f"() => [...{NODE}.size]") == [300, 400]


def try_the_mouse(page, graph, photograph: str):
    graph.only("BeyondCFGSchedule")
    wait_for_another(page, "")
    drag(page, 1, 0, -60)
    assert value(page, "end") > 0.3 and value(page, "start") == 1
    graph.set("BeyondCFGSchedule", "curve_type", "points")
    graph.set("BeyondCFGSchedule", "points", "0: 1, 0.4: 0.2, 1: 0")
    page.locator(".beyond-cfg-schedule circle[data-at='2']").wait_for(state="attached", timeout=30_000)
    before = shown(page)
    drag(page, 1, 30, -40)
    wait_for_another(page, before)
    where, strength = map(float, value(page, "points").split(", ")[1].split(": "))
    assert 0.45 < where < 0.8 and 0.4 < strength < 1
    drag(page, 1, 400, 0)  # past the last: it stays between its neighbours
    assert [point.split(": ")[0] for point in value(page, "points").split(", ")] == ["0", "0.99", "1"]
    drag(page, 1, -60, 0)
    box = page.locator(".beyond-cfg-schedule svg").bounding_box()
    page.mouse.dblclick(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.3)
    page.locator(".beyond-cfg-schedule circle[data-at='3']").wait_for(state="attached", timeout=30_000)
    graph.photograph(photograph)
    page.locator(".beyond-cfg-schedule circle[data-at='1']").dblclick()
    page.locator(".beyond-cfg-schedule circle[data-at='3']").wait_for(state="detached", timeout=30_000)
    assert len(value(page, "points").split(", ")) == 3


def test_points_are_dragged_added_and_taken_away_with_the_mouse(page, graph):
    try_the_mouse(page, graph, "schedule_points")


def test_points_over_noise_levels_begin_on_the_left_with_the_highest(page, graph):
    graph.only("BeyondCFGSchedule")
    graph.set("BeyondCFGSchedule", "curve_type", "points")
    graph.set("BeyondCFGSchedule", "over", "sigma")
    graph.set("BeyondCFGSchedule", "points", "14: 0, 0.3: 0, 5: 1")
    page.locator(".beyond-cfg-schedule").get_by_text("noise level").wait_for(timeout=30_000)
    lefts = [page.locator(f".beyond-cfg-schedule circle[data-at='{at}']").bounding_box()["x"] for at in range(3)]
    assert lefts == sorted(lefts, reverse=True)
    graph.photograph("schedule_sigma")


def test_it_follows_the_mouse_where_the_page_draws_nodes_in_the_new_way(newest_page, open_page, graph_of):
    with open_page(**{"VueNodes.Enabled": True}) as page:
        graph = graph_of(page)
        graph.only("BeyondCFGSchedule")
        wait_for_another(page, "")
        widgets = page.get_by_test_id("node-widget")
        before = shown(page)
        widgets.filter(has_text="end").get_by_test_id("increment").click()
        wait_for_another(page, before)
        assert not widgets.filter(has_text="power").count()
        graph.set("BeyondCFGSchedule", "curve_type", "power")
        widgets.filter(has_text="power").last.wait_for(timeout=30_000)
        try_the_mouse(page, graph, "schedule_vue")


def test_it_is_drawn_in_the_colours_of_a_light_page(newest_page, open_page, graph_of):
    with open_page(ColorPalette="light") as page:
        graph = graph_of(page)
        graph.only("BeyondCFGSchedule")
        wait_for_another(page, "")
        graph.photograph("schedule_light")

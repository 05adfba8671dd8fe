"""Layer Map in the real page: it can be read at 100 %, and a click on a layer writes `layers`."""

import random

import pytest
from pack.patches.host import layer_map
from pack.patches.layers import parse
from pack.tests.host.harness import network

BOX = ".beyond-cfg-layers"
LAYERS = "type => app.rootGraph.nodes.find(node => node.type === type).widgets.find(one => one.name === 'layers').value"
SMALLEST = """() => Math.min(...[...document.querySelectorAll('.beyond-cfg-layers *')]
    .filter(one => [...one.childNodes].some(child => child.nodeType === 3 && child.textContent.trim()))
    .map(one => parseFloat(getComputedStyle(one).fontSize)))"""
IN_SIGHT = """() => {
    const box = document.querySelector('.beyond-cfg-layers').getBoundingClientRect()
    const cells = [...document.querySelectorAll('.beyond-cfg-layers button')].map(one => one.getBoundingClientRect())
    return cells.every(one => one.left >= box.left && one.right <= box.right && one.bottom <= box.bottom + 1)
}"""

pytestmark = pytest.mark.browser
NODES = pytest.mark.parametrize("drawn_by_vue", [False, True], ids=["classic", "nodes 2.0"])


def chosen(page) -> list[str]:
    """The layers that are coloured."""
    return page.evaluate(
        f"() => [...document.querySelectorAll(`{BOX} [aria-pressed=true]`)].map(one => one.dataset.layers)"
    )


@NODES
def test_it_shows_the_network_and_a_click_chooses_layers(nodes, graph, page):
    loader, pag, shown, listed = (
        f"{number}{len(nodes)}" for number in range(1, 5)
    )  # the page keeps what a number showed
    graph.load({
        loader: ("CheckpointLoaderSimple", {"ckpt_name": "tiny_flux.ckpt"}),
        pag: ("BeyondCFGPAG", {"model": [loader, 0]}),
        shown: ("BeyondCFGLayerMap", {"model": [loader, 0], "layers": "auto", "width": 512, "height": 512}),
        listed: ("PreviewAny", {"source": [shown, 1]}),
    })  # fmt: skip
    page.evaluate(
        """() => {
            const node = app.rootGraph.nodes.find(node => node.type === 'BeyondCFGLayerMap')
            app.canvas.ds.scale = 1
            app.canvas.ds.offset = [300 - node.pos[0], 200 - node.pos[1]]
        }"""
    )
    graph.run()
    cell = page.locator(BOX).locator("button[data-layers='double.1']")
    cell.wait_for(timeout=120_000)
    page.wait_for_timeout(500)
    before = chosen(page)
    assert before and page.evaluate(LAYERS, "BeyondCFGLayerMap") == "auto"
    assert page.evaluate(SMALLEST) >= 11 and page.evaluate(IN_SIGHT)
    graph.photograph(f"layer_map{nodes}")
    cell.click()
    text = page.evaluate(LAYERS, "BeyondCFGLayerMap")
    assert "double.1" in text and chosen(page) == sorted([*before, "double.1"], key=chosen(page).index)
    cell.click()
    assert page.evaluate(LAYERS, "BeyondCFGLayerMap") == "auto" and chosen(page) == before
    cell.click()
    page.locator(BOX).get_by_role("button", name="Perturbed-Attention Guidance").click()
    assert page.evaluate(LAYERS, "BeyondCFGPAG") == text
    seen = chosen(page)
    graph.run()  # the host reads what was written as it is shown
    page.wait_for_timeout(500)
    page.wait_for_function("() => app.ui.lastQueueSize === 0", timeout=60_000)
    assert chosen(page) == seen
    graph.photograph(f"layer_map_clicked{nodes}")


def test_the_map_is_no_part_of_a_workflow_and_there_again_after_undo(graph, page):
    graph.load({
        "1": ("CheckpointLoaderSimple", {"ckpt_name": "tiny_sd15.ckpt"}),
        "2": ("BeyondCFGLayerMap", {"model": ["1", 0], "layers": "middle", "width": 512, "height": 512}),
    })  # fmt: skip
    page.locator(BOX).get_by_text("Run this node once").wait_for()
    graph.run()
    page.locator(BOX).locator("button[data-layers='middle']").wait_for(timeout=120_000)
    page.wait_for_function("() => app.ui.lastQueueSize === 0", timeout=60_000)
    (node,) = (one for one in page.evaluate("async () => Object.values((await app.graphToPrompt()).output)")
               if one["class_type"] == "BeyondCFGLayerMap")  # fmt: skip
    assert "map" not in node["inputs"]
    page.evaluate("() => app.loadGraphData(app.rootGraph.serialize(), false)")  # as undo does
    page.locator(BOX).locator("button[data-layers='middle']").wait_for(timeout=30_000)
    graph.set("BeyondCFGLayerMap", "layers", "auto")
    page.evaluate("() => app.loadGraphData(app.rootGraph.serialize(), false)")
    page.locator(BOX).get_by_text("Run this node once").wait_for()


@pytest.mark.parametrize("kind", ["sdxl", "flux", "wan"])
def test_whatever_is_clicked_the_text_means_it(kind, page):
    model = network(kind)
    found = layer_map(model, "auto", 512, 512)
    draw = random.Random(kind)
    choices = [draw.sample(found.layers, draw.randint(1, len(found.layers))) for _ in range(60)]
    choices += [found.layers, found.auto, found.layers[:1], found.layers[1:]]
    texts = page.evaluate(
        """async ([drawing, choices]) => {
            const { name } = performance.getEntriesByType('resource').find(one => one.name.endsWith('/layer_map.js'))
            const { textOf } = await import(name)
            return choices.map(layers => textOf(drawing, new Set(layers)))
        }""",
        [found.drawing(), [[str(layer) for layer in layers] for layers in choices]],
    )
    assert texts[-3] == "auto" and (kind == "wan" or any("-" in text for text in texts))
    for layers, text in zip(choices, texts, strict=True):
        assert set(parse(text, found.layers, found.auto)) == {*layers}, text

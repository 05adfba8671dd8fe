"""No two nodes of an example overlap, in neither way in which the page draws nodes, also when they show their pictures."""

import json
from itertools import combinations

import pytest
from pack.tools import examples
from pack.tools.layout import move_apart, overlap

NODES = pytest.mark.parametrize("drawn_by_vue", [False, True], ids=["classic", "nodes 2.0"])
NARROWEST = 225  # of a node that is an element of the page
SHOW = """async () => {
    const canvas = document.createElement('canvas')
    ;[canvas.width, canvas.height] = [512, 512]
    canvas.getContext('2d').fillRect(0, 0, 256, 256)
    const body = new FormData()
    body.append('image', await new Promise(made => canvas.toBlob(made)), 'square.png')
    body.append('type', 'temp')
    body.append('overwrite', 'true')
    await app.api.fetchApi('/upload/image', { method: 'POST', body })
    const images = [{ filename: 'square.png', subfolder: '', type: 'temp' }]
    for (const node of app.rootGraph.nodes.filter(node => node.constructor.nodeData?.output_node)) {
        const detail = { node: String(node.id), display_node: String(node.id), output: { images }, prompt_id: 'test' }
        app.api.dispatchCustomEvent('executed', detail)
    }
}"""
SIZES = """() => Object.fromEntries(app.rootGraph.nodes.map(node => {
    const element = document.querySelector(`.lg-node[data-node-id="${node.id}"]`)
    if (!element || !LiteGraph.vueNodesMode) return [node.id, [...node.size]]
    const seen = element.getBoundingClientRect()
    const scale = app.canvas.ds.scale
    return [node.id, [seen.width / scale, seen.height / scale - LiteGraph.NODE_TITLE_HEIGHT]]
}))"""

pytestmark = pytest.mark.browser


def sizes_of(workflow: dict, page) -> dict[int, tuple[float, float]]:
    """Node id → width and height at most, before and after it shows a picture."""
    extra = {key: value for key, value in workflow["extra"].items() if key != "linearMode"}  # an app's nodes are wanted
    page.evaluate("workflow => app.loadGraphData(workflow)", workflow | {"extra": extra})
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(700)
    before = page.evaluate(SIZES)
    page.evaluate(SHOW)
    page.wait_for_timeout(1000)
    after = page.evaluate(SIZES)
    return {int(key): tuple(map(max, before[key], after[key])) for key in before}


def overlapping(workflow: dict, sizes: dict) -> list[tuple[str, str]]:
    """The names of nodes that overlap, two by two."""
    called = {node["id"]: node.get("title") or node["type"] for node in workflow["nodes"]}
    pairs = combinations(workflow["nodes"], 2)
    return [(called[one["id"]], called[other["id"]]) for one, other in pairs if min(overlap(one, other, sizes)) > 1]


@pytest.mark.some_cases(10)
@NODES
@pytest.mark.parametrize("name", examples.names())
def test_no_two_nodes_overlap(name, nodes, page, graph, request):
    path = examples.page_of(name)
    workflow = json.loads(path.read_text(encoding="utf-8"))
    sizes = sizes_of(workflow, page)
    graph.photograph(f"layout_{name}{nodes}")
    if request.config.getoption("--update-golden"):
        for node in workflow["nodes"]:
            node["size"][0] = max(node["size"][0], NARROWEST)
        move_apart(workflow, sizes)
        path.write_text(json.dumps(workflow, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    assert not overlapping(workflow, sizes), "python dev.py test tests/browser/test_layout.py --update-golden"


@NODES
def test_nor_do_they_after_a_run(nodes, page, graph):
    workflow = json.loads(examples.page_of("guidance_report").read_text(encoding="utf-8"))
    graph.open("guidance_report")
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    graph.run_to_the_end()
    page.wait_for_timeout(1500)
    graph.photograph(f"layout_after_a_run{nodes}")
    assert not overlapping(workflow, {int(key): size for key, size in page.evaluate(SIZES).items()})

"""A saved workflow with a node of another pack that is missing: the page offers to swap it, and what it had stays."""

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("newest_page")]

LINKS = [[1, 1, 0, 2, 0, "MODEL"], [2, 2, 0, 3, 0, "MODEL"], [3, 4, 0, 2, 1, "FLOAT"]]


def pag(values: list) -> dict:
    """The same workflow with sd-perturbed-attention's PAG in the place of Epsilon Scaling."""
    workflow = saved(1.2)
    (node,) = (node for node in workflow["nodes"] if node["id"] == 2)
    node |= {"type": "PerturbedAttention", "title": "My PAG", "widgets_values": values}
    node["properties"] = {"Node name for S&R": "PerturbedAttention"}
    return workflow


def slot(name: str, kind: str, link: int | None = None, **more) -> dict:
    return {"name": name, "type": kind, "link": link, **more}


def saved(value: float, linked: bool = False) -> dict:
    """The file of a workflow: a checkpoint, ComfyUI-ppm's Epsilon Scaling, Layer Map. Linked: a number of another node."""
    widget = slot("scaling_factor", "FLOAT", 3, widget={"name": "scaling_factor"})
    model = {"name": "MODEL", "type": "MODEL", "links": [1], "slot_index": 0}
    nodes = [
        {"id": 1, "type": "CheckpointLoaderSimple", "pos": [60, 300], "size": [320, 100], "inputs": [],
         "outputs": [model], "widgets_values": ["tiny_sd15.ckpt"]},
        {"id": 2, "type": "EpsilonScalingPPM", "pos": [460, 300], "size": [320, 90], "title": "My scaling",
         "inputs": [slot("model", "MODEL", 1), *([widget] if linked else [])],
         "outputs": [{**model, "links": [2]}], "properties": {"Node name for S&R": "EpsilonScalingPPM"},
         "widgets_values": [value]},
        {"id": 3, "type": "BeyondCFGLayerMap", "pos": [860, 300], "size": [400, 200],
         "inputs": [slot("model", "MODEL", 2)], "outputs": [],
         "widgets_values": ["auto", "attention", 1024, 1024]},
        {"id": 4, "type": "PrimitiveFloat", "pos": [60, 500], "size": [320, 80], "inputs": [],
         "outputs": [{"name": "FLOAT", "type": "FLOAT", "links": [3] if linked else []}], "widgets_values": [1.3]},
    ]  # fmt: skip
    common = {"flags": {}, "order": 0, "mode": 0, "properties": {}}
    nodes = [{**common, **node} for node in nodes]
    return {"last_node_id": 4, "last_link_id": 3, "nodes": nodes, "links": LINKS if linked else LINKS[:2],
            "groups": [], "config": {}, "extra": {}, "version": 0.4}  # fmt: skip


SWAPPED = """() => {
    const node = app.rootGraph.nodes.find(node => node.id == 2)
    const names = node.inputs.map(input => [input.name, app.rootGraph.links.get(input.link)?.origin_id])
    return {
        type: node.type, title: node.title, pos: [...node.pos],
        widgets: Object.fromEntries(node.widgets.map(widget => [widget.name, widget.value])),
        inputs: Object.fromEntries(names.filter(([, from]) => from != null).map(([name, from]) => [name, +from])),
        outputs: node.outputs[0].links.map(link => +app.rootGraph.links.get(link).target_id),
    }
}"""


@pytest.mark.parametrize("linked", [False, True], ids=["with a value", "with a number of another node"])
def test_the_page_swaps_the_missing_node_for_ours(linked, page, graph):
    page.evaluate("workflow => app.loadGraphData(workflow)", saved(1.2, linked))
    page.get_by_test_id("error-overlay-see-errors").click(timeout=60_000)
    swap = page.get_by_role("button", name="Replace Node", exact=True)
    swap.wait_for(timeout=60_000)
    graph.photograph(f"come_over_{'linked' if linked else 'value'}_before")
    swap.click()
    page.wait_for_function("() => app.rootGraph.nodes.some(node => node.type === 'BeyondCFGEpsilonScaling')")
    graph.photograph(f"come_over_{'linked' if linked else 'value'}_after")
    found = page.evaluate(SWAPPED)
    assert found["type"] == "BeyondCFGEpsilonScaling" and found["title"] == "My scaling"
    assert found["pos"] == [460, 300]
    assert found["widgets"] == {"scaling_factor": 1.2, "start_percent": 0, "end_percent": 1}
    assert found["inputs"] == {"model": 1, **({"scaling_factor": 4} if linked else {})}
    assert found["outputs"] == [3]
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    inputs = prompt["2"]["inputs"]
    assert inputs == {
        "model": ["1", 0],
        "scaling_factor": ["4", 0] if linked else 1.2,
        "start_percent": 0,
        "end_percent": 1,
    }
    assert prompt["3"]["inputs"]["model"] == ["2", 0]
    graph.run_to_the_end()


OLDER = [2.5, 0.0, "middle", 0, -1.0, -1.0, 0.0, "full"]


@pytest.mark.parametrize(
    "values", [[*OLDER, "m0"], OLDER], ids=["as it is", "as it was before it had a list of blocks"]
)
def test_the_page_swaps_another_packs_pag_which_can_then_be_taken_apart(values, page, graph):
    page.evaluate("workflow => app.loadGraphData(workflow)", pag(values))
    page.get_by_test_id("error-overlay-see-errors").click(timeout=60_000)
    swap = page.get_by_role("button", name="Replace Node", exact=True)
    swap.click(timeout=60_000)
    page.wait_for_function("() => app.rootGraph.nodes.some(node => node.type === 'BeyondCFGAsPerturbedAttention')")
    found = page.evaluate(SWAPPED)
    assert found["title"] == "My PAG" and found["inputs"] == {"model": 1} and found["outputs"] == [3]
    inputs = page.evaluate("async () => (await app.graphToPrompt()).output")["2"]["inputs"]
    names = ["scale", "adaptive_scale", "unet_block", "unet_block_id", "sigma_start", "sigma_end", "rescale"]
    expected = dict(zip([*names, "rescale_mode", "unet_block_list"], [*values, ""], strict=False))
    assert inputs == {"model": ["1", 0], **expected}
    box = page.locator(".beyond-cfg-chosen")
    assert box.inner_text().startswith("Stands in for PerturbedAttention")
    graph.run_to_the_end()
    assert box.is_visible() and box.inner_text().endswith(
        "Here it is: Perturbed-Attention Guidance (PAG), scale 2.5, layers middle."
    )
    graph.photograph("come_over_pag")
    page.evaluate("() => app.rootGraph.getNodeById(2).widgets.find(one => one.type === 'button').callback()")
    single = page.evaluate(
        "() => app.rootGraph.nodes.find(node => node.type === 'BeyondCFGPAG').widgets.map(one => one.value)"
    )
    assert single[:2] == [2.5, "middle"]


def test_a_stand_in_is_in_no_menu(page):
    menus = """() => LiteGraph.getNodeTypesCategories().flatMap(
        category => LiteGraph.getNodeTypesInCategory(category).filter(type => !type.skip_list).map(type => type.type))"""
    types = page.evaluate(menus)
    assert "BeyondCFGPAG" in types and not [name for name in types if name.startswith("BeyondCFGAs")]

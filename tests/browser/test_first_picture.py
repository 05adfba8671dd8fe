"""From a graph that makes a picture to a guided picture, with mouse and keyboard, in as few acts as the README says."""

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("newest_page")]
PROMPT = {
    "1": ("CheckpointLoaderSimple", {"ckpt_name": "tiny_sd15.ckpt"}),
    "2": ("CLIPTextEncode", {"clip": ["1", 1], "text": "a lake"}),
    "3": ("EmptyLatentImage", {"width": 64, "height": 64}),
    "4": ("KSampler", {"model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0],
                       "steps": 2, "cfg": 4, "seed": 11}),
    "5": ("VAEDecode", {"samples": ["4", 0], "vae": ["1", 2]}),
    "6": ("PreviewImage", {"images": ["5", 0]}),
}  # fmt: skip
PLACE = """([type, side, slot]) => {
    const node = app.rootGraph.nodes.find(node => node.type === type)
    const [x, y] = side === 'output' ? node.getOutputPos(slot) : node.getInputPos(slot)
    const { scale, offset } = app.canvas.ds
    const box = app.canvas.canvas.getBoundingClientRect()
    return [box.x + (x + offset[0]) * scale, box.y + (y + offset[1]) * scale]
}"""


def drag(page, start: list[float], end: list[float]):
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, steps=5)
    page.mouse.move(*end, steps=5)
    page.mouse.up()


def test_a_guided_picture_is_four_acts_away(page, graph):
    graph.load(PROMPT)
    page.evaluate(
        """() => {
            const place = { CheckpointLoaderSimple: [0, 0], KSampler: [900, 0], CLIPTextEncode: [0, 260],
                            EmptyLatentImage: [0, 520], VAEDecode: [1250, 0], PreviewImage: [1250, 200] }
            for (const node of app.rootGraph.nodes) node.pos = place[node.type]
            app.canvas.ds.scale = 0.8
            app.canvas.ds.offset = [150, 200]
            app.canvas.setDirty(true, true)
        }"""
    )
    page.wait_for_timeout(500)
    drag(
        page, page.evaluate(PLACE, ["CheckpointLoaderSimple", "output", 0]), [620, 500]
    )  # 1: out of MODEL, into the void
    box = page.locator("[role=combobox][aria-controls=results-list]")
    if not box.is_visible():
        page.get_by_text("Search", exact=False).locator("visible=true").first.click()
    box.wait_for(timeout=30_000)
    box.fill("better quality")  # 2: what one wants
    page.get_by_test_id("result-item").first.wait_for(timeout=30_000)
    graph.photograph("first_picture_search")
    page.keyboard.press("Enter")
    page.wait_for_function("() => app.rootGraph.nodes.some(node => node.type === 'BeyondCFGGuidance')", timeout=30_000)
    page.wait_for_timeout(1000)
    if page.evaluate("() => app.canvas.state?.ghostNodeId != null"):
        page.mouse.click(620, 500)
        page.wait_for_timeout(500)
    output = page.evaluate(PLACE, ["BeyondCFGGuidance", "output", 0])
    drag(page, output, page.evaluate(PLACE, ["KSampler", "input", 0]))  # 3: into the sampler
    page.wait_for_timeout(500)
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    (key,) = (key for key, node in prompt.items() if node["class_type"] == "BeyondCFGGuidance")
    assert prompt[key]["inputs"]["model"] == ["1", 0] and prompt["4"]["inputs"]["model"] == [key, 0]
    graph.photograph("first_picture_graph")
    page.get_by_test_id("queue-button").or_(page.get_by_role("button", name="Run")).first.click()  # 4
    page.wait_for_function(
        "() => app.rootGraph.nodes.find(node => node.type === 'PreviewImage').imgs?.length", timeout=60_000
    )
    graph.photograph("first_picture")

"""The node Guidance in the real page: it says what it chose, can be taken apart, and nodes offer published values."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
EASY = "BeyondCFGGuidance"
NODE = f"app.rootGraph.nodes.find(node => node.type === '{EASY}')"
PROMPT = {
    "1": ("CheckpointLoaderSimple", {"ckpt_name": "tiny_sd15.ckpt"}),
    "2": (EASY, {"model": ["1", 0], "problem": "shapes and anatomy", "strength": 0.5}),
    "5": ("CLIPTextEncode", {"clip": ["1", 1], "text": "a lake"}),
    "6": ("EmptyLatentImage", {"width": 64, "height": 64}),
    "7": ("KSampler", {"model": ["2", 0], "positive": ["5", 0], "negative": ["5", 0], "latent_image": ["6", 0],
                       "steps": 2, "cfg": 4, "seed": 1}),
    "8": ("VAEDecode", {"samples": ["7", 0], "vae": ["1", 2]}),
    "9": ("PreviewImage", {"images": ["8", 0]}),
}  # fmt: skip


@pytest.mark.parametrize("drawn_by_vue", [False, True], ids=["classic", "nodes 2.0"])
def test_it_says_what_it_chose_and_is_taken_apart_into_that(drawn_by_vue, page, graph, request):
    if drawn_by_vue:
        request.getfixturevalue("newest_page")
    page.evaluate("yes => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', yes)", drawn_by_vue)
    graph.load(PROMPT)
    scale, strength = (4, 0.75) if drawn_by_vue else (3.2, 0.55)  # of no other run: what is cached sends nothing
    graph.set(EASY, "strength", strength)
    graph.look_at(EASY, (360, 320))
    graph.run()
    said = "text => [...document.querySelectorAll('.beyond-cfg-chosen')].some(box => box.textContent.includes(text))"
    page.wait_for_function(said, arg=f"scale {scale}", timeout=60_000)
    page.wait_for_function("() => app.ui.lastQueueSize === 0", timeout=60_000)
    graph.photograph(f"guidance_easy{'_vue' if drawn_by_vue else ''}")
    page.evaluate(f"() => {NODE}.widgets.find(widget => widget.name.startsWith('take apart')).callback()")
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    ((key, single),) = ((key, node) for key, node in prompt.items() if node["class_type"].startswith("BeyondCFG"))
    assert (single["class_type"], single["inputs"]["scale"]) == ("BeyondCFGPAG", scale)
    assert single["inputs"]["model"] == ["1", 0]
    assert prompt["7"]["inputs"]["model"] == [key, 0]
    page.evaluate("() => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")


OFFERED = """chosen => {
    const node = app.rootGraph.nodes.find(node => node.type === 'BeyondCFGPAG')
    const items = app.extensions.flatMap(one => one.name === 'BeyondCFG.Guidance' ? one.getNodeMenuItems(node) : [])
    const options = items[0].submenu.options
    options.find(option => option.content.startsWith(chosen))?.callback()
    return [items[0].content, options.map(option => option.content), node.widgets.map(widget => widget.value)]
}"""


def test_a_node_offers_the_values_that_are_published_for_it(page, graph):
    graph.only("BeyondCFGPAG")
    name, lines, values = page.evaluate(OFFERED, "PixArt")
    assert name == "Values for a model" and any("the authors' README" in line for line in lines)
    assert values[:2] == [4, "0.5"]


def test_it_offers_first_what_a_run_has_measured_for_this_very_model(page, graph, server):
    kept = {"model": ["1", 0], "node": "PAG", "values": '{"scale": 1.75}', "source": "measured by this test"}
    graph.load(
        {
            "1": ("CheckpointLoaderSimple", {"ckpt_name": "tiny_sd15.ckpt"}),
            "7301": ("BeyondCFGKeepValues", kept),
            "3": ("BeyondCFGPAG", {"model": ["1", 0]}),
        }
    )
    try:
        graph.run_to_the_end()
        line = "measured for tiny_sd15.ckpt: scale 1.75 (measured by this test)"
        page.wait_for_function(
            "() => app.extensions.some(one => JSON.stringify(one.values ?? {}).includes('measured by this test'))"
        )
        _, lines, values = page.evaluate(OFFERED, line)
        assert lines[0] == line and len(lines) > 5 and values[0] == 1.75
    finally:
        for run in server.ask("/history").values():  # Guidance (easy) of other tests would choose it
            for said in run["outputs"].get("7301", {}).get("text", ()):
                Path(said.rpartition("\nin ")[2]).unlink(missing_ok=True)

"""Nodes that show a picture show it in the node, in both ways that the page draws nodes."""

import pytest

NODES = pytest.mark.parametrize("drawn_by_vue", [False, True], ids=["classic", "nodes 2.0"])

pytestmark = pytest.mark.browser


@NODES
def test_guidance_report_shows_what_the_run_did(nodes, graph):
    graph.load({
        "1": ("CheckpointLoaderSimple", {"ckpt_name": "tiny_sd15.ckpt"}),
        "2": ("BeyondCFGPAG", {"model": ["1", 0]}),
        "3": ("BeyondCFGTSG", {"model": ["2", 0]}),
        "4": ("BeyondCFGRecorder", {"model": ["3", 0]}),
        "5": ("CLIPTextEncode", {"clip": ["1", 1], "text": "a lake"}),
        "6": ("EmptyLatentImage", {"width": 64, "height": 64}),
        "7": ("KSampler", {"model": ["4", 0], "positive": ["5", 0], "negative": ["5", 0], "latent_image": ["6", 0],
                           "steps": 4, "cfg": 4}),
        "8": ("BeyondCFGReport", {"report": ["4", 1], "samples": ["7", 0], "filename_prefix": ""}),
    })  # fmt: skip
    graph.look_at("BeyondCFGReport", None)
    width = graph.page.evaluate("() => app.rootGraph.nodes.find(node => node.type === 'BeyondCFGReport').size[0]")
    assert width >= 460  # of a new node, so that letters have 11 pixels at least
    for palette in ("dark", "light"):
        graph.page.evaluate("name => app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
        graph.run_to_the_picture_in("BeyondCFGReport")
        graph.photograph(f"node_report{nodes}_{palette}")
        graph.set("KSampler", "cfg", 3)
    graph.page.evaluate("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")


@NODES
def test_guidance_grid_lays_two_pictures_over_each_other_and_labels_what_ran(nodes, graph, page):
    graph.open("pag_ksampler")
    graph.set("KSampler", "cfg", 1.5)
    graph.set("BeyondCFGPAG", "scale", 1)
    graph.look_at("BeyondCFGGrid", None)
    graph.run_to_the_picture_in("BeyondCFGGrid")
    graph.photograph(f"node_grid{nodes}")
    page.evaluate(
        """() => app.rootGraph.nodes.find(node => node.type === 'BeyondCFGGrid').widgets
            .find(widget => widget.name === 'before / after').callback()"""
    )
    dialog = page.locator("dialog.beyond-cfg-compare")
    dialog.get_by_text("CFG 1.5 + PAG 1").wait_for()
    assert dialog.locator("span").all_text_contents() == ["CFG 1.5 + PAG 1", "CFG 1.5"]
    page.wait_for_function("() => [...document.querySelectorAll('dialog img')].every(image => image.naturalWidth)")
    box = dialog.locator("div").first.bounding_box()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 20)
    assert abs(float(dialog.locator("input").input_value()) - 25) < 1
    graph.photograph(f"node_grid_compare{nodes}")
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")


@NODES
def test_guidance_sweep_shows_a_picture_for_each_value_and_its_progress_on_the_sampler(nodes, graph, page):
    graph.open("sweep_sdxl")
    page.evaluate(
        """() => {
            window.shown = new Set()
            app.api.addEventListener('executing', ({ detail }) => shown.add(String(detail)))
        }"""
    )
    graph.run_to_the_picture_in("BeyondCFGSweep")
    sampler = page.evaluate("() => String(app.rootGraph.nodes.find(node => node.type === 'KSampler').id)")
    assert sampler in page.evaluate("() => [...shown]")
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(1500)
    graph.photograph(f"node_sweep{nodes}")
    assert not page.evaluate(BUTTON_OF, "BeyondCFGSweep")
    graph.set("BeyondCFGSweep", "values", "0, 3")
    graph.run_to_the_picture_in("BeyondCFGSweep")
    assert page.evaluate(BUTTON_OF, "BeyondCFGSweep")
    graph.photograph(f"node_sweep_two{nodes}")


BUTTON_OF = """type => app.rootGraph.nodes.find(node => node.type === type).widgets
    .some(widget => widget.name === 'before / after')"""

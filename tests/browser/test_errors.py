"""What a user can do wrong is said in the page in our own words: in its panel of errors, which a notice opens, and in the
dialog that a user can choose instead. What had no effect is said in its console.
"""

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("newest_page")]


def layer_that_is_not_there(graph):
    graph.open("pag_ksampler")
    graph.set("BeyondCFGPAG", "layers", "input.99")


def no_negative(graph):
    graph.open("pag_guider")
    graph.set("BeyondCFGPAGGuider", "cfg", 4)
    graph.disconnect("BeyondCFGPAGGuider", "negative")


def weak_model_of_another_family(graph):
    graph.open("autoguidance")
    graph.page.evaluate(
        """() => {
            const node = app.rootGraph.nodes.find(node => node.type === 'BeyondCFGAutoguidanceGuider')
            node.getInputNode(node.findInputSlot('weak_model')).widgets[0].value = 'tiny_sd3.ckpt'
        }"""
    )


def skipping_layers_of_a_unet(graph):
    graph.open("skip_layer_sd3")


def points_that_cannot_be_read(graph):
    graph.load({
        "1": ("CheckpointLoaderSimple", {"ckpt_name": "tiny_sd15.ckpt"}),
        "2": ("BeyondCFGSchedule", {"curve_type": "points", "points": "0: 1, nonsense"}),
        "3": ("BeyondCFGPAG", {"model": ["1", 0], "schedule": ["2", 0]}),
        "4": ("BeyondCFGLayerMap", {"model": ["3", 0]}),
    })  # fmt: skip


SENTENCES = {
    layer_that_is_not_there: 'PAG: layers "input.99": there is no "input.99". This model has input.1, middle.',
    no_negative: "PAG Guider: cfg is 4 but no negative is connected; connect one, or set cfg to 1 (no CFG)",
    weak_model_of_another_family: "Autoguidance Guider: the models have different latent spaces, SD15 and SD3; "
    "predictions can only be compared in one. Use a weak model of the same family",
    skipping_layers_of_a_unet: "Skip Layer: no layer of Stable Diffusion 1, 2, XL, SVD can be skipped; "
    "this works on transformers. PAG and SEG work here",
    points_that_cannot_be_read: 'Guidance Schedule: points "0: 1, nonsense": write pairs of where and strength, '
    "such as 0: 1, 0.5: 2, 1: 0",
}


@pytest.mark.parametrize("mistake", SENTENCES, ids=lambda mistake: mistake.__name__)
def test_the_page_says_what_is_wrong(mistake, graph, page):
    mistake(graph)
    graph.run()
    page.get_by_test_id("error-overlay-see-errors").click(timeout=120_000)
    panel = page.get_by_test_id("runtime-error-panel")
    panel.get_by_text(SENTENCES[mistake]).wait_for(timeout=30_000)
    graph.photograph(f"error_{mistake.__name__}_panel")

    page.evaluate("() => app.extensionManager.setting.set('Comfy.RightSidePanel.ShowErrorsTab', false)")
    try:
        graph.run()
        dialog = page.get_by_test_id("error-dialog")
        dialog.get_by_text(SENTENCES[mistake]).wait_for(timeout=120_000)
        graph.photograph(f"error_{mistake.__name__}")
        page.keyboard.press("Escape")
        dialog.wait_for(state="detached", timeout=30_000)
    finally:
        page.evaluate("() => app.extensionManager.setting.set('Comfy.RightSidePanel.ShowErrorsTab', true)")


def test_the_pages_console_says_what_had_no_effect(graph, page):
    graph.open("pag_ksampler")
    graph.set("BeyondCFGPAG", "start_percent", 0.4)
    graph.set("BeyondCFGPAG", "end_percent", 0.6)
    # The console shows its last lines: no second sampling may come after this one.
    page.evaluate("() => { app.rootGraph.nodes.find(node => node.type === 'BatchImagesNode').mode = 4 }")
    page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleBottomPanelTab.logs-terminal')")
    page.locator(".xterm-rows").wait_for(timeout=60_000)
    graph.run()
    page.wait_for_function(
        """said => document.querySelector('.xterm-rows')?.textContent.replace(/\\s+/g, '').includes(said)""",
        arg="".join(
            [
                "Beyond",
                "CFG:",
                "PAG",
                "had",
                "no",
                "effect:",
                "no",
                "step",
                "of",
                "this",
                "run",
                "lies",
                "in",
                "0.4",
                "to",
                "0.6",
                "of",
                "sampling",
            ]
        ),
        timeout=120_000,
    )
    graph.photograph("warning_no_effect")
    page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleBottomPanelTab.logs-terminal')")

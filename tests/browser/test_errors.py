"""What a user can do wrong is said in the page in our own words: in a notice, with a button for the cure where one is
plain, and in the panel of errors. What had no effect is said in a notice, by a badge on the node, and in the console.
"""

import pytest

pytestmark = pytest.mark.browser

NOTICE = ".beyond-cfg-notices"
BADGES = """() => Object.fromEntries(app.rootGraph.nodes.map(node => [
    node.type, node.badges.map(badge => badge instanceof Function ? badge() : badge).map(badge => badge.text)]))"""


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


CURES = {
    layer_that_is_not_there: ("Set layers to auto", "BeyondCFGPAG", {"layers": "auto"}),
    no_negative: ("Set cfg to 1", "BeyondCFGPAGGuider", {"cfg": 1}),
    points_that_cannot_be_read: ("Set points to 0: 1, 1: 0", "BeyondCFGSchedule", {"points": "0: 1, 1: 0"}),
}


def widgets_of(page, node_type: str) -> dict:
    return page.evaluate(
        """type => Object.fromEntries(app.rootGraph.nodes.find(node => node.type === type).widgets
            .map(widget => [widget.name, widget.value]))""",
        node_type,
    )


@pytest.mark.parametrize("mistake", SENTENCES, ids=lambda mistake: mistake.__name__)
def test_a_notice_says_what_is_wrong_and_its_button_cures_it(mistake, graph, page):
    mistake(graph)
    graph.run()
    notice = page.locator(NOTICE)
    notice.get_by_text(SENTENCES[mistake]).wait_for(timeout=120_000)
    graph.photograph(f"error_{mistake.__name__}")
    if mistake in CURES:
        label, node_type, cured = CURES[mistake]
        notice.get_by_role("button", name=label).click()
        assert widgets_of(page, node_type).items() >= cured.items()
        graph.run()
        notice.get_by_text(SENTENCES[mistake]).wait_for(state="detached", timeout=30_000)
        page.wait_for_function("() => app.ui.lastQueueSize === 0", timeout=120_000)
        assert not notice.get_by_text(SENTENCES[mistake]).count()


@pytest.mark.usefixtures("newest_page")
def test_the_pages_panel_of_errors_has_the_sentence_too(graph, page):
    layer_that_is_not_there(graph)
    graph.run()
    page.get_by_test_id("error-overlay-see-errors").click(timeout=120_000)
    page.get_by_test_id("runtime-error-panel").get_by_text(SENTENCES[layer_that_is_not_there]).wait_for(timeout=30_000)
    graph.photograph("error_panel")


def without_effect(graph):
    graph.open("pag_ksampler")
    graph.set("BeyondCFGPAG", "start_percent", 0.4)
    graph.set("BeyondCFGPAG", "end_percent", 0.6)


NO_EFFECT = "PAG had no effect: no step of this run lies in 0.4 to 0.6 of sampling"


def test_what_had_no_effect_is_said_in_a_notice_and_by_a_badge_until_it_has_one(graph, page):
    without_effect(graph)
    graph.run()
    notice = page.locator(NOTICE)
    notice.get_by_text(NO_EFFECT).wait_for(timeout=120_000)
    page.wait_for_function("() => app.ui.lastQueueSize === 0", timeout=120_000)
    badges = page.evaluate(BADGES)
    assert [kind for kind, texts in badges.items() if "⚠ no effect" in texts] == ["BeyondCFGPAG"]
    graph.photograph("warning_no_effect")
    graph.run()  # all is cached, and nothing samples: the badge stays
    page.wait_for_timeout(1000)
    assert "⚠ no effect" in page.evaluate(BADGES)["BeyondCFGPAG"]
    graph.set("BeyondCFGPAG", "start_percent", 0)
    graph.run()
    page.wait_for_function(f"() => !({BADGES})().BeyondCFGPAG.includes('⚠ no effect')", timeout=120_000)
    page.wait_for_function("() => app.ui.lastQueueSize === 0", timeout=120_000)
    assert not notice.get_by_text(NO_EFFECT).count()


@pytest.mark.usefixtures("newest_page")
def test_the_badge_shows_where_the_page_draws_nodes_in_the_new_way(open_page, graph_of):
    with open_page(**{"VueNodes.Enabled": True}) as page:
        graph = graph_of(page)
        without_effect(graph)
        graph.run()
        page.locator(NOTICE).get_by_text(NO_EFFECT).wait_for(timeout=120_000)
        badges = """() => [...document.querySelectorAll('.lg-node')].map(node => getComputedStyle(node, '::after').content)
            .filter(text => text.includes('no effect')).length"""
        page.wait_for_function(f"() => ({badges})() === 1", timeout=30_000)
        page.wait_for_function("() => app.ui.lastQueueSize === 0", timeout=120_000)
        graph.photograph("warning_no_effect_vue")
        graph.set("BeyondCFGPAG", "start_percent", 0)
        graph.run()
        page.wait_for_function(f"() => ({badges})() === 0", timeout=120_000)


@pytest.mark.usefixtures("newest_page")
def test_the_pages_console_says_what_had_no_effect(graph, page):
    without_effect(graph)
    # The console shows its last lines: no second sampling may come after this one.
    page.evaluate("() => { app.rootGraph.nodes.find(node => node.type === 'BatchImagesNode').mode = 4 }")
    page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleBottomPanelTab.logs-terminal')")
    page.locator(".xterm-rows").wait_for(timeout=60_000)
    graph.run()
    page.wait_for_function(
        """said => document.querySelector('.xterm-rows')?.textContent.replace(/\\s+/g, '').includes(said)""",
        arg=f"Beyond CFG: {NO_EFFECT}".replace(" ", ""),
        timeout=120_000,
    )
    graph.photograph("warning_in_the_console")
    page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleBottomPanelTab.logs-terminal')")

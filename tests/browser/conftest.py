"""The real page, in a headless Chromium, on a running host."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from pack.tools import examples
from pack.tools.environment import CHROMIUMS

ROOT = Path(__file__).resolve().parent.parent.parent
PICTURES = ROOT / "output" / "browser"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # else the templates cover a new user's page
    "Comfy.Minimap.Visible": False,
    # The host keeps what another page has set.
    "Comfy.Locale": "en",
    "Comfy.RightSidePanel.IsOpen": False,
    "Comfy.RightSidePanel.ShowErrorsTab": True,
    "Comfy.VueNodes.Enabled": False,
}
READY = "() => window.LiteGraph?.registered_node_types.BeyondCFGPAG && window.app?.rootGraph?.nodes.length"


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="there is no playwright; pip install playwright")
    with (
        api.sync_playwright() as playwright,
        contextlib.closing(launched(playwright, CHROMIUMS, api.Error)) as chromium,
    ):
        yield chromium


def launched(playwright, names, error):
    """The browser that is installed, the user's own Chrome or Edge where Windows and macOS keep them, or Playwright's."""
    installed = filter(None, map(shutil.which, names))
    ways = [{"executable_path": path} for path in installed] + [{"channel": "chrome"}, {"channel": "msedge"}, {}]
    for way in ways:
        with contextlib.suppress(error):
            return playwright.chromium.launch(args=FLAGS, **way)
    pytest.skip("there is no Chromium, Chrome or Edge that starts; install one")


@pytest.fixture(scope="module")
def open_page(browser, server):
    """A context: the page, ready, with these settings beside the usual; what its console calls an error is in
    `page.errors`."""

    @contextlib.contextmanager
    def opened(**settings):
        server.get("/settings", {**SETTINGS, **{f"Comfy.{name}": value for name, value in settings.items()}})
        with contextlib.closing(browser.new_page(viewport={"width": 2000, "height": 1050})) as page:
            page.errors = []
            page.on("console", lambda message: message.type == "error" and page.errors.append(message.text))
            page.on("pageerror", lambda error: page.errors.append(str(error)))
            page.goto(server.url, wait_until="domcontentloaded")
            page.wait_for_function(READY, timeout=120_000)
            page.wait_for_timeout(1000)  # it is still opening a graph of its own, which must not come after ours
            yield page

    return opened


@pytest.fixture(scope="module")
def page(open_page):
    with open_page() as page:
        yield page


@pytest.fixture(scope="module")
def older(server) -> str:
    """The version of a host whose page is older than the newest; else empty."""
    version = server.ask("/system_stats")["system"]["comfyui_version"]
    return version if tuple(map(int, version.split("."))) < (0, 30) else ""


@pytest.fixture(scope="module")
def newest_page(older):
    """For tests that find their way by what only the newest page has; the pack works in the older ones too."""
    if older:
        pytest.skip(f"the page of ComfyUI {older} is built another way")


class Graph:
    """What a user does with the graph of a page."""

    def __init__(self, page):
        self.page = page

    def open(self, example: str):
        """One of workflows, with the tiny checkpoint and two steps."""
        workflow = json.loads(examples.page_of(example).read_text(encoding="utf-8"))
        for node in workflow["nodes"]:
            node["properties"].pop("models", None)  # nor does the page miss those that it would use
            if node["type"] == "CheckpointLoaderSimple":
                node["widgets_values"] = ["tiny_sd15.ckpt"]
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        for node_type, settings in {
            "EmptyLatentImage": {"width": 64, "height": 64}, "EmptySD3LatentImage": {"width": 64, "height": 64},
            "KSampler": {"steps": 2}, "BasicScheduler": {"steps": 2},
        }.items():  # fmt: skip
            for name, value in settings.items():
                self.set(node_type, name, value)

    def load(self, prompt: dict):
        """A graph in the API format: id → (class_type, inputs)."""
        prompt = {number: {"class_type": kind, "inputs": inputs} for number, (kind, inputs) in prompt.items()}
        self.page.evaluate("prompt => app.loadApiJson(prompt, 'test')", prompt)

    def only(self, node_type: str):
        """One new node, selected, in an empty graph."""
        self.page.evaluate(
            """type => {
                app.canvas.deselectAll()
                app.rootGraph.clear()
                const node = LiteGraph.createNode(type)
                node.id = Math.ceil(performance.now()) // the page keeps the values of a number that has been used
                node.pos = [300, 200]
                app.rootGraph.add(node)
                app.canvas.ds.scale = 1
                app.canvas.ds.offset = [0, 0]
                app.canvas.selectItems([node])
            }""",
            node_type,
        )

    def set(self, node_type: str, name: str, value):
        self.page.evaluate(
            """([type, name, value]) => {
                for (const node of app.rootGraph.nodes.filter(node => node.type === type))
                    node.widgets.find(widget => widget.name === name).value = value
            }""",
            [node_type, name, value],
        )

    def disconnect(self, node_type: str, name: str):
        self.page.evaluate(
            """([type, name]) => {
                const node = app.rootGraph.nodes.find(node => node.type === type)
                node.disconnectInput(node.findInputSlot(name))
            }""",
            [node_type, name],
        )

    def run(self):
        self.page.evaluate("() => app.queuePrompt(0)")

    def run_to_the_end(self):
        self.page.evaluate(
            """async () => void await new Promise((done, failed) => {
                app.api.addEventListener('execution_success', done)
                app.api.addEventListener('execution_error', ({ detail }) => failed(detail.exception_message))
                app.queuePrompt(0)
            })"""
        )

    def look_at(self, node_type: str, size=(420, 420)):
        """Move the view to a node: the page fetches the pictures of nodes that it draws. Without a size it keeps its own,
        at 100 % zoom."""
        self.page.evaluate(
            """([type, size]) => {
                const node = app.rootGraph.nodes.find(node => node.type === type)
                if (size) node.setSize(size)
                app.canvas.ds.scale = size ? 1.5 : 1
                app.canvas.ds.offset = [300 - node.pos[0], 100 - node.pos[1]]
                app.canvas.setDirty(true, true)
            }""",
            [node_type, size],
        )

    def run_to_the_picture_in(self, node_type: str):
        """Run, until the node shows what this run has drawn, not an older one."""
        name = self.page.evaluate(
            """type => new Promise((drawn, failed) => {
                const node = app.rootGraph.nodes.find(node => node.type === type)
                const executed = ({ detail }) => {
                    if (detail.display_node !== String(node.id)) return
                    app.api.removeEventListener('executed', executed)
                    drawn(detail.output.images[0].filename)
                }
                app.api.addEventListener('executed', executed)
                app.api.addEventListener('execution_error', ({ detail }) => failed(detail.exception_message))
                app.queuePrompt(0)
            })""",
            node_type,
        )
        self.page.wait_for_function(
            """([type, name]) => {
                const image = app.rootGraph.nodes.find(node => node.type === type).imgs?.[0]
                return image?.naturalWidth && image.src.includes(name)
            }""",
            arg=[node_type, name],
            timeout=60_000,
        )
        self.page.wait_for_function("() => app.ui.lastQueueSize === 0", timeout=60_000)

    def photograph(self, name: str):
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.evaluate(
            """() => {
                app.canvas.setDirty(true, true)
                return new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))
            }"""
        )
        self.page.screenshot(path=PICTURES / f"{name}.png", animations="disabled")


@pytest.fixture
def graph_of():
    return Graph


@pytest.fixture
def graph(page):
    return Graph(page)


@pytest.fixture
def nodes(drawn_by_vue, page, request):
    """Both ways in which the page draws nodes, for tests with a parameter `drawn_by_vue`; how photographs of each end."""
    if drawn_by_vue:
        request.getfixturevalue("newest_page")

    def draw_by_vue(yes):
        page.evaluate("yes => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', yes)", yes)

    draw_by_vue(drawn_by_vue)
    yield "_vue" if drawn_by_vue else ""
    draw_by_vue(False)

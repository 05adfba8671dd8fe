"""The real page, in a headless Chromium, on a running host."""

import contextlib
import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
}  # else the templates cover a new user's page
READY = "() => window.LiteGraph?.registered_node_types.BeyondCFGPAG && window.app?.rootGraph?.nodes.length"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here; pip install playwright")
    if not CHROMIUM:
        pytest.skip("no Chromium here; apt install chromium")
    with playwright.sync_playwright() as playwright:
        with contextlib.closing(playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)) as chromium:
            yield chromium


@pytest.fixture(scope="module")
def page(browser, server):
    """The page, ready; what its console calls an error is in `page.errors`."""
    server.get("/settings", SETTINGS)
    with contextlib.closing(browser.new_page(viewport={"width": 2000, "height": 1050})) as page:
        page.errors = []
        page.on("console", lambda message: message.type == "error" and page.errors.append(message.text))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(server.url, wait_until="domcontentloaded")
        page.wait_for_function(READY, timeout=120_000)
        page.wait_for_timeout(1000)  # it is still opening a graph of its own, which must not come after ours
        yield page

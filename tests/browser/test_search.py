"""The page's own search for nodes finds ours by what people call them."""

import pytest

NAMES = {  # what somebody types who knows the method → its node
    "PAG": "Perturbed-Attention Guidance (PAG)",
    "perturbed attention": "Perturbed-Attention Guidance (PAG)",
    "autoguidance": "Autoguidance",
    "weak model": "Autoguidance",
    "skip layer": "Skip Layer Guidance (SLG)",
    "SLG": "Skip Layer Guidance (SLG)",
    "self-attention guidance": "Self-Attention Guidance (SAG)",
    "smoothed energy": "Smoothed Energy Guidance (SEG)",
    "apg": "Adaptive Projected Guidance (APG)",
    "guidance interval": "CFG Interval",
    "guidance schedule": "Strength Curve (Guidance Schedule)",
    "compare": "Compare Pictures (Guidance Grid)",
}
WISHES = {  # what somebody types who does not → nodes that help, of which the first of ours is one
    "guidance": {"Guidance (easy)"},
    "better quality": {"Guidance (easy)"},
    "detail": {"Guidance (easy)", "Self-Attention Guidance (SAG)", "Token Perturbation Guidance (TPG)"},
    "anatomy": {"Guidance (easy)", "Skip Layer Guidance (SLG)", "Self-Guidance (SG)"},
    "hands": {"Guidance (easy)", "Self-Guidance (SG)", "Skip Layer Guidance (SLG)"},
    "burnt": {"Guidance (easy)", "CFG Rescale", "Adaptive Projected Guidance (APG)"},
    "flat": {"No more flat pictures for SDXL (Beyond CFG)"},
    "faces": {"Guidance (easy)"},
    "fix hands": {"Guidance (easy)"},
    "improve": {"Guidance (easy)"},
    "flat colours": {"Guidance (easy)", "Smoothed Energy Guidance (SEG)", "Perturbed-Attention Guidance (PAG)"},
    "sharp": {"Guidance (easy)", "Self-Attention Guidance (SAG)", "Token Perturbation Guidance (TPG)"},
    "negative prompt": {"Normalized Attention Guidance (NAG)", "Negative-Away Steer Attention (NASA)"},
    "variety": {"Guidance (easy)", "CFG Interval", "Entropy Rectifying Guidance (ERG)"},
    "perturbed": {"Perturbed-Attention Guidance (PAG)", "Perturbed Negative"},
    "faster": {"Faster: Guidance Reuse", "Faster: Guidance Stop"},
}

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("newest_page")]


@pytest.fixture
def search(page):
    """Type words into the box that opens on a double click, and read the names of what it lists."""
    page.evaluate("() => app.rootGraph.clear()")
    box = page.locator("[role=combobox][aria-controls=results-list]")
    for _ in range(30):  # the page may take a click for the second of an earlier one
        if box.is_visible():
            break
        page.mouse.dblclick(1000, 700)
        page.wait_for_timeout(1000)
    box.wait_for(timeout=1_000)
    results = page.get_by_test_id("result-item")

    def names(words: str) -> list[str]:
        box.fill("nothing is called this")
        results.first.wait_for(state="detached", timeout=30_000)
        box.fill(words)
        results.first.wait_for(timeout=30_000)
        return [text.splitlines()[0] for text in results.all_inner_texts()]

    yield names
    page.keyboard.press("Escape")
    box.wait_for(state="detached", timeout=30_000)


def test_ours_are_among_the_first_that_are_found(search, graph):
    for words, name in NAMES.items():
        assert name in search(words)[:5], words
        graph.photograph(f"search_{words.replace(' ', '_')}")


def test_for_everyday_words_the_first_of_ours_is_a_node_that_helps(search, server, graph):
    nodes = server.ask("/object_info").values()
    ours = {node["display_name"] for node in nodes if node["category"].startswith("Beyond CFG/")}
    blocks = {entry["name"] for entry in server.ask("/global_subgraphs").values() if "(Beyond CFG)" in entry["name"]}
    wrong = []
    for words, wanted in WISHES.items():
        found = search(words)
        first = next((at for at, name in enumerate(found) if name in ours | blocks), 99)
        if first >= 5 or found[first] not in wanted | blocks:
            wrong.append(f"{words}: {found[: max(first + 1, 3)]}")
        graph.photograph(f"search_{words.replace(' ', '_')}")
    assert not wrong, "\n".join(wrong)


def test_every_node_is_found_by_its_own_name(search, server):
    names = [
        node["display_name"]
        for node in server.ask("/object_info").values()
        if node["category"].startswith("Beyond CFG/") and not node["deprecated"]  # nor is a stand-in in a menu
    ]
    assert names
    for name in names:
        typed = name.partition(" (")[0]  # the page finds little by more than 32 letters
        assert name in search(typed)[:5], name

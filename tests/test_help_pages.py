"""Each node has a help page, which the host shows beside it: web/docs/<node id>.md."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCHEMAS = json.loads((ROOT / "tests" / "golden" / "schemas.json").read_text(encoding="utf-8"))
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "web" / "docs").glob("*.md")}
TABLE = "<!-- support: made by tools/support.py -->"
WITH_TABLE = ("PAG", "SEG", "SAG", "MaskedAttention", "SkipLayer", "TSG", "LayerMap")


def declared() -> dict[str, tuple[str, str]]:
    """Node id → (title, paper), as the code declares them; guiders that are made of these nodes are not among them."""
    found = {}
    for path in (path for folder in ("guiders", "patches", "nodes") for path in (ROOT / folder).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                said = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
                if "node_id" in said:
                    found[said["node_id"]] = said.get("title", ""), said.get("paper", "")
    found["BeyondCFGGuider"] = found["BeyondCFGGuider"][0], found["BeyondCFGInterval"][1]
    return found


def about(node_id: str) -> tuple[str, str]:
    known = declared()
    if node_id in known:
        return known[node_id]
    title, paper = known[node_id.removesuffix("Guider")]
    return f"{title} Guider", paper


def test_every_node_has_a_page_and_every_page_a_node():
    assert PAGES.keys() == SCHEMAS.keys()


def test_the_host_finds_them():
    (folder,) = re.findall(r'^WEB_DIRECTORY = "(.*?)"', (ROOT / "__init__.py").read_text(encoding="utf-8"), re.M)
    assert (ROOT / folder / "docs").resolve() == (ROOT / "web" / "docs").resolve()


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_a_page_has_the_title_inputs_and_paper_of_its_node(node_id):
    page, (title, paper) = PAGES[node_id], about(node_id)
    assert page.startswith(f"# {title}\n")
    missing = [given["id"] for given in SCHEMAS[node_id]["inputs"] if f"`{given['id']}`" not in page]
    assert not missing
    assert paper.removeprefix("arXiv:") in page


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_a_page_names_no_input_that_its_node_lacks(node_id):
    names = {given["id"] for given in SCHEMAS[node_id]["inputs"]}
    (table,) = re.findall(r"## Inputs\n\n(.*?)\n\n", PAGES[node_id], re.S)
    first = (row.split("|")[1] for row in table.splitlines()[2:])
    assert {name for cell in first for name in re.findall(r"`(.*?)`", cell)} == names


def test_every_page_has_its_picture():
    """Else: python dev.py docs --pictures"""
    found = {node_id: re.findall(r"!\[.+?\]\((.+?)\)", page) for node_id, page in PAGES.items()}
    assert found.pop("BeyondCFGOptions") == []  # what it changes cannot be seen
    assert found == {node_id: [f"{node_id}.jpg"] for node_id in found}
    files = {path.stem: path.stat().st_size for path in (ROOT / "web/docs").glob("*.jpg")}
    assert files.keys() == found.keys() and all(1000 < size < 60_000 for size in files.values())


def test_pages_of_what_depends_on_the_architecture_have_the_table():
    assert {node_id for node_id, page in PAGES.items() if TABLE in page} == {f"BeyondCFG{name}" for name in WITH_TABLE}

"""The help pages, which the host shows beside each node: web/docs/<node id>.md. test_new_nodes.py says what one lacks."""

import json
import re
from pathlib import Path

from pack.guiders.presets import PRESETS, values_of
from pack.patches.architectures import ARCHITECTURES
from pack.tools import support

ROOT = Path(__file__).resolve().parent.parent
SCHEMAS = json.loads((ROOT / "tests" / "golden" / "schemas.json").read_text(encoding="utf-8"))
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "web" / "docs").glob("*.md")}


def test_every_page_is_that_of_a_node():
    assert PAGES.keys() <= SCHEMAS.keys()


def test_the_host_finds_them():
    (folder,) = re.findall(r'^WEB_DIRECTORY = "(.*?)"', (ROOT / "__init__.py").read_text(encoding="utf-8"), re.M)
    assert (ROOT / folder / "docs").resolve() == (ROOT / "web" / "docs").resolve()


def test_a_page_shows_the_picture_of_its_own_node_and_every_picture_is_shown():
    """Drawn by: python dev.py docs --pictures"""
    shown = {node_id: re.findall(r"!\[.+?\]\((.+?)\)", page) for node_id, page in PAGES.items()}
    pictures = {path.stem: path.stat().st_size for path in (ROOT / "web/docs").glob("*.jpg")}
    assert {node_id: names for node_id, names in shown.items() if names} == {name: [f"{name}.jpg"] for name in pictures}
    assert all(1000 < size < 60_000 for size in pictures.values())


def test_pages_of_what_depends_on_the_network_say_where_it_works():
    assert {node_id for node_id, page in PAGES.items() if support.BEGIN in page} == support.node_ids()


def test_the_page_of_nag_names_every_network_that_no_negative_prompt_can_act_in():
    rows = [f"- **{row.name}**: {row.no_prompt}\n" for row in ARCHITECTURES if row.no_prompt]
    assert [row for row in rows if row not in PAGES["BeyondCFGNAG"]] == []
    beside = {name for row in ARCHITECTURES for name in row.text.alone}
    assert {name for name in beside if f"`{name}`" not in PAGES["BeyondCFGNAG"]} == set()


def test_good_values_have_all_that_the_presets_take_from_a_source():
    for node in {setting.node for families in PRESETS.values() for chosen in families.values() for setting in chosen}:
        part = PAGES[f"BeyondCFG{node}"].partition("## Good values")[2].partition("\n## ")[0]
        given = re.findall(r"^- \*\*(.+?)\*\*(.*?)(?=^- |\Z)", part, re.M | re.S)
        for family, setting in values_of(node).items():
            numbers = {f"{value:g}" for value in setting.at(0.5).values() if not isinstance(value, str)}
            of_it = [values for models, values in given if any(name in models for name in family.split(", "))]
            assert any(numbers <= {*re.findall(r"-?\d+(?:\.\d+)?", values)} for values in of_it), (node, family)

"""The nodes' texts in the page's languages: locales/, which dev.py docs writes."""

import re
import shutil
from collections import Counter
from pathlib import Path

import folder_paths
import pytest
from app.custom_node_manager import CustomNodeManager
from pack.nodes.extension import nodes
from pack.tools import locales

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def shown() -> dict[tuple, str]:
    """Place in nodeDefs.json → what the page shows there without that file."""
    found = {}
    for node in nodes():
        info = node.GET_NODE_INFO_V1()
        name = info["name"]
        found |= {(name, key): info[key] for key in ("display_name", "description")}
        for key, (_, options) in (info["input"]["required"] | info["input"].get("optional", {})).items():
            found[name, "inputs", key, "tooltip"] = options["tooltip"]
        outputs = zip(info["output"], info["output_name"], info["output_tooltips"], strict=True)
        for at, (kind, label, tooltip) in enumerate(outputs):
            found[name, "outputs", str(at), "tooltip"] = tooltip
            if label != kind:
                found[name, "outputs", str(at), "name"] = label
    return found


def placed(entry: dict, place=()) -> dict[tuple, str]:
    found = {}
    for key, value in entry.items():
        found |= placed(value, (*place, key)) if isinstance(value, dict) else {(*place, key): value}
    return found


CATEGORIES = {part for schema in locales.schemas() for part in schema.category.split("/")}


@pytest.fixture(scope="module")
def i18n(tmp_path_factory):
    """What the host serves to the page as /i18n."""
    packs = tmp_path_factory.mktemp("custom_nodes")
    shutil.copytree(ROOT / "locales", packs / "pack" / "locales")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "get_folder_paths", lambda _: [str(packs)])
        return CustomNodeManager().build_translations()


def test_the_files_are_those_that_the_nodes_and_the_catalogue_give():
    for path, content in locales.files(locales.schemas()).items():
        assert (ROOT / "locales" / path).read_text("utf-8") == content, "run: python dev.py docs"


def test_a_text_in_the_file_for_chinese_is_chinese_or_a_name_that_the_catalogue_keeps(i18n, shown):
    """A text that is not in the file is shown in English; test_new_nodes.py lists those."""
    catalogue, chinese = locales.catalogue(), placed(i18n["zh"]["nodeDefs"])
    names = {sentence for sentence, translation in catalogue.items() if sentence == translation}
    assert not [name for name in names if " " in name]
    assert chinese.keys() <= shown.keys()
    assert {text for place, text in chinese.items() if text == shown[place]} == names
    assert not [text for text in chinese.values() if text not in names and not re.search("[一-鿿]", text)]
    assert not [text for text in chinese.values() if locales.SYNTAX.search(text)]


def test_the_host_finds_chinese_alone_with_the_nodes_and_their_category(i18n):
    assert i18n.keys() == {"zh"}
    assert i18n["zh"].keys() == {"nodeDefs", "nodeCategories"}
    assert i18n["zh"]["nodeCategories"].keys() == CATEGORIES


def test_a_translation_has_the_numbers_and_names_of_its_sentence():
    number, name = re.compile(r"-?\d+(?:\.\d+)?"), re.compile(r"[A-Z]{3,}|[a-z]+_[a-z_]+|\.[a-z]{3,}")
    for sentence, translation in locales.catalogue().items():
        assert Counter(number.findall(sentence)) == Counter(number.findall(translation)), sentence
        if sentence != "LIST":
            assert Counter(name.findall(sentence)) <= Counter(name.findall(translation)), sentence


def test_the_catalogue_holds_no_sentence_that_no_node_says(shown):
    said = {sentence for text in shown.values() for sentence in locales.sentences(text)}
    assert locales.catalogue().keys() - said <= CATEGORIES


def test_a_sentence_without_a_translation_stays_in_english_and_is_listed():
    catalogue = {"Known.": "已知。", "Braces.": "{}"}
    entry = {"description": "Known. Unheard of. (arXiv:2404.07724)", "tooltip": "New.", "other": "Braces."}
    assert locales.translated(entry, catalogue) == {"description": "已知。 Unheard of. （arXiv:2404.07724）"}
    assert locales.untranslated(entry, catalogue) == ["Unheard of.", "New."]

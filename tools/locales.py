"""Write locales/: the nodes' texts for the host's page in Chinese, by a catalogue of sentences.

English needs no file: wherever the page looks for a text in locales/, it falls back to the schema's own.
locales/zh/sentences.json has each English sentence once, with its translation; it is written by hand. Inputs keep
their ids as names, so these are left out, as are those of outputs that are called by their type: the page knows both.
"""

import json
import re

from .places import ROOT

FOLDER = ROOT / "locales"
PAPER = re.compile(r"\((arXiv:[\d.]+)\)")
SYNTAX = re.compile(r"[{}@|]")  # not text to the page, which compiles messages (its tooltips too, before 1.45)


def schemas() -> list:
    """The schemas of all nodes, in their order. The host has to be importable."""
    from ..nodes.extension import nodes

    return [node.define_schema() for node in nodes()]


def name_of(schema) -> str:
    """The short name of a node, as messages and the help pages call it: a part of its title."""
    from ..nodes.extension import nodes

    return next((node.about.name for node in nodes() if node.about.node_id == schema.node_id), schema.display_name)


def texts(schema) -> dict:
    """One node's entry in nodeDefs.json, in the schema's words."""
    outputs = {}
    for at, output in enumerate(schema.outputs):
        is_named = output.display_name not in (None, output.get_io_type())
        outputs[str(at)] = ({"name": output.display_name} if is_named else {}) | {"tooltip": output.tooltip}
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {given.id: {"tooltip": given.tooltip} for given in schema.inputs},
        "outputs": outputs,
    }


def sentences(text: str) -> list[str]:
    """The sentences of a text, which are translated one by one."""
    return re.split(r"(?<=\.) ", text)


def translated(entry: dict, catalogue: dict[str, str]) -> dict:
    """The texts of `entry` in Chinese. A sentence without a translation stays in English. A text without any Chinese, and
    one that the page would not take as it is, is left out: the page then shows the schema's own."""
    found = {}
    for key, value in entry.items():
        if isinstance(value, dict):
            inner = translated(value, catalogue)
            found |= {key: inner} if inner else {}
        elif any(sentence in catalogue for sentence in sentences(value)):
            text = _in_chinese(value, catalogue)
            found |= {} if SYNTAX.search(text) else {key: text}
    return found


def _in_chinese(text: str, catalogue: dict[str, str]) -> str:
    parts = []
    for sentence in sentences(text):
        if paper := PAPER.fullmatch(sentence):
            parts.append(f"（{paper[1]}）")
        else:
            parts.append(catalogue.get(sentence, f" {sentence} "))
    return "".join(parts).strip()


def untranslated(entry: dict, catalogue: dict[str, str]) -> list[str]:
    """The sentences of `entry` that the catalogue lacks, each once."""
    missing = []
    for value in entry.values():
        if isinstance(value, dict):
            missing += untranslated(value, catalogue)
        else:
            missing += [one for one in sentences(value) if one not in catalogue and not PAPER.fullmatch(one)]
    return list(dict.fromkeys(missing))


def catalogue() -> dict[str, str]:
    """English sentence → Chinese. A name that is the same in both stands there too."""
    return json.loads((FOLDER / "zh" / "sentences.json").read_text("utf-8"))


def files(schemas: list) -> dict[str, str]:
    """Path below locales/ → content."""
    nodes = {schema.node_id: texts(schema) for schema in schemas}
    parts = dict.fromkeys(part for schema in schemas for part in schema.category.split("/"))
    categories = {"nodeCategories": {part: part for part in parts}}  # the page looks for each part by itself
    found = {
        "zh/nodeDefs.json": translated(nodes, catalogue()),
        "zh/main.json": translated(categories, catalogue()),
    }
    return {path: json.dumps(entry, indent=2, ensure_ascii=False) + "\n" for path, entry in found.items()}


def write() -> None:
    """All of them. The host has to be importable."""
    for path, content in files(schemas()).items():
        (FOLDER / path).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / path).write_text(content, "utf-8")

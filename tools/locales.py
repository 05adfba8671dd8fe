"""Write locales/: the nodes' texts for the host's page, in English and, by a catalogue of sentences, in Chinese.

locales/zh/sentences.json has each English sentence once, with its translation; it is written by hand. Inputs keep
their ids as names, so these are left out, as are those of outputs that are called by their type: the page knows both.
"""

import asyncio
import json
import re

from .places import ROOT

FOLDER = ROOT / "locales"
PAPER = re.compile(r"\((arXiv:[\d.]+)\)")
SYNTAX = re.compile(r"[{}@|]")  # not text to the page, which compiles messages (its tooltips too, before 1.45)


def schemas() -> list:
    from ..nodes.extension import BeyondCFG

    return [node.define_schema() for node in asyncio.run(BeyondCFG().get_node_list())]


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
    return re.split(r"(?<=\.) ", text)


def readable(entry: dict) -> dict:
    """Without the texts that the page would not take as they are: it then shows the schema's, which it does not compile."""
    found = {}
    for key, value in entry.items():
        if isinstance(value, dict):
            found[key] = readable(value)
        elif not SYNTAX.search(value):
            found[key] = value
    return found


def translated(entry: dict, catalogue: dict[str, str]) -> dict:
    """Raises ValueError with every sentence that the catalogue lacks."""
    missing = []

    def translate(value):
        if isinstance(value, dict):
            return {key: translate(inner) for key, inner in value.items()}
        found = []
        for sentence in sentences(value):
            if paper := PAPER.fullmatch(sentence):
                found.append(f"（{paper[1]}）")
            elif sentence in catalogue:
                found.append(catalogue[sentence])
            else:
                missing.append(sentence)
        return "".join(found)

    result = translate(entry)
    if missing:
        raise ValueError("zh/sentences.json has no translation of:\n" + "\n".join(dict.fromkeys(missing)))
    return result


def catalogue() -> dict[str, str]:
    return json.loads((FOLDER / "zh" / "sentences.json").read_text("utf-8"))


def files(schemas: list) -> dict[str, str]:
    """Path below locales/ → content."""
    nodes = {schema.node_id: texts(schema) for schema in schemas}
    categories = {"nodeCategories": {schema.category: schema.category for schema in schemas}}
    found = {
        "en/nodeDefs.json": readable(nodes),
        "en/main.json": categories,
        "zh/nodeDefs.json": translated(nodes, catalogue()),
        "zh/main.json": translated(categories, catalogue()),
    }
    return {path: json.dumps(entry, indent=2, ensure_ascii=False) + "\n" for path, entry in found.items()}


def write() -> None:
    """All of them. The host has to be importable."""
    for path, content in files(schemas()).items():
        (FOLDER / path).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / path).write_text(content, "utf-8")

"""Write subgraphs/: ready blocks of guidance nodes, which the host offers in its search; python dev.py docs runs this.

A block is a chain of the pack's nodes, MODEL in and MODEL out, with the values of guiders/presets.py or of the source that
it names. Its first settings are on the block itself.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from .places import ROOT

FOLDER = ROOT / "subgraphs"
SPACE = uuid.UUID("8c5c0f2e-5e0c-4a8e-9a57-6c1f2b6f2a11")  # of the blocks' ids, which are the same each time
WIDTH, GAP = 300, 40


@dataclass(frozen=True)
class Blueprint:
    """name: what the host's search shows, and the file's name. nodes: (node id without BeyondCFG, its values), in the order
    of the chain. shown: (which of the nodes, input) of the settings that are on the block. about: what it is, and where its
    values are from."""

    name: str
    nodes: tuple[tuple[str, Mapping], ...]
    shown: tuple[tuple[int, str], ...]
    about: str


def of_preset(name: str, problem: str, family: str, *more: tuple[str, Mapping]) -> Blueprint:
    """The block of a line of the table of presets, with further nodes after it."""
    from ..guiders.presets import preset

    settings = preset(problem, family)
    nodes = (*((setting.node, setting.at(0.5)) for setting in settings), *more)
    shown = ((0, next(iter(settings[0].values))),)
    sources = "; ".join(setting.source for setting in settings)
    return Blueprint(f"{name} (Beyond CFG)", nodes, shown, f"For {family}: {problem}. Source of the values: {sources}.")


def blueprints() -> list[Blueprint]:
    """All of them."""
    rescale = ("Rescale", {"amount": 0.7})
    interval = ("Interval", {"start_percent": 0.19, "end_percent": 0.93})
    return [
        of_preset("Clearer shapes for SDXL", "shapes and anatomy", "SDXL", rescale),
        of_preset("More detail for SDXL", "too little detail", "SDXL"),
        of_preset("No more flat pictures for SDXL", "flat", "SDXL"),
        of_preset("Clearer shapes for SD 1.5", "shapes and anatomy", "SD 1.5", rescale),
        of_preset("Better anatomy for SD3.5", "shapes and anatomy", "SD3, SD3.5"),
        of_preset("Clearer shapes for Flux", "no negative prompt possible", "Flux"),
        Blueprint(
            "Negative prompt for Flux (Beyond CFG)",
            (("NAG", {"scale": 5.0, "tau": 2.5, "alpha": 0.25, "end_percent": 0.51}),),
            ((0, "scale"),),
            "For Flux at cfg 1: a negative prompt. Source of the values: the authors' example workflows.",
        ),
        of_preset("Better anatomy for Wan", "shapes and anatomy", "Wan"),
        of_preset("Better motion for LTX-Video", "shapes and anatomy", "LTX-Video"),
        Blueprint(
            "High cfg without burnt colours (Beyond CFG)",
            (interval, ("AdaptiveProjected", {"eta": 0.0}), rescale),
            ((0, "start_percent"), (1, "eta"), (2, "amount")),
            "For any model with cfg. Source of the values: the papers of CFG Interval (for SDXL) and of Adaptive Projected "
            "Guidance, and the default of ComfyUI's own RescaleCFG.",
        ),
        Blueprint(
            "Autoguidance from one file (Beyond CFG)",
            (("DegradedModel", {}), ("Autoguidance", {})),
            ((0, "degradation"), (1, "weight")),
            "For any model: the same file, made worse, is the weak model. An experiment: the defaults are our rule.",
        ),
        Blueprint(
            "Faster PAG and CFG (Beyond CFG)",
            (("PAG", {"scale": 3.0}), ("Reuse", {"every": 3})),
            ((0, "scale"), (1, "every")),
            "For any model, with 16 steps or more. Source of the values: the authors of PAG; our small model for every 3.",
        ),
    ]


def document(blueprint: Blueprint, nodes: Mapping) -> dict:
    """The block as the page saves one. `nodes`: node id → its class."""
    links, inside = [], []
    inputs = {"model": "MODEL"}
    for at, (kind, values) in enumerate(blueprint.nodes):
        made = _node(at, nodes[f"BeyondCFG{kind}"], values)
        inside.append(made)
    prompts = [made for made in inside if any(one["name"] == "negative" for one in made["inputs"])]
    if prompts:
        inputs["negative"] = "CONDITIONING"
    _chain(inside, links, autoguidance=blueprint.nodes[-1][0] == "Autoguidance")
    for made in prompts:
        _link(links, -10, 1, made, "negative", "CONDITIONING")
    last = inside[-1]
    _link(links, last["id"], 0, None, "", "MODEL")
    last["outputs"][0]["links"] = [links[-1]["id"]]
    own = str(uuid.uuid5(SPACE, blueprint.name))
    slots = [
        {
            "id": str(uuid.uuid5(SPACE, f"{blueprint.name} {name}")), "name": name, "type": kind, "localized_name": name,
            "linkIds": [link["id"] for link in links if link["origin_id"] == -10 and link["origin_slot"] == at],
            "pos": [-80, 60 + 20 * at],
        }
        for at, (name, kind) in enumerate(inputs.items())
    ]  # fmt: skip
    right = (WIDTH + GAP) * len(inside)
    out = {
        "id": str(uuid.uuid5(SPACE, f"{blueprint.name} MODEL")), "name": "MODEL", "type": "MODEL",
        "localized_name": "MODEL", "linkIds": [links[-1]["id"]], "pos": [right + 20, 60],
    }  # fmt: skip
    subgraph = {
        "id": own, "version": 1, "revision": 0, "config": {}, "name": blueprint.name, "description": blueprint.about,
        "state": {"lastGroupId": 0, "lastNodeId": len(inside), "lastLinkId": len(links), "lastRerouteId": 0},
        "inputNode": {"id": -10, "bounding": [-180, 40, 120, 60 + 20 * len(inputs)]},
        "outputNode": {"id": -20, "bounding": [right, 40, 120, 60]},
        "inputs": slots, "outputs": [out], "widgets": [], "nodes": inside, "groups": [], "links": links,
        "extra": {}, "category": "Beyond CFG",
    }  # fmt: skip
    outer = {
        "id": 1, "type": own, "pos": [0, 0], "size": [WIDTH, 60 + 26 * len(blueprint.shown)], "flags": {}, "order": 0,
        "mode": 0,
        "inputs": [{"name": name, "type": kind, "localized_name": name, "link": None} for name, kind in inputs.items()],
        "outputs": [{"name": "MODEL", "type": "MODEL", "localized_name": "MODEL", "links": []}],
        "properties": {"proxyWidgets": [[str(inside[at]["id"]), name] for at, name in blueprint.shown]},
        "widgets_values": [], "title": blueprint.name,
    }  # fmt: skip
    return {
        "revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [outer], "links": [], "version": 0.4,
        "definitions": {"subgraphs": [subgraph]}, "extra": {},
    }  # fmt: skip


def _node(at: int, node, values: Mapping) -> dict:
    """One node of the chain as the page saves it: its sockets first, then an input for each widget, in their order."""
    from comfy_api.latest import io

    widgets = [given for given in node.inputs if isinstance(given, io.WidgetInput)]
    sockets = [given for given in node.inputs if given not in widgets]
    chosen = [values.get(given.id, given.default) for given in widgets]
    return {
        "id": at + 1, "type": node.about.node_id, "pos": [(WIDTH + GAP) * at, 0],
        "size": [WIDTH, 100 + 24 * len(widgets)],
        "flags": {}, "order": at, "mode": 0,
        "inputs": [
            {"name": given.id, "type": given.get_io_type(), "localized_name": given.id, "link": None}
            | ({"shape": 7} if given.optional else {})
            for given in sockets
        ] + [
            {"name": given.id, "type": given.get_io_type(), "localized_name": given.id, "link": None}
            | {"widget": {"name": given.id}}
            for given in widgets
        ],
        "outputs": [{"name": "MODEL", "type": "MODEL", "localized_name": "MODEL", "links": []}],
        "properties": {"Node name for S&R": node.about.node_id},
        "widgets_values": chosen,
    }  # fmt: skip


def _chain(inside: list[dict], links: list[dict], autoguidance: bool) -> None:
    """MODEL through all of them. Autoguidance gets the block's model too, and what is before it as weak model."""
    origin = (-10, 0)
    for made in inside:
        last = autoguidance and made is inside[-1]
        source = (-10, 0) if last else origin
        _link(links, *source, made, "model", "MODEL")
        if last:
            _link(links, *origin, made, "weak_model", "MODEL")
        origin = (made["id"], 0)
    for link in links:
        for made in inside:
            if link["origin_id"] == made["id"]:
                made["outputs"][0]["links"].append(link["id"])


def _link(links: list[dict], origin: int, slot: int, target: dict | None, name: str, kind: str) -> None:
    """A link into the input `name` of a node, or out of the block."""
    number = len(links) + 1
    at = 0
    if target is not None:
        at = next(place for place, given in enumerate(target["inputs"]) if given["name"] == name)
        target["inputs"][at]["link"] = number
    links.append({
        "id": number, "origin_id": origin, "origin_slot": slot, "target_id": -20 if target is None else target["id"],
        "target_slot": at, "type": kind,
    })  # fmt: skip


def files() -> dict[str, str]:
    """File name → content. The host has to be importable."""
    import asyncio

    from ..nodes.extension import BeyondCFG

    nodes = {node.about.node_id: node for node in asyncio.run(BeyondCFG().get_node_list())}
    return {
        f"{blueprint.name}.json": json.dumps(document(blueprint, nodes), indent=2) + "\n" for blueprint in blueprints()
    }


def write() -> None:
    """All of them, and nothing else in the folder."""
    FOLDER.mkdir(exist_ok=True)
    found = files()
    for old in set(FOLDER.glob("*.json")) - {FOLDER / name for name in found}:
        old.unlink()
    for name, content in found.items():
        (FOLDER / name).write_text(content, "utf-8")

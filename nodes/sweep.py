"""One input of one node, a list of values, one grid: the host runs the nodes that depend on it once for each value."""

from __future__ import annotations

import copy
import math
from typing import Any

from comfy_api.latest import io

from ..guiders.base import About
from ..patches.texts import shown
from . import schema
from .graph import Graph, Link
from .labels import label_of

MOST = 50  # values: the host's Batch Images joins no more
LISTED = 12  # nodes or choices in a message
WORDS = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}


class GuidanceSweep(schema.Node):
    """A picture, an input of a node before it and values → a grid of the picture with each value."""

    about = About(
        node_id="BeyondCFGSweep",
        name="Guidance Sweep",
        title="Try Many Values (Guidance Sweep)",
        group="Tools",
        summary=(
            "Shows what one setting does: it makes your picture once for each of a list of values, side by side and "
            "labelled. Everything that does not depend on the setting is computed once."
        ),
        aliases=(
            "xy plot",
            "compare values",
            "find the best scale",
            "try values",
            "parameter sweep",
            "grid search",
            "test strengths",
        ),
    )
    inputs = (
        io.Image.Input(
            "images",
            lazy=True,
            raw_link=True,
            tooltip="The picture to make with each value, from VAE Decode or any node after it.",
        ),
        io.String.Input(
            "setting",
            default="PAG.scale",
            tooltip="The node and its input, with a dot between them: PAG.scale, KSampler.cfg. The node is its title, its "
            "number or its kind.",
        ),
        io.String.Input(
            "values",
            multiline=True,
            default="0, 1.5, 3, 5",
            tooltip="The values, with commas between them, or one per line where a value has commas of its own.",
        ),
        io.String.Input("title", default="", tooltip="A line above the grid. Empty: none."),
    )
    output = io.Image.Output("IMAGE", tooltip="The grid.")
    further = (
        io.Image.Output(display_name="pictures", tooltip="The pictures one by one, in the order of the values."),
    )
    shows = True
    expands = True
    hears = (io.Hidden.dynprompt, io.Hidden.unique_id)

    @classmethod
    def build(cls, images, setting, values, title):
        if cls.hidden is None or cls.hidden.dynprompt is None:
            raise ValueError("images must come from a node of a graph that runs, such as VAE Decode")
        graph, picture, own = Graph(cls.hidden.dynprompt.get_node), Link(*images), cls.hidden.unique_id
        node, name = chosen(graph, picture, setting)
        made, ends, labels = {}, [], []
        for at, value in enumerate(parsed(graph, node, name, text) for text in parts_of(values)):
            labels.append(label_of(graph, node, name, value))
            if graph.values(node).get(name) == value:
                ends.append([*picture])  # as it is; others may need it too
                continue
            made |= copied(graph, picture, node, {name: value}, f"{own}.{at}.")
            ends.append([f"{own}.{at}.{picture.node}", picture.slot])
        batch, grid = f"{own}.pictures", f"{own}.grid"
        joined = {f"images.image{at}": end for at, end in enumerate(ends)}
        drawn = {"images": [batch, 0], "columns": "\n".join(labels), "rows": "", "title": title, "fill": "columns"}
        made |= {batch: {"class_type": "BatchImagesNode", "inputs": joined}}
        made |= {grid: {"class_type": "BeyondCFGGrid", "inputs": drawn}}
        return io.NodeOutput([grid, 0], [batch, 0], expand=made)


def chosen(graph: Graph, picture: Link, setting: str) -> tuple[str, str]:
    """(the node, its input) that a text names, of those before a picture. Both may hold dots. Raises ValueError, with what
    can be named, where there is none, or several."""
    nodes = [node for node in reversed(graph.before(picture)) if graph.takes(node)]
    said = f'setting is "{shown(setting)}"'
    known = None
    for dot in (at for at, letter in enumerate(setting) if letter == "."):
        name, given = setting[:dot].strip(), setting[dot + 1 :].strip()
        found = _called(graph, nodes, name.lower())
        having = [node for node in found if given in graph.takes(node)]
        if len(having) == 1:
            return having[0], given
        if having:
            raise ValueError(
                f"{said}, and {len(having)} nodes before the picture are called so. Write the number of one: "
                f"{' or '.join(f'{node}.{given}' for node in having[:LISTED])}"
            )
        known = found[0] if found else known
    if known is not None:
        raise ValueError(f"{said}, but {graph.name(known)} has these inputs: {', '.join(graph.takes(known))}")
    names = dict.fromkeys(map(graph.name, nodes))
    raise ValueError(
        f"{said}; it must be a node before the picture and one of its inputs, such as {_example(graph, nodes)}. The nodes "
        f"are {', '.join(names)}"
    )


def _called(graph: Graph, nodes: list[str], name: str) -> list[str]:
    """Those of this number, else of this title, else of this name or kind."""
    for called in (str, graph.title, graph.name, graph.kind):
        if found := [node for node in nodes if called(node).lower() == name]:
            return found
    return []


def _example(graph: Graph, nodes: list[str]) -> str:
    node = next((node for node in nodes if graph.ours(node)), nodes[0] if nodes else None)
    return "KSampler.cfg" if node is None else f"{graph.name(node)}.{next(iter(graph.takes(node)))}"


def parts_of(values: str) -> list[str]:
    """The values of a text: its lines where it has several, else what stands between commas. Raises ValueError for none, or
    too many."""
    lines = [line.strip() for line in values.splitlines() if line.strip()]
    found = lines if len(lines) > 1 else [part.strip() for line in lines for part in line.split(",") if part.strip()]
    if not found:
        raise ValueError("values is empty; write some, such as 0, 1.5, 3")
    if len(found) > MOST:
        raise ValueError(f"values has {len(found)} values; at most {MOST} can be compared")
    return found


def parsed(graph: Graph, node: str, name: str, text: str) -> Any:
    """A value for an input, from its text. Raises ValueError, with what it must be."""
    kind, options = graph.takes(node)[name]
    value, wanted = _READ[kind](text, options)
    if value is None:
        raise ValueError(f'values has "{shown(text)}", but {name} of {graph.name(node)} must be {wanted}')
    return value


def _number(text: str, options: dict, whole: bool) -> tuple[float | int | None, str]:
    low, high = options.get("min", -math.inf), options.get("max", math.inf)
    wanted = f"a {'whole ' * whole}number from {low} to {high}"
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        return None, wanted
    return value if low <= value <= high else None, wanted  # NaN is not


def _choice(text: str, options: dict) -> tuple[Any, str]:
    known = options.get("options")
    if not isinstance(known, (list, tuple)):
        return text, ""  # which the page alone knows
    listed = ", ".join(map(str, known[:LISTED])) + (f" and {len(known) - LISTED} more" if len(known) > LISTED else "")
    return next((each for each in known if str(each) == text), None), f"one of {listed}"


_READ = {
    "INT": lambda text, options: _number(text, options, whole=True),
    "FLOAT": lambda text, options: _number(text, options, whole=False),
    "BOOLEAN": lambda text, options: (WORDS.get(text.lower()), "true or false"),
    "STRING": lambda text, options: (text, ""),
    "COMBO": _choice,
}


def copied(graph: Graph, picture: Link, node: str, values: dict, prefix: str) -> dict[str, dict]:
    """Copies of `node`, with these values, and of all that the picture depends on and that depends on it. Each shows its
    progress on what it is a copy of."""
    ids: dict[str, str] = {}
    found = {}
    for each in graph.before(picture):
        links = [value.node for value in graph.inputs(each).values() if isinstance(value, Link)]
        if each != node and not any(link in ids for link in links):
            continue
        ids[each] = prefix + each
        inputs = {
            name: [ids.get(value.node, value.node), value.slot] if isinstance(value, Link) else copy.deepcopy(value)
            for name, value in graph.inputs(each).items()
        }
        inputs |= values if each == node else {}
        about = {"override_display_id": each, "_meta": {"title": graph.title(each)}}
        found[ids[each]] = {"class_type": graph.kind(each), "inputs": inputs, **about}
    return found


NODES = [GuidanceSweep]

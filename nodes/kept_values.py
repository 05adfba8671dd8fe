"""MODEL, a node's name and values → a file, from which Guidance (easy) and the page take them for this checkpoint."""

from __future__ import annotations

import json

from comfy_api.latest import io, ui

from ..guiders.base import About
from ..guiders.host.measured import Measured, keep, measured_for
from ..guiders.presets import Setting, with_measured
from ..patches.host.log import warn_once
from ..patches.texts import shown
from . import schema
from .guidance import Guidance
from .terms import GUIDANCES
from .values import check

BY_NODE = {guidance.about.node_id.removeprefix("BeyondCFG"): guidance for guidance in GUIDANCES}


def full_values(guidance: Guidance, values: dict) -> dict:
    """These values of a guidance's node, and the defaults of its others."""
    defaults = {given.id: getattr(given, "default", None) for given in guidance.inputs if not given.optional}
    return {name: default for name, default in defaults.items() if default is not None} | values


def check_values(node: str, values: dict) -> None:
    """Raise ValueError where the node of this name cannot have these values."""
    if node not in BY_NODE:
        raise ValueError(f'there is no node "{shown(node)}"; there are {", ".join(BY_NODE)}')
    known = {given.id: given for given in BY_NODE[node].inputs if getattr(given, "default", None) is not None}
    if not values:
        raise ValueError(f"there are no values; {node} has {', '.join(known)}")
    for name, value in values.items():
        if name not in known:
            raise ValueError(f'{node} has no value "{shown(name)}"; it has {", ".join(known)}')
        if not isinstance(value, (str, int, float)):
            raise ValueError(f"{name} is of the type {type(value).__name__}; it must be a number or a text")
        check(known[name], value)


def usable(found: Measured | None) -> list[Setting]:
    """Those of a file that a node can have, the newest first. A warning names the file of one that none can have."""
    good = []
    for setting in found.settings if found else ():
        try:
            check_values(setting.node, dict(setting.values))
            good.append(setting)
        except ValueError as error:
            warn_once(f"measured values in {found.path if found else ''} are not used: {error}")
    return good


def measured_in_place(model, chosen: tuple[Setting, ...]) -> tuple[Setting, ...]:
    """`chosen`, with the values that were measured for MODEL's checkpoint in place of theirs, where there are some."""
    found = measured_for(model) if chosen else None
    newest: dict[str, Setting] = {}
    for setting in usable(found):
        newest.setdefault(setting.node, setting)

    def best(setting: Setting) -> Setting:
        if found is None or setting.node not in newest:
            return setting
        guidance = BY_NODE[setting.node]
        measured = with_measured(setting, newest[setting.node], guidance.about.strength, guidance.about.off)
        try:
            for strength in (0.5, 1.0):  # in what a file says there may be layers that the model lacks
                guidance.add(guidance.about.name, model=model, **full_values(guidance, measured.at(strength)))
        except ValueError as error:
            warn_once(f"measured values in {found.path} are not used: {error}")
            return setting
        return measured

    return tuple(map(best, chosen))


def parsed(node: str, text: str) -> dict:
    """The values of a JSON text. Raises ValueError where it is none that the node can have."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ValueError(f'values is "{shown(text)}"; {EXAMPLE}')
    check_values(node, values)
    return values


EXAMPLE = 'it must be names with values as JSON, such as "scale": 2.5, "layers": "middle" between curly brackets'


class KeepValues(schema.Node):
    """MODEL, a node's name and its values → the file that has them for this checkpoint."""

    about = About(
        node_id="BeyondCFGKeepValues",
        name="Keep Values",
        title="Keep Values for This Model",
        group="Tools",
        summary=(
            "Keeps values of a guidance node that are good for your model, in a file of your user folder. Guidance (easy) "
            "and the menu Values for a model then offer them first, for this very checkpoint. Nothing is sampled."
        ),
        aliases=("save settings", "measured values", "remember values", "preset for my model", "best settings"),
    )
    inputs = (
        io.Model.Input("model", tooltip="The model that the values are good for. LoRAs on it make no difference."),
        io.Combo.Input(
            "node", options=list(BY_NODE), default="PAG", tooltip="The guidance node that the values are of."
        ),
        io.String.Input(
            "values",
            multiline=True,
            default='{"scale": 3.0}',
            tooltip='The values to keep. Write them as {"scale": 2.5, "layers": "middle"}: names of inputs, and texts, in '
            "straight quotes, with commas between. Inputs that you leave out keep the value that they have without this.",
        ),
        io.String.Input(
            "source",
            default="found by hand",
            tooltip="How you have found them, in your own words. It stands beside the values wherever they are offered.",
        ),
    )
    output = io.String.Output(display_name="file", tooltip="The file that the values are in.")
    shows = True

    @classmethod
    def build(cls, model, node, values, source):
        found = parsed(node, values)
        guidance = BY_NODE[node]
        full = full_values(guidance, found)
        if not [given for given in guidance.inputs if not given.optional and given.id not in {"model", *full}]:
            guidance.add(
                guidance.about.name, model=model, **full
            )  # refuses what this model cannot have, such as layers
        path = keep(model, node, found, source.strip() or "kept by hand")
        return io.NodeOutput(str(path), ui=ui.PreviewText(f"{guidance.about.title}: {values}\nin {path}"))

    @classmethod
    def foresee(cls, written):
        if written.has(("node", "values")):
            parsed(written.values["node"], written.values["values"])


NODES = [KeepValues]

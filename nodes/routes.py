"""What the page asks the host for while the user edits, before anything is queued, and how a prompt comes in."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web
from comfy_api.latest import io
from server import PromptServer

from ..guiders.host.measured import all_measured
from ..guiders.presets import PRESETS, values_of
from ..guiders.schedule import Curve
from ..patches.host.log import LISTENERS
from ..patches.texts import shown
from .extension import all_nodes
from .helpers import GuidanceSchedule
from .kept_values import usable
from .replacements import completed, register
from .warnings import Warnings

SETTINGS = {given.id: given for given in GuidanceSchedule.inputs if hasattr(given, "default")}
FINENESS = 200  # straight pieces of a curve that is drawn


def curve_of(settings: Mapping[str, str]) -> Curve:
    """The node's curve with these settings, else its defaults. Raises ValueError, as the node does."""
    for name in settings:
        if name not in SETTINGS:
            raise ValueError(f'there is no setting "{shown(name)}"; there are {", ".join(SETTINGS)}')
    values = {name: _read(given, settings[name]) for name, given in SETTINGS.items() if name in settings}
    return GuidanceSchedule.built(**{name: given.default for name, given in SETTINGS.items()} | values)


def _read(given: io.Input, text: str) -> float | str:
    try:
        return float(text) if isinstance(given, io.Float.Input) else text
    except ValueError:
        return text  # which the node refuses


def drawing_of(curve: Curve) -> dict:
    """What the page draws of a curve: where it begins and ends on the axis, and the line as points (where, strength)."""
    low, high = (0.0, 1.0) if curve.over == "percent" else (0.0, max(1.1 * curve.points[-1][0], 1e-3))
    places = {low + (high - low) * at / FINENESS for at in range(FINENESS + 1)}
    places |= {at for at, _ in curve.points if low <= at <= high}
    return {"low": low, "high": high, "points": curve.points, "line": [(at, curve(at)) for at in sorted(places)]}


def published() -> dict[str, list[dict]]:
    """Node id → the values that are published for it, for each family of models."""
    found = {}
    for settings in (settings for families in PRESETS.values() for settings in families.values()):
        for node in (setting.node for setting in settings):
            found[f"BeyondCFG{node}"] = [
                {"family": family, "values": setting.at(0.5), "source": setting.source}
                for family, setting in values_of(node).items()
            ]
    return {node: lines for node, lines in found.items() if lines}


def offered() -> dict[str, list[dict]]:
    """Node id → the values for it: those that were measured for a checkpoint, which is said with its name, and behind them
    those that are published for families of models."""
    found: dict[str, list[dict]] = {}
    for measured in all_measured():
        for setting in usable(measured):
            values = dict(setting.values)
            line = {"family": f"measured for {measured.model}", "values": values, "source": setting.source}
            found.setdefault(f"BeyondCFG{setting.node}", []).append({**line, "model": measured.model})
    for node, lines in published().items():
        found.setdefault(node, []).extend(lines)
    return found


async def add_replacements() -> None:
    """Let the host swap old nodes for ours. Does nothing where the host runs without a server."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.add_on_prompt_handler(completed)
        await register()


def add_routes() -> None:
    """Let the host's server answer what the page asks, and tell the page what the pack warns of. Does nothing where the
    host runs without a server."""
    server = getattr(PromptServer, "instance", None)
    if server is None:  # without a page
        return
    warnings = Warnings(server)
    LISTENERS.append(warnings.hear)

    @server.routes.get("/beyond_cfg_nodes")
    async def names(_: web.Request) -> web.Response:
        """Node id → the short name with which the node's sentences begin."""
        return web.json_response({node.about.node_id: node.about.name for node in all_nodes()})

    @server.routes.get("/beyond_cfg_warnings/{prompt_id}")
    async def warned(request: web.Request) -> web.Response:
        """What the pack warned of while a prompt ran, as a list of texts."""
        return web.json_response(warnings.of(request.match_info["prompt_id"]))

    @server.routes.get("/beyond_cfg_schedule")
    async def schedule(request: web.Request) -> web.Response:
        """The curve of a Guidance Schedule with these settings; 400 with the node's own words for what cannot work."""
        try:
            return web.json_response(drawing_of(curve_of(request.query)))
        except ValueError as error:
            return web.Response(text=str(error), status=400)

    @server.routes.get("/beyond_cfg_values")
    async def values(_: web.Request) -> web.Response:
        """The measured and published values of each node, for the page's menu."""
        return web.json_response(offered())

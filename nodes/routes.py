"""What the page asks the host for while the user edits, before anything is queued."""

from __future__ import annotations

from aiohttp import web
from server import PromptServer

from .drawing import draw_schedule, png
from .helpers import GuidanceSchedule


def add_routes() -> None:
    if getattr(PromptServer, "instance", None) is None:  # without a page
        return

    @PromptServer.instance.routes.get("/beyond_cfg_schedule")
    async def schedule(request: web.Request) -> web.Response:
        """The picture of a Guidance Schedule with these settings; 400 with the node's own words for what cannot work."""
        settings = dict(request.query)
        try:
            numbers = {name: float(settings.pop(name)) for name in ("start", "end", "power") if name in settings}
            curve = GuidanceSchedule.build(**settings, **numbers)
            return web.Response(body=png(draw_schedule(curve)), content_type="image/png")
        except (TypeError, ValueError) as error:
            return web.Response(text=str(error), status=400)

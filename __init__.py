"""Beyond CFG: diffusion guidance beyond plain CFG, as ComfyUI nodes."""

WEB_DIRECTORY = "./web"  # the host serves it: *.js run in the page, docs/<node id>.md are the nodes' help


async def comfy_entrypoint():
    """What the host calls to load the pack: its nodes, and what the page asks for."""
    from .nodes.extension import BeyondCFG  # not above: pytest imports this package too, without a host
    from .nodes.routes import add_routes

    add_routes()
    return BeyondCFG()

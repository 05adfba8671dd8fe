"""Beyond CFG: diffusion guidance beyond plain CFG, as ComfyUI nodes."""

WEB_DIRECTORY = "./web"  # the host serves it: *.js run in the page, docs/<node id>.md are the nodes' help


async def comfy_entrypoint():
    """What the host calls to load the pack: its nodes, what the page asks for, and the old nodes that ours replace."""
    from .nodes.extension import BeyondCFG  # not above: pytest imports this package too, without a host
    from .nodes.routes import add_replacements, add_routes

    add_routes()
    await add_replacements()
    return BeyondCFG()

"""Beyond CFG: diffusion guidance beyond plain CFG, as ComfyUI nodes."""

WEB_DIRECTORY = "./web"  # the host serves it: *.js run in the page, docs/<node id>.md are the nodes' help


async def comfy_entrypoint():
    from .nodes.extension import BeyondCFG  # not above: pytest imports this package too, without a host
    from .nodes.routes import add_routes

    add_routes()
    return BeyondCFG()

"""Beyond CFG: diffusion guidance beyond plain CFG, as ComfyUI nodes."""

WEB_DIRECTORY = "./web"  # the host serves docs/<node id>.md from it as the node's help


async def comfy_entrypoint():
    from .nodes import BeyondCFG  # not above: pytest imports this package too, without a host

    return BeyondCFG()

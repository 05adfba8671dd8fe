"""Beyond CFG: diffusion guidance beyond plain CFG, as ComfyUI nodes."""


async def comfy_entrypoint():
    from .nodes import BeyondCFG  # not above: pytest imports this package too, without a host

    return BeyondCFG()

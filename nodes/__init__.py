"""What the user sees: declarations only."""

from comfy_api.latest import ComfyExtension

from . import guiders, helpers, terms


class BeyondCFG(ComfyExtension):
    async def get_node_list(self):
        return [*terms.NODES, *guiders.NODES, *helpers.NODES]

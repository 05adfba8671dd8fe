"""The pack as the host loads it: all of its nodes."""

from comfy_api.latest import ComfyExtension

from . import classifier, guiders, helpers, report, terms, weaker_models


class BeyondCFG(ComfyExtension):
    """The pack, as the host asks for it."""

    async def get_node_list(self):
        """All nodes, in the order in which the host lists them."""
        return [*terms.NODES, *guiders.NODES, *classifier.NODES, *helpers.NODES, *weaker_models.NODES, *report.NODES]

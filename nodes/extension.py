"""The pack as the host loads it: all of its nodes."""

from comfy_api.latest import ComfyExtension

from . import classifier, distillation, guiders, helpers, report, terms, weaker_models


class BeyondCFG(ComfyExtension):
    """The pack, as the host asks for it."""

    async def get_node_list(self):
        """All nodes, in the order in which the host lists them."""
        modules = terms, guiders, classifier, helpers, weaker_models, distillation, report
        return [node for module in modules for node in module.NODES]

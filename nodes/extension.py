"""The pack as the host loads it: all of its nodes."""

from comfy_api.latest import ComfyExtension

from . import classifier, guiders, helpers, report, terms, weaker_models


class BeyondCFG(ComfyExtension):
    async def get_node_list(self):
        return [*terms.NODES, *guiders.NODES, *classifier.NODES, *helpers.NODES, *weaker_models.NODES, *report.NODES]

"""The pack as the host loads it: all of its nodes."""

from comfy_api.latest import ComfyExtension

from . import (
    classifier,
    distillation,
    grids,
    guiders,
    helpers,
    kept_values,
    layer_probe,
    presets,
    report,
    reuse,
    schema,
    stand_ins,
    sweep,
    terms,
    weaker_models,
)


def nodes() -> list[type[schema.Node]]:
    """All nodes that a user finds, in the order in which the host lists them."""
    groups = (
        presets,
        terms,
        guiders,
        classifier,
        reuse,
        helpers,
        layer_probe,
        kept_values,
        weaker_models,
        distillation,
        report,
        grids,
        sweep,
    )
    return [node for group in groups for node in group.NODES]


def all_nodes() -> list[type[schema.Node]]:
    """Those, and the nodes that stand in for other packs', which no search and no menu shows."""
    return [*nodes(), *stand_ins.NODES]


class BeyondCFG(ComfyExtension):
    """The pack, as the host asks for it."""

    async def get_node_list(self):
        """All nodes, in the order in which the host lists them."""
        return all_nodes()

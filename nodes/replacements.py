"""Old nodes that a node of this pack takes the place of: those of other packs, and our own from before a new name.

The host reads this table. Where an old node is missing, the page offers to swap it, and POST /prompt swaps it before it
runs. Neither looks at a value. So an old node is swapped only for one that gives the same picture for every value that
its inputs may have, or refuses the value by name: most are swapped for those of stand_ins.py, which are in no menu.
docs/COME_OVER.md says which are left out, and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from comfy_api.latest import ComfyAPI, io

from . import stand_ins


@dataclass(frozen=True)
class Replacement:
    """One old node, and what to set on the new one. Both have one output."""

    old: str  # its id
    new: str
    widgets: tuple[str, ...]  # all of the old node's, in the order in which a workflow's file holds their values
    inputs: Mapping[str, str]  # our input: theirs
    values: Mapping[str, object] = field(default_factory=dict)  # our input: what it is set to, if not by theirs
    optional: Mapping[str, object] = field(default_factory=dict)  # inputs that an old node may lack, and their defaults

    def for_host(self):
        """As the host takes it."""
        taken: list[Any] = [{"new_id": ours, "old_id": theirs} for ours, theirs in self.inputs.items()]
        given: list[Any] = [{"new_id": ours, "set_value": value} for ours, value in self.values.items()]
        return io.NodeReplace(
            new_node_id=self.new,
            old_node_id=self.old,
            old_widget_ids=[*self.widgets],
            input_mapping=taken + given,
            output_mapping=[{"new_idx": 0, "old_idx": 0}],  # else the page drops the links behind the node
        )


def stood_in(peer: stand_ins.Peer) -> Replacement:
    """Another pack's node, and that of ours that stands in for it."""
    return Replacement(
        old=peer.node,
        new=peer.about.node_id,
        widgets=tuple(given.id for given in peer.inputs),
        inputs={name: name for name in ("model", *(given.id for given in peer.inputs))},
        optional={given.id: getattr(given, "default", None) for given in peer.inputs if given.optional},
    )


ALWAYS = {"start_percent": 0.0, "end_percent": 1.0}

REPLACEMENTS = (
    # pamparamm/ComfyUI-ppm
    Replacement(
        old="EpsilonScalingPPM",
        new="BeyondCFGEpsilonScaling",
        widgets=("scaling_factor",),
        inputs={"model": "model", "scaling_factor": "scaling_factor"},
        values=ALWAYS,
    ),
    *(stood_in(peer) for peer in stand_ins.PEERS),
)


async def register() -> None:
    """Give the host the table. A host that has no such table is left as it is."""
    if hasattr(io, "NodeReplace"):
        for replacement in REPLACEMENTS:
            await ComfyAPI().node_replacement.register(replacement.for_host())


def completed(request: dict) -> dict:
    """A request to run a prompt, in which every old node has what the host needs to swap it: a `_meta`, which prompts that
    are written by hand often lack, and each input that it takes over."""
    prompt, old = request.get("prompt"), {replacement.old: replacement for replacement in REPLACEMENTS}
    for node in prompt.values() if isinstance(prompt, dict) else ():
        if isinstance(node, dict) and (found := old.get(node.get("class_type", ""))):
            node.setdefault("_meta", {})
            if isinstance(node.get("inputs"), dict):
                node["inputs"] = {**found.optional, **node["inputs"]}
    return request

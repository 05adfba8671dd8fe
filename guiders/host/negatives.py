"""The negative prompt that acts in the attention of the positive, in one model call."""

from __future__ import annotations

import torch

from ...patches.host import NegativePrompt
from ..attended_negative import AttendedNegative
from ..base import Branch
from ..compose import ActiveRule, ActiveRules
from .call_info import CallInfo
from .conditionings import acts_at
from .context import RunContext

TEXT, MASK = "c_crossattn", "attention_mask"  # the host's names of the network's inputs


def negative_prompt(context: RunContext, active: ActiveRules, call: CallInfo) -> NegativePrompt | None:
    """The one of the active rules. Raises ValueError, with the node's name, where there are several, or where it has no
    text that could act."""
    if not active.of_positive:
        return None
    nodes = [context.node_of(one.rule) for one in active.of_positive]
    if len(nodes) > 1:
        raise ValueError(
            f"{', '.join(nodes)}: only one negative prompt can act in the attention. Take out all but one."
        )
    (one,), (node,) = active.of_positive, nodes
    return _of(one, node, context, call)


def _of(active: ActiveRule, node: str, context: RunContext, call: CallInfo) -> NegativePrompt | None:
    rule = active.rule
    if not isinstance(rule, AttendedNegative) or rule.guidance is None:
        return None
    branch = Branch(rule.prompt)
    source = context.conditionings.source(branch, call)
    if source is None:
        raise ValueError(
            f"{node}: {type(context.guider).__name__} has no negative prompt. Connect one to negative here."
        )
    there = {}  # one of each text: for an area of the positive the host adds an entry of the same text, in that area
    for entry in source:
        text = id(entry["model_conds"].get(TEXT))
        if acts_at(entry, call.step.sigma) and ("area" not in entry or text not in there):
            there[text] = entry
    if not there:
        return None  # its range of time is over
    if len(there) > 1:
        raise ValueError(f"{node}: the negative joins {len(there)} prompts, and only one can act in the attention")
    (entry,) = there.values()
    if placed := [key for key in ("area", "mask") if key in entry]:
        raise ValueError(f"{node}: the negative has a place ({', '.join(placed)}). Give this node a region instead.")
    if len(call.step.shapes) > 1 and active.region is not None:
        raise ValueError(f"{node}: this latent packs several, such as video and sound, and region is for one")
    conds = {key: cond.process_cond(batch_size=call.samples, area=None) for key, cond in entry["model_conds"].items()}
    text, mask = (getattr(conds.get(key), "cond", None) for key in (TEXT, MASK))
    if not isinstance(text, torch.Tensor):
        raise ValueError(f"{node}: the negative gives the network no text. Connect an encoded prompt.")
    device = call.step.x.device
    return NegativePrompt(
        rule.guidance, text.to(device), None if mask is None else mask.to(device), active.strength, active.region
    )

"""What all model calls of one run have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from comfy.samplers import CFGGuider

from ...patches.host import Blocks, PrefixSharing, Proofs, uncompiled
from ..base import Branch, GuidanceRule, Latent, Observation
from .attention_maps import LastMap
from .call_info import CallInfo
from .conditionings import Conditionings
from .recorder import Recorder
from .term import Fold, Term
from .weak_models import WeakModels
from .windowed import why_not_windowed


@dataclass(frozen=True)
class RunContext:
    """Made once, when schedule, conditionings and network of a run are final; each model call of the run gets it."""

    guider: CFGGuider
    terms: tuple[Term, ...]
    folds: tuple[Fold, ...]  # what they fold into the result
    conditionings: Conditionings
    weak_models: WeakModels
    recorders: tuple[Recorder, ...]
    observation: Observation | None  # what is observed of the reference's attention
    last_map: LastMap  # what it saw last
    proofs: Proofs
    prefix_sharing: PrefixSharing
    checks: bool  # whether the table of networks is checked by a probe
    blocks: Blocks  # of the network when the run began
    replaced_forwards: dict[str, Callable]  # what other packs have put in place of forwards of the network
    process_out: Callable[[Latent], Latent]  # the host's, from a prediction to what a LATENT holds

    def node_of(self, rule: GuidanceRule) -> str:
        """The name of the node that made `rule`."""
        return next(fold.node for fold in self.folds if fold.rule is rule)

    def check(self, branch: Branch, call: CallInfo, options: dict) -> None:
        """Raise ValueError, naming the node, where the guider has no conditioning for `branch`, or one that cannot be cut
        into its windows. `options`: the host's model_options."""
        source = self.conditionings.source(branch, call)
        if source is None:
            raise ValueError(
                f"{self._nodes_of(branch)}: needs a {branch.conditioning} prompt, and {type(self.guider).__name__} has "
                f"{', '.join(self.guider.conds)}. Use a guider that takes one."
            )
        if branch.windows is not None:
            network = uncompiled(self.guider.inner_model.diffusion_model)
            why = why_not_windowed(source, branch.windows, call.step.x, call.step.shapes, options, network)
            if why:
                raise ValueError(f"{self._nodes_of(branch)}: {why}.")

    def names_of(self, branch: Branch) -> list[str]:
        """The titles of the nodes that a branch is for; CFG where it is the sampler's own."""
        return [term.node for term in self.terms if branch in term.branches] or ["CFG"]

    def _nodes_of(self, branch: Branch) -> str:
        return ", ".join(self.names_of(branch))

"""The conditionings of a run's branches, under uuids of their own, and the roles in which other packs see them."""

from __future__ import annotations

import uuid
from collections.abc import Hashable, Iterable

import comfy.samplers
import torch

from ..base import REFERENCE, Branch
from ..independent_condition import Pool
from ..windows import Window
from .call_info import CallInfo
from .condition_pools import ConditionPools
from .controls import ControlWithRoles
from .windowed import windowed


def acts_at(entry: dict, sigma: float) -> bool:
    """Whether an entry is inside its own range of time."""
    return _float32(entry.get("timestep_end", 0.0)) <= sigma <= _float32(entry.get("timestep_start", float("inf")))


def _float32(value: float) -> float:
    """As the host compares it with the sampler's σ."""
    return torch.tensor(value, dtype=torch.float32).item()


class Conditionings:
    """The conditionings of one run's branches. A conditioning is a list of the host's dicts, its entries.

    A branch's entries are copies of the guider's, under uuids that they keep for the run: the host finds entries by
    uuid, and so do caches of other packs. Other packs believe that an entry is 0, positive, or 1, negative. Its role
    is therefore the place of the guider's conditioning that it is a copy of.
    """

    def __init__(self, guider, pools: ConditionPools, computes_copies_once: bool):
        self._guider, self._pools, self._computes_copies_once = guider, pools, computes_copies_once
        self._uuids: dict[Branch, list[uuid.UUID]] = {}
        self._copies: dict[Branch, tuple[list, tuple, list]] = {}  # → (the guider's conditioning, shape of x, its copy)
        self._branch_of: dict[uuid.UUID, Branch] = {}
        self._source_of: dict[uuid.UUID, tuple[Pool | None, uuid.UUID, Window | None]] = {}
        self._role_of: dict[uuid.UUID, int] = {}
        self._controls: dict[int, ControlWithRoles] = {}

    @property
    def positive(self) -> list[dict]:
        """The guider's own positive."""
        return self._guider.conds["positive"]

    def source(self, branch: Branch, call: CallInfo) -> list[dict] | None:
        """The conditioning that `branch` copies. If it is the guider's, the same object as in the guider's own calls; None
        where the guider has none."""
        if isinstance(branch.conditioning, Pool):
            return self._pools.at(branch.conditioning, self.positive[0], call.step.seed, call.step.index, call.samples)
        name = call.reference if branch.conditioning == REFERENCE.conditioning else branch.conditioning
        return self._guider.conds.get(name)

    def own(self, entries: list[dict] | None) -> Branch | None:
        """The branch that a conditioning of the guider's own is; None for any other."""
        names = (name for name, conds in self._guider.conds.items() if entries is not None and entries is conds)
        return next((Branch(name) for name in names), None)

    def copy(self, branch: Branch, call: CallInfo) -> list[dict]:
        """The branch's own conditioning. Its source must be there."""
        source = self.source(branch, call)
        if source is None:
            raise LookupError(f"there is no {branch.conditioning} conditioning")
        kept, shape, copies = self._copies.get(branch, (None, None, []))
        if kept is not source or shape != call.step.x.shape:
            whole = [(entry, None) for entry in source]
            parts = whole if branch.windows is None else [*windowed(source, branch.windows, call.step.x)]
            uuids = self._uuids.setdefault(branch, [])
            uuids.extend(uuid.uuid4() for _ in parts[len(uuids) :])
            self._branch_of.update((key, branch) for key in uuids)
            drawn = branch.conditioning if isinstance(branch.conditioning, Pool) else None
            copies = []
            for key, (entry, window) in zip(uuids, parts, strict=False):
                self._source_of[key] = (drawn, entry["uuid"], window)
                copies.append({**entry, "uuid": key})
            self._copies[branch] = (source, call.step.x.shape, copies)
        return copies

    def end(self) -> None:
        """Let go of the controls, whose proxies hold this object, so that nothing waits for a garbage collector."""
        self._controls.clear()

    def can_share_a_batch_with_the_positive(self, branch: Branch, call: CallInfo) -> bool:
        """Whether the host could put one of the branch's entries into the batch of one of the positive's."""
        entries = self.copy(branch, call)
        return any(_same_batch(entry, other, call.samples) for entry in entries for other in self.positive)

    def set_roles(self, conds: Iterable[list[dict] | None], branches: Iterable[Branch], call: CallInfo) -> None:
        """Remember the roles in a call that carries the guider's `conds` and the conditionings of `branches`."""
        conds = list(conds)
        for role, entries in enumerate(conds):
            self._role_of.update((entry["uuid"], role) for entry in entries or ())
        for branch in branches:
            source = self.source(branch, call)
            same = [role for role, entries in enumerate(conds) if entries is source]
            role = same[0] if same else int(branch.conditioning in ("negative", REFERENCE.conditioning))
            self._role_of.update((entry["uuid"], role) for entry in self.copy(branch, call))

    def give_roles(self, transformer_options: dict) -> None:
        """Write roles into the transformer_options of one network call, which the host has made for that call alone."""
        entries = zip(transformer_options["uuids"], transformer_options["cond_or_uncond"], strict=True)
        transformer_options["cond_or_uncond"] = [self._role_of.get(key, place) for key, place in entries]

    def with_roles(self, entries: list[dict] | None) -> list[dict] | None:
        """`entries` with controls that see roles too. One proxy per control: the host puts entries into one batch only if
        they have the same one."""
        if entries is None or not any("control" in entry for entry in entries):
            return entries
        for entry in entries:
            if "control" in entry and id(entry["control"]) not in self._controls:
                self._controls[id(entry["control"])] = ControlWithRoles(
                    entry["control"], self.give_roles, self.copies, self._computes_copies_once
                )
        return [
            {**entry, "control": self._controls[id(entry["control"])]} if "control" in entry else entry
            for entry in entries
        ]

    def is_positive(self, key: uuid.UUID) -> bool:
        """Whether an entry is the guider's positive, or a copy of it with its own text."""
        pool, source, *_ = self._source_of.get(key, (None, key))
        return pool is None and any(entry["uuid"] == source for entry in self.positive)

    def branches(self, transformer_options: dict) -> tuple[Branch | None, ...]:
        """The branch of each chunk of a network call's batch; None where the chunk is the guider's own."""
        return tuple(self._branch_of.get(key) for key in transformer_options["uuids"])

    def copies(self, transformer_options: dict) -> tuple[Hashable, ...]:
        """A key for each chunk of a network call's batch. Chunks with equal keys have equal inputs."""
        guiders = [entry["uuid"] for entries in self._guider.conds.values() for entry in entries]
        sources = [self._source_of.get(key, (None, key, None)) for key in transformer_options["uuids"]]
        # The host adds entries for areas under the uuid of their source, so a uuid that occurs twice identifies nothing.
        return tuple(source if guiders.count(source[1]) == 1 else at for at, source in enumerate(sources))


def _same_batch(entry: dict, other: dict, samples: int) -> bool:
    if "gligen" in entry or entry.get("area") != other.get("area"):
        return False
    if any(entry.get(key) is not other.get(key) for key in ("control", "hooks")):
        return False
    conds = [
        {key: cond.process_cond(batch_size=samples, area=None) for key, cond in one["model_conds"].items()}
        for one in (entry, other)
    ]
    return comfy.samplers.cond_equal_size(*conds)

"""Whose rows are whose: the branches' conditionings under uuids of their own, and whom other packs take them for."""

from __future__ import annotations

import uuid
from collections.abc import Hashable

import comfy.samplers
import torch

from ..base import POSITIVE, REFERENCE, Branch
from ..independent_condition import Pool
from .pools import Pools


class Rows:
    """The conditionings of one run's branches.

    A branch's rows are copies of the guider's own, under uuids that they keep for the run: the host finds rows by uuid,
    and caches of other packs go by them. Other packs believe that a row is 0, positive, or 1, negative; they are told
    the place of the guider's conditioning that the row is a copy of.
    """

    def __init__(self, guider, pools: Pools, share_controls: bool):
        self._guider, self._pools, self.share_controls = guider, pools, share_controls
        self.now = (0, 0, 1)  # seed, step, samples of the model call under way
        self.reference = "positive"  # which of the guider's own REFERENCE stands for in it
        self._uuids: dict[Branch, list[uuid.UUID]] = {}
        self._copies: dict[Branch, tuple[list, list]] = {}  # branch → (the guider's conditioning, its copy)
        self._branch_of: dict[uuid.UUID, Branch] = {}
        self._copy_of: dict[uuid.UUID, tuple[Pool | None, uuid.UUID]] = {}
        self._role_of: dict[uuid.UUID, int] = {}
        self._controls: dict[int, _ControlWithRoles] = {}

    def own(self, branch: Branch) -> list[dict] | None:
        """The conditioning that `branch` is of; if it is the guider's, the same object as in the guider's own calls."""
        if isinstance(branch.conditioning, Pool):
            return self._pools.at(branch.conditioning, self.own(POSITIVE)[0], *self.now)
        name = self.reference if branch.conditioning == REFERENCE.conditioning else branch.conditioning
        return self._guider.conds.get(name)

    def of(self, branch: Branch) -> list[dict]:
        """The branch's own rows."""
        source = self.own(branch)
        if branch not in self._copies or self._copies[branch][0] is not source:
            uuids = self._uuids.setdefault(branch, [])
            uuids.extend(uuid.uuid4() for _ in source[len(uuids) :])
            self._branch_of.update((key, branch) for key in uuids)
            drawn = branch.conditioning if isinstance(branch.conditioning, Pool) else None
            self._copy_of.update((key, (drawn, row["uuid"])) for key, row in zip(uuids, source, strict=False))
            self._copies[branch] = (source, [{**row, "uuid": key} for row, key in zip(source, uuids, strict=False)])
        return self._copies[branch][1]

    def end(self) -> None:
        """Let go of the controls, whose proxies hold this, so that nothing of the run waits for a garbage collector."""
        self._controls.clear()

    def can_share_a_batch_with_the_positive(self, branch: Branch) -> bool:
        """Whether the host could put one of the branch's rows into the batch of one of the positive's."""
        return any(_same_batch(row, other, self.now[2]) for row in self.of(branch) for other in self.own(POSITIVE))

    def set_roles(self, conds: list[list[dict] | None], branches: list[Branch]) -> None:
        """Remember the roles of a call that carries the guider's `conds` and rows of `branches`."""
        for role, rows in enumerate(conds):
            self._role_of.update((row["uuid"], role) for row in rows or ())
        for branch in branches:
            same = [role for role, rows in enumerate(conds) if rows is self.own(branch)]
            role = same[0] if same else int(branch.conditioning in ("negative", REFERENCE.conditioning))
            self._role_of.update((row["uuid"], role) for row in self.of(branch))

    def give_roles(self, transformer_options: dict) -> None:
        """Write roles into the transformer_options of one network call, which the host has made for that call alone."""
        seen = zip(transformer_options["uuids"], transformer_options["cond_or_uncond"], strict=True)
        transformer_options["cond_or_uncond"] = [self._role_of.get(row, place) for row, place in seen]

    def with_roles(self, rows: list[dict] | None) -> list[dict] | None:
        """`rows` with controls that see roles too. One proxy per control: rows share a batch only with the same one."""
        if rows is None or not any("control" in row for row in rows):
            return rows
        for row in rows:
            if "control" in row and id(row["control"]) not in self._controls:
                self._controls[id(row["control"])] = _ControlWithRoles(row["control"], self)
        return [{**row, "control": self._controls[id(row["control"])]} if "control" in row else row for row in rows]

    def branches(self, transformer_options: dict) -> tuple[Branch | None, ...]:
        """The branch of each equal share of a network call's rows; None for the guider's own."""
        return tuple(self._branch_of.get(row) for row in transformer_options["uuids"])

    def copies(self, transformer_options: dict) -> tuple[Hashable, ...]:
        """What each equal share of a network call's rows is or is a copy of: shares of the same have equal rows."""
        own = [row["uuid"] for rows in self._guider.conds.values() for row in rows]
        sources = [self._copy_of.get(row, (None, row)) for row in transformer_options["uuids"]]
        # The host gives a row that it makes for another's area the uuid of that other.
        return tuple(source if own.count(source[1]) == 1 else at for at, source in enumerate(sources))


def _same_batch(row: dict, other: dict, samples: int) -> bool:
    if "gligen" in row or row.get("area") != other.get("area"):
        return False
    if any(row.get(key) is not other.get(key) for key in ("control", "hooks")):
        return False
    conds = [
        {key: cond.process_cond(batch_size=samples, area=None) for key, cond in r["model_conds"].items()}
        for r in (row, other)
    ]
    return comfy.samplers.cond_equal_size(*conds)


class _ControlWithRoles:
    """A control whose get_control sees roles; the host calls it before any wrapper of the network. Residuals of rows that
    are copies of one another are computed once, where control and all before it are the host's own."""

    def __init__(self, control, rows: Rows):
        self._control, self._rows = control, rows

    def get_control(self, x, t, cond, batched_number, transformer_options):
        self._rows.give_roles(transformer_options)
        copies = self._rows.copies(transformer_options)
        kept = [at for at, source in enumerate(copies) if copies.index(source) == at]
        if len(kept) == len(copies) or not self._can_share(transformer_options):
            return self._control.get_control(x, t, cond, batched_number, transformer_options)
        size = len(x) // len(copies)

        def few(given):
            if not isinstance(given, torch.Tensor) or not given.ndim or len(given) != len(x):
                return given
            return torch.cat([given[at * size : (at + 1) * size] for at in kept])

        def all_of(residual):
            if residual is None or len(residual) != len(kept) * size:
                return residual
            parts = residual.split(size)
            return torch.cat([parts[kept.index(copies.index(source))] for source in copies])

        own = {name: [transformer_options[name][at] for at in kept] for name in ("cond_or_uncond", "uuids")}
        options = {**transformer_options, **own}
        cond = {**{name: few(given) for name, given in cond.items()}, "transformer_options": options}
        found = self._control.get_control(few(x), few(t), cond, len(kept), options)
        return found and {name: [all_of(residual) for residual in residuals] for name, residuals in found.items()}

    def _can_share(self, transformer_options: dict) -> bool:
        control = self._control
        while control is not None and type(control).__module__ == "comfy.controlnet":
            control = control.previous_controlnet
        return control is None and self._rows.share_controls and "context_window" not in transformer_options

    def __getattr__(self, name):
        return getattr(self._control, name)

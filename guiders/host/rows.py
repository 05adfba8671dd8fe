"""Whose rows are whose: the branches' conditionings under uuids of their own, and whom other packs take them for."""

from __future__ import annotations

import uuid

import comfy.samplers

from ..base import POSITIVE, Branch


class Rows:
    """The conditionings of one run's branches.

    A branch's rows are copies of the guider's own, under uuids that they keep for the run: the host finds rows by uuid,
    and caches of other packs go by them. Other packs believe that a row is 0, positive, or 1, negative; they are told
    the place of the guider's conditioning that the row is a copy of.
    """

    def __init__(self, guider):
        self._guider = guider
        self._copies: dict[Branch, tuple[list, list]] = {}  # branch → (the guider's conditioning, its copy)
        self._branch_of: dict[uuid.UUID, Branch] = {}
        self._role_of: dict[uuid.UUID, int] = {}
        self._controls: dict[int, _ControlWithRoles] = {}

    def own(self, branch: Branch) -> list[dict] | None:
        """The guider's conditioning that `branch` is of; the same object as in the guider's own calls."""
        return self._guider.conds.get(branch.conditioning)

    def of(self, branch: Branch) -> list[dict]:
        """The branch's own rows."""
        source = self.own(branch)
        if branch not in self._copies or self._copies[branch][0] is not source:
            self._copies[branch] = (source, [{**row, "uuid": uuid.uuid4()} for row in source])
            self._branch_of.update((row["uuid"], branch) for row in self._copies[branch][1])
        return self._copies[branch][1]

    def can_share_a_batch_with_the_positive(self, branch: Branch) -> bool:
        """Whether the host could put one of the branch's rows into the batch of one of the positive's."""
        same_object = ("control", "hooks", "area")
        return any(
            all(
                row.get(key) is other.get(key) or (key == "area" and row.get(key) == other.get(key))
                for key in same_object
            )
            and "gligen" not in row
            and comfy.samplers.cond_equal_size(row["model_conds"], other["model_conds"])
            for row in self.of(branch)
            for other in self.own(POSITIVE)
        )

    def set_roles(self, conds: list[list[dict] | None], branches: list[Branch]) -> None:
        """Remember the roles of a call that carries the guider's `conds` and rows of `branches`."""
        for role, rows in enumerate(conds):
            self._role_of.update((row["uuid"], role) for row in rows or ())
        for branch in branches:
            same = [role for role, rows in enumerate(conds) if rows is self.own(branch)]
            role = same[0] if same else int(branch.conditioning == "negative")
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


class _ControlWithRoles:
    """A control whose get_control sees roles; the host calls it before any wrapper of the network."""

    def __init__(self, control, rows: Rows):
        self._control, self._rows = control, rows

    def get_control(self, x, t, cond, batched_number, transformer_options):
        self._rows.give_roles(transformer_options)
        return self._control.get_control(x, t, cond, batched_number, transformer_options)

    def __getattr__(self, name):
        return getattr(self._control, name)

"""Controls (ControlNets and the like) in a call that has more rows than the guider asked for."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch


class ControlWithRoles:
    """A control that sees roles: the host calls it before any wrapper of the network. Residuals of rows that are copies
    of one another are computed once, where the control and all before it are the host's own.

    give_roles, copies_of: Conditionings.give_roles and .copies, of one network call's transformer_options."""

    def __init__(
        self,
        control,
        give_roles: Callable[[dict], None],
        copies_of: Callable[[dict], tuple[Hashable, ...]],
        computes_copies_once: bool,
    ):
        self._control, self._give_roles, self._copies_of = control, give_roles, copies_of
        self._computes_copies_once = computes_copies_once

    def get_control(self, x, t, cond, batched_number, transformer_options):
        """The host's method: the residuals of a batch of `batched_number` equal chunks."""
        self._give_roles(transformer_options)
        copies = self._copies_of(transformer_options)
        kept = [at for at, source in enumerate(copies) if copies.index(source) == at]
        if len(kept) == len(copies) or not self._can_compute_once(transformer_options):
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

        lists = {name: [transformer_options[name][at] for at in kept] for name in ("cond_or_uncond", "uuids")}
        options = {**transformer_options, **lists}
        cond = {**{name: few(given) for name, given in cond.items()}, "transformer_options": options}
        found = self._control.get_control(few(x), few(t), cond, len(kept), options)
        return found and {name: [all_of(residual) for residual in residuals] for name, residuals in found.items()}

    def _can_compute_once(self, transformer_options: dict) -> bool:
        control = self._control
        while control is not None and type(control).__module__ == "comfy.controlnet":
            control = control.previous_controlnet
        return control is None and self._computes_copies_once and "context_window" not in transformer_options

    def __getattr__(self, name):
        return getattr(self._control, name)

"""What the modules of a network hold besides their weights, to be put back after a probe of it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Module


class State:
    """A copy of all that."""

    def __init__(self, network: Module):
        self._held = [(vars(module), _Copy(_own(vars(module)))) for module in network.modules()]

    def put_back(self) -> bool:
        """Put everything back; returns whether all of it was there."""
        kept = True
        for attributes, copy in self._held:
            for name in _own(attributes).keys() - copy.of.keys():
                del attributes[name]
                kept = False
            kept &= copy.put_back(attributes)
        return kept


def _own(attributes: dict) -> dict:
    """A module's attributes but for weights, modules and PyTorch's own."""
    return {
        name: value
        for name, value in attributes.items()
        if name not in ("_parameters", "_modules", "_non_persistent_buffers_set") and not name.endswith("hooks")
    }


class _Copy:
    """What is in a container, and in the containers and tensors in it."""

    def __init__(self, given):
        self.of = dict(given) if isinstance(given, dict) else dict(enumerate(given))
        self._inside = {key: _Copy(value) for key, value in self.of.items() if isinstance(value, dict | list)}
        self._numbers = {key: value.clone() for key, value in self.of.items() if isinstance(value, Tensor)}

    def put_back(self, container) -> bool:
        """Make `container` what it was; returns whether it was."""
        now = dict(container) if isinstance(container, dict) else dict(enumerate(container))
        kept = now.keys() >= self.of.keys() and all(now[key] is value for key, value in self.of.items())
        if isinstance(container, dict):
            container.update(self.of)
        elif not kept or len(now) != len(self.of):
            container[:], kept = self.of.values(), False
        for key, inside in self._inside.items():
            held = self.of[key]
            if isinstance(held, dict) and held.keys() - inside.of.keys():
                kept = False
                for more in held.keys() - inside.of.keys():
                    del held[more]
            kept &= inside.put_back(held)
        for key, numbers in self._numbers.items():
            if not torch.equal(self.of[key], numbers) and not (numbers != numbers).any():
                self.of[key].copy_(numbers)
                kept = False
        return kept

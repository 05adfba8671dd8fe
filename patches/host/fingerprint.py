"""Which checkpoint a MODEL is of, by what is in its network.

The names and shapes of its matrices, and the signs of some of their numbers. A sign stays what it is when weights are
cast to another precision, as names and shapes do, so one checkpoint has one fingerprint in 32, 16 and 8 bits. Two
trainings differ in some of so many signs. LoRAs and other patches of the host do not count: of a weight that is patched
in place, what the host keeps of it is read. A LoRA that is merged into a file makes another checkpoint.

A network of numbers that are no floats, such as a GGUF file's, has those numbers in place of signs: then it has a
fingerprint of its own.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from .lookup import network_of

NETWORK = "diffusion_model."
EACH = 8  # rows of a matrix that are looked at, and numbers in each


def fingerprint(model) -> str:
    """32 hexadecimal digits. Reads at most EACH² numbers of each matrix."""
    names, shapes, found = [], [], {}
    for name, weight in sorted(network_of(model).named_parameters()):
        if weight.ndim < 2 or not name.endswith("weight"):
            continue  # scales of quantised weights, and what is too small to tell trainings apart
        kept = model.backup.get(f"{NETWORK}{name}")
        weight = weight if kept is None else kept.weight
        names.append(name.replace("_orig_mod.", ""))  # of a compiled block
        shapes.append(tuple(weight.shape))
        found.setdefault(weight.device, []).append((len(names), _some(weight.detach())))
    read = {}
    for parts in found.values():  # from each device at once
        numbers = torch.cat([part for _, part in parts]).cpu()
        sizes = [len(part) for _, part in parts]
        read |= {at: part for (at, _), part in zip(parts, numbers.split(sizes), strict=True)}
    digest = hashlib.blake2b(repr((names, shapes)).encode(), digest_size=16)
    for at in sorted(read):
        digest.update(bytes(read[at].tolist()))
    return digest.hexdigest()


def _some(weight: Tensor) -> Tensor:
    """Bytes of a few numbers of a matrix, spread over it: 0 and 1 for their signs, or the numbers where they are none."""
    rows = weight[:: max(1, weight.shape[0] // EACH)][:EACH]
    rows = rows.reshape(rows.shape[0], -1)
    some = rows[:, :: max(1, rows.shape[1] // EACH)][:, :EACH].flatten()
    if not some.is_floating_point():
        return (some.long() & 255).to(torch.uint8)
    return torch.signbit(some.float()).to(torch.uint8)


def name_of(model) -> str:
    """What a user calls the checkpoint: its file's name where the host knows it, else what kind of model it is."""
    made_by = getattr(model, "cached_patcher_init", None)  # (a loader, its arguments), which an old host lacks
    path = next((part for part in made_by[1] if isinstance(part, str)), "") if made_by else ""
    return Path(path.replace("\\", "/")).name or type(model.model).__name__

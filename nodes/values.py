"""Which values an input may have. A node checks each before it builds anything, since a link may carry anything."""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io

from ..guiders.host import Recorder
from ..guiders.schedule import Curve
from ..patches.texts import shown

LONGEST = 20_000  # characters of a text
HALF = re.compile("[\ud800-\udfff]")  # half of a surrogate pair: no file and no answer of the server can hold it


@dataclass(frozen=True)
class Written:
    """What is known of a node's inputs before anything runs."""

    values: Mapping[str, Any]  # those that are written into the workflow
    given: frozenset[str]  # all that will have a value, by a link too

    def has(self, names: Iterable[str]) -> bool:
        """Whether all of these are written."""
        return self.values.keys() >= {*names}


def check(given: io.Input, value) -> None:
    """Raise ValueError, naming the input, the value and what it must be, where `value` is nothing for `given`."""
    if value is None and given.optional:
        return
    if isinstance(value, str) and len(value) > LONGEST:
        raise ValueError(f"{given.id} has {len(value):,} characters; at most {LONGEST:,} are read")
    if isinstance(value, str) and HALF.search(value):
        raise ValueError(f"{given.id} has half of a character in it, which is no text; write it anew")
    fits, wanted = _wanted(given)
    if not fits(value):
        raise ValueError(f"{given.id} is {said(value)}; it must be {wanted}")


def is_link(value) -> bool:
    """Whether a value is a link in the API format."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def said(value) -> str:
    """A value as an error names it: a text or a number itself, anything else by its type."""
    if value is None:
        return "empty"
    if isinstance(value, str):
        return f'"{shown(value)}"'
    if isinstance(value, torch.Tensor):
        return f"a tensor {[*value.shape]} of {value.dtype}"
    if isinstance(value, numbers.Real):
        return "beyond all range" if isinstance(value, int) and not -(10**30) <= value <= 10**30 else str(value)
    return f"of the type {type(value).__name__}"


def _wanted(given: io.Input) -> tuple[Callable[[object], bool], str]:
    """(a function that says whether a value will do, what it must be in words)."""
    if given.rawLink:
        return is_link, "connected to another node"
    if isinstance(given, (io.Float.Input, io.Int.Input)):
        low, high, whole = given.min, given.max, isinstance(given, io.Int.Input)
        kind = numbers.Integral if whole else numbers.Real
        words = f"a whole number from {low} to {high}" if whole else f"a number from {low:g} to {high:g}"
        return (
            lambda value: isinstance(value, kind) and not isinstance(value, bool) and _between(low, value, high),
            words,
        )
    if isinstance(given, io.Combo.Input):
        return (
            lambda value: isinstance(value, str) and value in given.options,
            f"one of {', '.join(map(str, given.options))}",
        )
    return KINDS.get(given.get_io_type(), (lambda value: True, ""))


def _between(low: float, value: Any, high: float) -> bool:
    return low <= value <= high


def _having(*names: str) -> Callable[[object], bool]:
    return lambda value: all(hasattr(value, name) for name in names)


def _of(kind: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kind)


def _is_conditioning(value) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(pair, (list, tuple))
        and len(pair) == 2
        and (pair[0] is None or isinstance(pair[0], torch.Tensor))
        and isinstance(pair[1], dict)
        for pair in value
    )


def _is_pictures(value) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.ndim == 4
        and value.numel() > 0
        and value.shape[-1] in (1, 3, 4)
    )


def _is_mask(value) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.ndim in (2, 3)
        and value.numel() > 0
        and bool((value >= 0).all() and (value <= 1).all())  # NaN is neither
    )


def _is_latent(value) -> bool:
    return isinstance(value, dict) and hasattr(value.get("samples"), "shape")  # a tensor, or the host's nested ones


def _is_sigmas(value) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.ndim == 1
        and len(value) > 1
        and bool(value.isfinite().all() and (value >= 0).all())
    )


KINDS = {
    "STRING": (_of(str), "a text"),
    "BOOLEAN": (_of(bool), "true or false"),
    "MODEL": (_having("clone", "model_options", "get_model_object"), "a model"),
    "CLIP": (_having("tokenize", "cond_stage_model"), "a CLIP"),
    "VAE": (_having("first_stage_model", "latent_channels"), "a VAE"),
    "CLIP_VISION": (_having("model", "load_device"), "a CLIP vision model"),
    "CONDITIONING": (_is_conditioning, "a conditioning, such as a prompt from CLIP Text Encode"),
    "LATENT": (_is_latent, "a latent"),
    "SAMPLER": (_having("sample", "max_denoise"), "a sampler, such as KSamplerSelect gives"),
    "SIGMAS": (_is_sigmas, "two noise levels or more, such as Basic Scheduler gives"),
    "IMAGE": (_is_pictures, "pictures: one at least, [pictures, height, width, channels] with 1, 3 or 4 channels"),
    "MASK": (_is_mask, "a mask: [masks, height, width] or [height, width], from 0 to 1"),
    "BEYOND_CFG_SCHEDULE": (_of(Curve), "what Guidance Schedule gives"),
    "BEYOND_CFG_REPORT": (_of(Recorder), "what Guidance Recorder gives"),
}

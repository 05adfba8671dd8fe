"""A cell is one unit of work, and its id says what its result depends on. A result is JSON values and PNG bytes."""

from __future__ import annotations

import hashlib
import io
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

MOST_BYTES = 64 << 20  # of one picture
MOST_PIXELS = 64 << 20
MOST_TEXT = 1 << 20  # letters of all values of a cell


@dataclass(frozen=True)
class Cell:
    """One unit of work."""

    kind: str  # who does it: "workflow", "study"; "echo" and "sleep" for tests and measurements
    work: Mapping[str, Any]  # JSON: all that the result depends on
    labels: Mapping[str, str | float] = field(default_factory=dict)  # columns of the table; not a part of the id

    @property
    def id(self) -> str:
        """The same for the same kind and work, on every machine."""
        return hashlib.blake2b(canonical([self.kind, self.work]).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Result:
    """What a cell gave."""

    values: Mapping[str, float | str]
    pictures: tuple[bytes, ...] = ()  # PNG files
    seconds: float = 0.0
    worker: str = ""


@dataclass(frozen=True)
class Failed:
    """A cell that could not be done, and why, in one sentence."""

    cell: Cell
    reason: str
    tries: int = 1


class Unusable(ValueError):
    """What a worker gave is no result; the text says why."""


def canonical(value: Any) -> str:
    """JSON that is the same for equal values. Raises ValueError for NaN and infinity, TypeError for what is no JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def checked(result: Result) -> Result:
    """The same result, when its values are numbers and texts and its pictures are whole PNG files of a sane size. Raises
    Unusable."""
    letters = 0
    for name, value in result.values.items():
        if not isinstance(name, str) or isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise Unusable(f"the value {str(name)[:60]} is neither a number nor a text")
        if not isinstance(value, str) and not math.isfinite(value):
            raise Unusable(f"the value {name[:60]} is {value}")
        letters += len(name) + (len(value) if isinstance(value, str) else 8)
    if letters > MOST_TEXT:
        raise Unusable(f"its values have {letters} letters; at most {MOST_TEXT} are kept")
    for at, picture in enumerate(result.pictures):
        check_picture(picture, f"picture {at + 1} of {len(result.pictures)}")
    return result


def check_picture(content: bytes, name: str) -> None:
    """Raises Unusable, which names the picture, unless it is a whole PNG file of at most MOST_BYTES and MOST_PIXELS."""
    if len(content) > MOST_BYTES:
        raise Unusable(f"{name} has {len(content) >> 20} MB; at most {MOST_BYTES >> 20} MB are taken")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
                width, height = picture.size
                if width * height > MOST_PIXELS:
                    raise Unusable(
                        f"{name} has {width} x {height} pixels; at most {MOST_PIXELS >> 20} million are taken"
                    )
                picture.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise Unusable(f"{name} claims to be larger than any picture that is taken") from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, Unusable):
            raise
        raise Unusable(f"{name} is no whole PNG file") from None

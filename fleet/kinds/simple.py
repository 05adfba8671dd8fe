"""Cells that need no ComfyUI: for tests, and to measure what the fleet itself costs."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from typing import Any

from ..cells import Result
from .base import Kind


class Echo(Kind):
    """work: {"values": …, "pictures": […]}, the pictures in base64 → the same."""

    def do(self, work: Mapping[str, Any], limit: float) -> Result:
        return Result(work.get("values", {}), tuple(base64.b64decode(one) for one in work.get("pictures", ())))


class Sleep(Kind):
    """work: {"seconds": …, "values": …} → the values, after that time."""

    def do(self, work: Mapping[str, Any], limit: float) -> Result:
        time.sleep(work["seconds"])
        return Result(work.get("values", {}))

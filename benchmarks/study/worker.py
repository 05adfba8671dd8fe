"""The study's cells, for the fleet: a worker makes the study once, with the model in its own process, and keeps it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from ...fleet.cells import Result
from ...fleet.kinds.base import Kind, Wrong
from .cells import HERE, RECORD, Study, cell_of, name_of


class Cells(Kind):
    """work: {"key", "cell", "study": how the study is made, "layers"} → the record of the cell, without its key."""

    def do(self, work: Mapping[str, Any], limit: float) -> Result:
        """Sample and measure a cell. Its features go beside the results, on the machine that does it."""
        study = self._study(work["study"])
        study.rig.layers = work["layers"]
        cell = cell_of(work["cell"])
        if study.key(cell) != work["key"]:
            raise Wrong(
                "this worker's models, code or settings are others than those of the study: its cell would have another key"
            )
        return Result({RECORD: json.dumps(study.measure(cell))})

    def _study(self, made: Mapping[str, Any]) -> Study:
        name = name_of(dict(made))
        if name not in HERE:
            from . import command  # which imports the cells

            os.chdir(made["folder"])  # where the user stood
            HERE[name] = command.study_of(made["arguments"], made["setting"], dict(made))
        return HERE[name]

"""Runs a benchmark as a part of the pack; `python dev.py benchmark` starts this in the Python of a ComfyUI.

python -m tools.benchmark FOLDER NAME [its arguments]    relative paths among them start at FOLDER
"""

from __future__ import annotations

import importlib
import os
import sys

from .console import Failure
from .imports import as_pack

PROGRAMS = {  # name → module of benchmarks/, whose main(arguments) it is
    "study": "study.command",
    "toy2d": "toy2d.command",
    "high_cfg": "high_cfg",
    "negatives": "negatives",
    "reuse": "reuse",
    "orders": "orders",
    "distil": "distil",
    "layer_probe": "layer_probe",
    "tuner": "tuner",
    "cost": "cost",
    "overhead": "overhead",
    "probes": "probes",
    "digits": "digits.data",
    "train-digits": "digits.train_model",
    "train-guides": "digits.train_guides",
}


def main(name: str, arguments: list[str]) -> int:
    """Run the benchmark `name`; its exit code."""
    as_pack()
    sys.argv = [f"dev.py benchmark {name}", *arguments]  # for argparse's own messages
    return importlib.import_module(f"pack.benchmarks.{PROGRAMS[name]}").main(arguments) or 0


if __name__ == "__main__":
    os.chdir(sys.argv[1])  # where the user stands; the tools are found from the checkout
    try:
        sys.exit(main(sys.argv[2], sys.argv[3:]))
    except Failure as failure:
        sys.exit(str(failure))

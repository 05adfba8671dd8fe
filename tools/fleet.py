"""Runs the fleet as a part of the pack; `python dev.py fleet` starts this.

python -m tools.fleet FOLDER CHOICE [its arguments]    relative paths among them start at FOLDER; CHOICE: a hosts.Choice
"""

from __future__ import annotations

import importlib
import json
import os
import sys

from .imports import as_pack


def main(choice: dict, arguments: list[str]) -> int:
    """Run a command of the fleet; its exit code."""
    as_pack()
    return importlib.import_module("pack.fleet.command").main(choice, arguments)


if __name__ == "__main__":
    os.chdir(sys.argv[1])  # where the user stands; the tools are found from the checkout
    sys.exit(main(json.loads(sys.argv[2]), sys.argv[3:]))

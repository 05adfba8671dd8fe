"""Draw pictures side by side with labels, as the node Guidance Grid does.

python -m tools.grid OUT.png --columns "seed 1" "seed 2" --rows "CFG" a.png b.png --rows "PAG" c.png d.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from .imports import as_pack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT.png")
    parser.add_argument("--columns", nargs="*", default=[], metavar="TITLE")
    parser.add_argument("--rows", nargs="+", action="append", required=True, metavar=("LABEL", "PICTURE"))
    options = parser.parse_args()
    as_pack()
    from pack.nodes.pictures.labelled_grid import grid  # pyright: ignore[reportMissingImports]

    rows = [(label, [Image.open(path) for path in paths]) for label, *paths in options.rows]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    grid(rows, options.columns).save(options.out)


if __name__ == "__main__":
    main()

"""Everything in the repository that is made of code, registries and results; python dev.py docs runs this.

web/docs/*.md, README.md      the skeletons of what a new node lacks there
locales/                      the nodes' texts for the page
README.md, web/docs/*.md      the tables of what works where
README.md, benchmarks/        the tables and pages of what was measured, from benchmarks/results
benchmarks/layer_map.jpg      README's Layer Maps
"""

import os

from .imports import as_pack, with_host


def main() -> None:
    as_pack()
    with_host(os.environ["COMFYUI_PATH"], "--cpu", "--disable-api-nodes")
    from pack.tools import evidence, layer_map, locales, skeletons, support  # pyright: ignore[reportMissingImports]

    for part in (skeletons, locales, support, evidence, layer_map):
        part.write()


if __name__ == "__main__":
    main()

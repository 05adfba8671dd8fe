"""Everything in the repository that is made of code, registries and results; python dev.py docs runs this.

web/docs/*.md, README.md      the skeletons of what a new node lacks there
web/docs/*.md                 their openings, inputs, examples and links
locales/                      the nodes' texts for the page
README.md, docs/NETWORKS.md   the table of what works where; web/docs/*.md, a sentence of that
README.md, benchmarks/        the tables and pages of what was measured, from benchmarks/results
benchmarks/layer_map.jpg      README's Layer Maps
"""

import os

from .imports import as_pack, with_host


def main() -> None:
    as_pack()
    with_host(os.environ["COMFYUI_PATH"], "--cpu", "--disable-api-nodes")
    from pack.tools import evidence, help_pages, layer_map, locales, skeletons, support  # pyright: ignore[reportMissingImports]

    for part in (skeletons, help_pages, locales, support, evidence, layer_map):
        part.write()


if __name__ == "__main__":
    main()

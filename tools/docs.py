"""Everything in the repository that is made of code, registries and results; python dev.py docs runs this.

web/docs/*.md                 the skeleton of a new node's page
README.md                     the tables of all nodes
locales/                      the nodes' texts for the page
README.md, web/docs/*.md      the tables of what works where
README.md, benchmarks/        the tables and pages of what was measured, from benchmarks/results
benchmarks/layer_map.jpg      README's Layer Maps
subgraphs/                    ready blocks of guidance nodes
"""

import os

from .imports import as_pack, with_host


def main() -> None:
    as_pack()
    with_host(os.environ["COMFYUI_PATH"], "--cpu", "--disable-api-nodes")
    from pack.tools import blueprints, evidence, layer_map, locales, node_table, skeletons, support  # pyright: ignore[reportMissingImports]

    for part in (skeletons, node_table, locales, support, evidence, layer_map, blueprints):
        part.write()


if __name__ == "__main__":
    main()

"""Everything in the repository that is made of code, registries and results; python dev.py docs runs this.

web/docs/*.md                 the skeleton of a new node's page; of all: openings, inputs, examples and links
README.md                     the tables of all nodes
locales/                      the nodes' texts for the page
README.md, docs/NETWORKS.md   the table of what works where; web/docs/*.md, a sentence of that
README.md, benchmarks/        the tables and pages of what was measured, from benchmarks/results
benchmarks/layer_map.jpg      README's Layer Maps
subgraphs/                    ready blocks of guidance nodes
"""

import os

from .imports import as_pack, with_host


def main() -> None:
    as_pack()
    with_host(os.environ["COMFYUI_PATH"], "--cpu", "--disable-api-nodes")
    from pack.tools import (  # pyright: ignore[reportMissingImports]
        blueprints,
        evidence,
        help_pages,
        layer_map,
        locales,
        node_table,
        skeletons,
        support,
    )

    for part in (skeletons, help_pages, node_table, locales, support, evidence, layer_map, blueprints):
        part.write()


if __name__ == "__main__":
    main()

"""Pictures side by side, with labels that say what differs between them."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..guiders.base import About
from . import schema
from .graph import Graph, Link
from .labels import Pictures, arrange, sources
from .pictures.labelled_grid import grid, opaque
from .pictures.tensors import as_image, as_pictures
from .values import is_link


class GuidanceGrid(schema.Node):
    """Pictures and labels → one picture of them all."""

    about = About(
        node_id="BeyondCFGGrid",
        name="Guidance Grid",
        title="Compare Pictures (Guidance Grid)",
        group="Tools",
        summary=(
            "Puts pictures side by side, to compare settings on one seed. The labels come from the settings that really "
            "ran, or you write them."
        ),
        aliases=(
            "compare",
            "comparison",
            "contact sheet",
            "A/B",
            "before after",
            "slider",
            "labelled grid",
        ),
    )
    inputs = (
        io.Image.Input(
            "images",
            tooltip="The pictures. Join those of several nodes with Batch Images.",
        ),
        io.String.Input(
            "columns",
            multiline=True,
            default="",
            placeholder="columns: empty is automatic",
            tooltip="Labels of the columns, one per line. Their number is the number of columns. Empty: automatic, from "
            "the settings in which the pictures differ, such as CFG 4 and CFG 4 + PAG 3. A line with a space is no label.",
        ),
        io.String.Input(
            "rows",
            multiline=True,
            default="",
            placeholder="rows: empty is automatic",
            tooltip="Labels of the rows, one per line. Empty: automatic, where there are several rows.",
        ),
        io.String.Input("title", default="", tooltip="A line above all. Empty: none."),
        io.Combo.Input(
            "fill",
            options=["rows", "columns"],
            default="rows",
            optional=True,
            tooltip="In which order the pictures come. rows: from left to right, then the next row. columns: from top to "
            "bottom, then the next column, as batches of the same size do.",
        ),
    )
    output = io.Image.Output("IMAGE", tooltip="The grid.")
    shows = True
    hears = (io.Hidden.dynprompt, io.Hidden.unique_id)

    @classmethod
    def build(cls, images, columns, rows, title, fill="rows"):
        columns, rows = columns.splitlines(), rows.splitlines()
        columns, placed = arrange(len(images), columns, rows, fill, pictures_of(cls.hidden))
        cells = as_pictures(images)
        picture = as_image(grid([(label, [cells[at] for at in row]) for label, row in placed], columns, title))
        shows = ui.PreviewImage(picture, cls=cls).as_dict()
        if len(images) == 2:  # the page lays one over the other
            both = torch.cat([as_image(opaque(cell)) for cell in cells])
            shows["compare"] = ui.PreviewImage(both, cls=cls).as_dict()["images"]
            shows["compare_labels"] = columns or [label for label, _ in placed if label]
        return io.NodeOutput(picture, ui=shows)


def pictures_of(hidden: io.HiddenHolder | None) -> Pictures | None:
    """What the running graph shows of a node's `images`. None where the node is called without a graph."""
    if hidden is None or hidden.dynprompt is None:
        return None
    graph = Graph(hidden.dynprompt.get_node)
    link = hidden.dynprompt.get_node(hidden.unique_id)["inputs"].get("images")
    return Pictures(graph, sources(graph, Link(*link))) if is_link(link) else None


NODES = [GuidanceGrid]

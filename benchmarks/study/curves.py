"""The curves of the study: what each strength of each method does, on the seed that strengths are chosen on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .methods import NONE

PANELS = (("fd", "FD"), ("fd_pixel", "FD pixel"), ("recall", "recall"), ("diversity", "diversity of a prompt"))


def draw(records: Sequence[dict], path: Path) -> list[Path]:
    """One panel for each measure; a line goes from no guidance through a method's strengths. Nothing without a judge."""
    tries = [record for record in records if record["kind"] == "cell" and record["key"]["stage"] == "choose"]
    lines: dict[str, list[dict]] = {}
    for cell in sorted(tries, key=lambda cell: cell["key"]["strength"]):
        name = ", ".join(filter(None, (cell["key"]["method"], cell["key"]["settings"])))
        lines.setdefault(name, []).append(cell)
    start = lines.pop(NONE, [])
    if not start or not lines:
        return []
    from matplotlib.figure import Figure

    across = "accuracy" if start[0]["key"].get("conditional", True) else "precision"
    figure = Figure(figsize=(13, 9.5), layout="constrained")
    panels = figure.subplots(2, 2).flat
    for (measure, title), panel in zip(PANELS, panels, strict=True):
        for at, (method, cells) in enumerate(lines.items()):
            alone = len(cells) == 1 or not cells[0]["key"]["word"]
            points = [cell["values"] for cell in (cells if alone else start + cells)]
            points = [(values[across][0], values[measure][0]) for values in points if {across, measure} <= {*values}]
            style = {"marker": "osD^v<>"[at % 7], "color": f"C{at % 10}", "linestyle": "-" if at < 10 else "--"}
            panel.plot(*zip(*points, strict=True), **style, markersize=5, linewidth=1.2, label=method)
        values = start[0]["values"]
        panel.plot(values[across][0], values[measure][0], "k*", markersize=14, label="none")
        panel.set(xlabel=across, ylabel=title, yscale="log" if measure.startswith("fd") else "linear")
        panel.grid(alpha=0.3)
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(path, dpi=90)
    return [path]

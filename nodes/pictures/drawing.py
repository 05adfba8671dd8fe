"""What nodes draw, as the host's IMAGE [1, height, width, 3]. The only place that needs matplotlib."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from ...patches.layer_map import LayerMap

CHOSEN, OTHER, WITHOUT, INK = "#e8590c", "#adb5bd", "#f1f3f5", "#212529"
WIDTH = 40  # blocks of a transformer in one row
RENDERING = threading.Lock()  # matplotlib's fonts are no one thread's own


def draw_layers(layer_map: LayerMap) -> Tensor:
    """A network, [1, height, width, 3]: a UNet as its U with one level for each resolution, a transformer as its stacks.
    Chosen layers are coloured. Raises ValueError without matplotlib, as all that draws here."""
    is_unet = ("middle", 0) in layer_map.grids
    places = _unet_places(layer_map) if is_unet else _transformer_places(layer_map)
    columns, rows = (max(place[axis] for place in places.values()) + 1 for axis in (0, 1))
    figure = blank(max(6.0, 0.34 * columns + 1.6), max(2.2, 0.8 * rows + 1.2))
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.80))
    axes.set(xlim=(-2.2, columns + 0.2), ylim=(rows + 0.1, -0.5))
    axes.axis("off")
    for block, (x, y) in places.items():
        parts = layer_map.parts(block)
        for at in range(max(1, len(parts))):
            color = WITHOUT if not parts else CHOSEN if parts[at] in layer_map.chosen else OTHER
            height = 0.6 / max(1, len(parts))
            edge = {"edgecolor": "white", "linewidth": 0.5} if parts else {"edgecolor": OTHER, "linewidth": 0.5}
            axes.add_patch(rectangle((x + 0.08, y + at * height), 0.84, height, facecolor=color, **edge))
        label = f"{block[0][0]}{block[1]}" if is_unet else str(block[1])  # as it can be written
        axes.text(x + 0.5, y - 0.05, label, ha="center", va="bottom", fontsize=6, color=INK)
    for y, row in groupby(sorted(places, key=lambda block: places[block][1]), key=lambda block: places[block][1]):
        block = next(iter(row))
        label = ("" if is_unet else f"{block[0]}\n") + " × ".join(map(str, layer_map.grids[block]))
        axes.text(-0.2, y + 0.3, label, ha="right", va="center", fontsize=7, color=INK)
    width, height = layer_map.size
    count = f"{len(layer_map.chosen)} of {len(layer_map.layers)} layers"
    figure.text(0.02, 0.94, f"{layer_map.architecture}, {width} × {height}", fontsize=10, color=INK, va="center")
    figure.text(0.98, 0.94, count, fontsize=9, color=CHOSEN, va="center", ha="right")
    return rendered(figure)


def _unet_places(layer_map: LayerMap) -> dict:
    """Block → (column, row): encoder, middle and decoder from left to right, each resolution on a level."""
    levels = sorted(set(layer_map.grids.values()), key=math.prod, reverse=True)
    return {block: (column, levels.index(grid)) for column, (block, grid) in enumerate(layer_map.grids.items())}


def _transformer_places(layer_map: LayerMap) -> dict:
    """Block → (column, row): each stack begins a row, and goes on in the next when it is full."""
    places, row = {}, 0
    for _, blocks in groupby(layer_map.grids, key=lambda block: block[0]):
        for at, block in enumerate(blocks):
            places[block] = (at % WIDTH, row + at // WIDTH)
        row = max(y for _, y in places.values()) + 1
    return places


def draw_losses(losses: Sequence[float]) -> Tensor:
    """The loss of each iteration of a training and their running mean, [1, height, width, 3]."""
    mean, means = losses[0], []
    for loss in losses:
        mean += (loss - mean) / 20
        means.append(mean)
    figure = blank(6.0, 3.0)
    axes = figure.add_axes((0.12, 0.16, 0.85, 0.78))
    places = range(1, len(losses) + 1)
    axes.plot(
        places, losses, color=OTHER, linewidth=0.8, marker="." if len(losses) < 50 else "", label="each iteration"
    )
    axes.plot(places, means, color=CHOSEN, linewidth=2, label="mean of about 20")
    if min(losses) > 0:
        axes.set_yscale("log")
    axes.set_xlabel("iteration", fontsize=8)
    axes.set_ylabel("loss", fontsize=8)
    axes.tick_params(labelsize=7, which="both")
    axes.legend(fontsize=7, frameon=False)
    return rendered(figure)


def blank(width: float, height: float, color: str = "white"):
    """An empty figure of this size in inches. Raises ValueError without matplotlib."""
    try:
        from matplotlib.figure import Figure  # without pyplot, whose figures stay until closed
    except ImportError:
        raise ValueError(
            "drawing needs matplotlib, which is missing: install the pack's requirements.txt in ComfyUI's Python"
        ) from None
    return Figure(figsize=(width, height), dpi=144, facecolor=color)


def line(*places, **style):
    """A line of matplotlib, outside of axes."""
    from matplotlib.lines import Line2D

    return Line2D(*places, **style)


def rectangle(*args, **kwargs):
    """A rectangle of matplotlib."""
    from matplotlib.patches import Rectangle

    return Rectangle(*args, **kwargs)


def rendered(figure) -> Tensor:
    """A figure as the host's IMAGE."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with RENDERING:
        canvas.draw()
    pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
    width, height = canvas.get_width_height()
    return pixels.view(1, height, width, 4)[..., :3].float() / 255


@functools.lru_cache(maxsize=2048)
def measure(text: str, size: float, weight: str = "normal") -> float:
    """The width of a line of text in points. Raises ValueError without matplotlib."""
    figure = blank(1, 1)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.font_manager import FontProperties

    with RENDERING:
        renderer = FigureCanvasAgg(figure).get_renderer()
        return (
            renderer.get_text_width_height_descent(text, FontProperties(size=size, weight=weight), ismath=False)[0] / 2
        )

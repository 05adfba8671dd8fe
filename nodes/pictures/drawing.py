"""What nodes draw, as the host's IMAGE [1, height, width, 3]. The only place that needs matplotlib."""

from __future__ import annotations

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
    figure = _figure(max(6.0, 0.34 * columns + 1.6), max(2.2, 0.8 * rows + 1.2))
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.80))
    axes.set(xlim=(-2.2, columns + 0.2), ylim=(rows + 0.1, -0.5))
    axes.axis("off")
    for block, (x, y) in places.items():
        parts = layer_map.parts(block)
        for at in range(max(1, len(parts))):
            color = WITHOUT if not parts else CHOSEN if parts[at] in layer_map.chosen else OTHER
            height = 0.6 / max(1, len(parts))
            edge = {"edgecolor": "white", "linewidth": 0.5} if parts else {"edgecolor": OTHER, "linewidth": 0.5}
            axes.add_patch(_rectangle((x + 0.08, y + at * height), 0.84, height, facecolor=color, **edge))
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
    return _image(figure)


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


def draw_report(recorder) -> Tensor:
    """What a Recorder holds, [1, height, width, 3]: the size and angle of each guidance, how wrong those were that went on
    uncomputed, and the cost of each model call."""
    calls, names = recorder.calls, recorder.names
    colors = {name: f"C{at}" for at, name in enumerate(names)}
    pairs = list(dict.fromkeys(pair for call in calls for pair in call.angles()))
    scaled, reused = any(call.shares() for call in calls), any(call.heard for call in calls)
    figure = _figure(9.0, 5.6 + 2.4 * (bool(pairs) + scaled + reused))
    sizes, *between, cost = figure.subplots(2 + bool(pairs) + scaled + reused, 1, sharex=True)
    known = [between.pop()] if reused else []
    scales = [between.pop()] if scaled else []
    figure.subplots_adjust(left=0.09, right=0.78, top=0.95, bottom=0.08, hspace=0.18)
    for name in names:
        points = [(at, call.sizes()[name]) for at, call in enumerate(calls) if name in call.names]
        sizes.plot(*zip(*points, strict=True), marker=".", color=colors[name], label=name)
    sizes.set_ylabel("size, in units of the latent", fontsize=8)
    for axes in between:
        for one, other in pairs:
            found = [(at, call.angles()[one, other]) for at, call in enumerate(calls) if (one, other) in call.angles()]
            style = {"color": colors[one], "markerfacecolor": colors[other], "markeredgecolor": colors[other]}
            axes.plot(*zip(*found, strict=True), marker=".", label=f"{one}, {other}", **style)
        axes.axhline(90, color=OTHER, linewidth=0.8, linestyle=":")
        axes.set(ylim=(0, 180), yticks=(0, 45, 90, 135, 180))
        axes.set_ylabel("angle between two, in degrees", fontsize=8)
    for axes in scales:
        points = [(at, call.effective_cfg()) for at, call in enumerate(calls) if call.shares()]
        axes.plot(*zip(*points, strict=True), marker=".", color=INK, label="effective cfg")
        for name in names:
            points = [(at, call.shares()[name]) for at, call in enumerate(calls) if name in call.shares()]
            axes.plot(*zip(*points, strict=True), color=colors[name], linewidth=1, label=f"share of {name}")
        axes.axhline(1, color=OTHER, linewidth=0.8, linestyle=":")
        axes.set_ylabel("nearest plain cfg", fontsize=8)
    for axes in known:
        _draw_known(axes, calls, colors)
    rows, saved = [call.rows for call in calls], [call.saved[1] for call in calls]
    cost.bar(range(len(calls)), rows, color=OTHER, label="rows")
    if any(saved):
        cost.bar(
            range(len(calls)), saved, bottom=rows, color="none", edgecolor=OTHER, linestyle=":", label="rows saved"
        )
    cost.set_ylabel("rows", fontsize=8)
    cost.set_xlabel("model call (noise level falls to the right)", fontsize=8)
    time = cost.twinx()
    (milliseconds,) = time.plot([call.milliseconds for call in calls], color=INK, linewidth=1, label="milliseconds")
    time.set_ylim(bottom=0)
    time.tick_params(labelsize=7, pad=1)
    time.set_ylabel("ms", fontsize=8, labelpad=3)
    for axis in (cost.xaxis, cost.yaxis):
        axis.get_major_locator().set_params(integer=True)  # calls and rows are counted
    for axes in (sizes, *between, *scales, *known, cost):
        axes.tick_params(labelsize=7)
        axes.margins(x=0.02)
        lines = axes.get_legend_handles_labels()[0] + ([milliseconds] if axes is cost else [])
        if lines:
            axes.legend(handles=lines, loc="upper left", bbox_to_anchor=(1.07, 1.0), fontsize=7, frameon=False)
    return _image(figure)


def _draw_known(axes, calls, colors: dict) -> None:
    """In which calls each direction was computed, and how wrong the one was that had gone on until there."""
    for name in dict.fromkeys(name for call in calls for name in call.heard):
        color = colors.get(name, INK)
        heard = [(at, call.heard[name]) for at, call in enumerate(calls) if name in call.heard]
        errors = [(at, one.error.item()) for at, one in heard if one.error is not None]
        axes.plot(
            *zip(*errors, strict=True) if errors else ([], []), marker=".", color=color, label=f"{name}, computed"
        )
        stopped = [at for at, one in heard if one.state == "stopped"]
        if stopped:
            axes.plot(stopped, [0] * len(stopped), marker="x", linestyle="", color=color, label=f"{name}, stopped")
    axes.set_ylim(bottom=-0.02)
    axes.set_ylabel("error of what went on", fontsize=8)


def draw_losses(losses: Sequence[float]) -> Tensor:
    """The loss of each iteration of a training and their running mean, [1, height, width, 3]."""
    mean, means = losses[0], []
    for loss in losses:
        mean += (loss - mean) / 20
        means.append(mean)
    figure = _figure(6.0, 3.0)
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
    return _image(figure)


def _figure(width: float, height: float):
    """An empty figure of this size in inches."""
    try:
        from matplotlib.figure import Figure  # without pyplot, whose figures stay until closed
    except ImportError:
        raise ValueError(
            "drawing needs matplotlib, which is missing: install the pack's requirements.txt in ComfyUI's Python"
        ) from None
    return Figure(figsize=(width, height), dpi=144, facecolor="white")


def _rectangle(*args, **kwargs):
    from matplotlib.patches import Rectangle

    return Rectangle(*args, **kwargs)


def _image(figure) -> Tensor:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with RENDERING:
        canvas.draw()
    pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
    width, height = canvas.get_width_height()
    return pixels.view(1, height, width, 4)[..., :3].float() / 255

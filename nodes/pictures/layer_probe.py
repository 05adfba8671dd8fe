"""The picture of a Layer Probe: the suggestion in sentences, and a line for each layer with what was measured of it.

Lengths are in points, as in report.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ...guiders.layer_probe import Measures
from .drawing import CHOSEN, rectangle, rendered
from .labelled_grid import BACKGROUND, GAP, SMALLEST_SIDE, grid, stacked
from .report import CARD, INK, LINE, MARGIN, SIZE, WIDTH, Sheet, lines_of
from .tensors import as_image, as_pictures

NAMES, STEPS = 98, 78  # widths: of the layers' names, and of what they do step by step
FAINT_INK = "#adb5bd"
LOW, HIGH, MISSING = (36, 39, 44), (77, 171, 247), "–"  # of cells, from least to most
COLUMNS = (  # headline, width, how a number is written
    ("moved", 50, "{:.1%}"),
    ("ahead", 46, "{:.2f}"),
    ("fine", 42, "{:.0%}"),
    ("CFG", 44, "{:.0f}°"),
    ("scale", 44, "{:.3g}"),
)
EXPLAINED = (
    "steps: how far it moves the picture in each step, from first to last.",
    "moved: how far scale 1 moves the picture, mean of all steps.",
    "ahead: 1 guides to where the model itself goes next, 0 sideways, below 0 away from it.",
    "fine: the share of edges and texture in what it changes; the rest is shapes and colours.",
    "CFG: the angle to CFG's direction. 0° is the same, 90° unrelated.",
    "scale: with it the layer moves the picture as far as auto does at your scale.",
)
SIDE = 48  # layers up to which their angles to one another are drawn


def draw_probe(
    measures: Measures, chosen: int, scales: Sequence[float], guidance: str, reason: Sequence[str]
) -> Tensor:
    """[1, height, width, 3]. chosen: the row that is marked. Raises ValueError without matplotlib."""
    sentences = [words for sentence in reason for words in lines_of(sentence, 10)]
    explained = [words for sentence in _explained(measures) for words in lines_of(sentence)]
    rows = len(measures.names)
    table = MARGIN + LINE + 10 + LINE * len(sentences) + 12
    below = table + LINE * (rows + 1) + 10
    square = below + LINE * len(explained) + 14
    side = min(rows * 14, WIDTH - NAMES - 2 * MARGIN) if _has_square(measures) else 0
    sheet = Sheet(square + (side + 3 * LINE if side else 0))
    sheet.text(MARGIN, f"{guidance} in each layer", weight="bold", size=14)
    y = MARGIN + LINE + 10
    sheet.bar(y, LINE * len(sentences), CHOSEN)
    for words in sentences:
        sheet.text(y, words, indent=10)
        y += LINE
    _table(sheet, table, measures, chosen, scales)
    for at, words in enumerate(explained):
        sheet.text(below + LINE * at, words, color=FAINT_INK)
    if side:
        _square(sheet, square, side, measures)
    return rendered(sheet.figure)


def _explained(measures: Measures) -> list[str]:
    return [line for line in EXPLAINED if measures.to_cfg is not None or not line.startswith("CFG:")]


def _table(sheet: Sheet, top: float, measures: Measures, chosen: int, scales: Sequence[float]) -> None:
    columns = [column for column in COLUMNS if measures.to_cfg is not None or column[0] != "CFG"]
    values = [_values(measures, at, scales[at]) for at in range(len(measures.names))]
    x = MARGIN + NAMES
    _write(sheet, x, top, "steps", color=FAINT_INK)
    strip = measures.by_step / measures.by_step.nan_to_num(0, 0, 0).max().clamp(min=1e-12)
    x_of, left = {}, x + STEPS + 8
    for name, width, _ in columns:
        x_of[name] = left
        _write(sheet, left + width - 4, top, name, color=FAINT_INK, ha="right")
        left += width
    ranges = {name: _range([value[name] for value in values]) for name, *_ in columns}
    for at, name in enumerate(measures.names):
        y = top + LINE * (at + 1)
        mark = {"color": INK, "weight": "bold" if at == chosen else "normal"}
        if at == chosen:
            sheet.bar(y, LINE, CHOSEN)
        _write(sheet, MARGIN + 8, y, _short(name), **mark)
        count = strip.shape[1]
        for step in range(count):
            _cell(sheet, MARGIN + NAMES + STEPS * step / count, y, STEPS / count, strip[at, step].item())
        for column, width, form in columns:
            value = values[at][column]
            share = _share(value, *ranges[column])
            _cell(sheet, x_of[column], y, width - 2, 0.75 * share)
            text = form.format(value) if math.isfinite(value) else MISSING
            _write(sheet, x_of[column] + width - 4, y, text, ha="right", **mark)


def _values(measures: Measures, at: int, scale: float) -> dict[str, float]:
    line = measures.line(at)
    found = {name: line[name] for name in ("moved", "ahead", "fine")} | {"scale": scale}
    return found | ({"CFG": line["angle to CFG"]} if "angle to CFG" in line else {})


def _range(values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    return min(finite), max(finite)


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if math.isfinite(value) and high > low else 0.0


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"


def _write(sheet: Sheet, x: float, top: float, text: str, **style) -> None:
    place = x / WIDTH, 1 - (top + LINE / 2) / sheet.height
    sheet.figure.text(*place, text, fontsize=SIZE - 1, va="center_baseline", parse_math=False, **style)


def _cell(sheet: Sheet, x: float, top: float, width: float, share: float) -> None:
    """A coloured rectangle, the more so the larger `share` of 0 to 1 is."""
    share = max(0.0, min(1.0, share)) if math.isfinite(share) else 0.0
    color = [(low + (high - low) * share) / 255 for low, high in zip(LOW, HIGH, strict=True)]
    place = (x / WIDTH, 1 - (top + LINE - 1) / sheet.height)
    size = width / WIDTH, (LINE - 2) / sheet.height
    sheet.figure.add_artist(rectangle(place, *size, facecolor=color, edgecolor="none", zorder=-1))


def _has_square(measures: Measures) -> bool:
    return 2 < len(measures.names) <= SIDE


def _square(sheet: Sheet, top: float, side: float, measures: Measures) -> None:
    """How much alike the directions of each two layers are."""
    sheet.text(top, "How alike the directions of two layers are", weight="bold")
    sheet.text(top + LINE, "Yellow is the same, dark blue is unrelated or against.", color=FAINT_INK)
    axes = sheet.figure.add_axes(
        ((MARGIN + NAMES) / WIDTH, 1 - (top + 2 * LINE + side) / sheet.height, side / WIDTH, side / sheet.height)
    )
    axes.imshow(measures.alike.nan_to_num(0).clamp(0, 1).numpy(), cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axes.set(yticks=range(len(measures.names)), xticks=[])
    axes.set_yticklabels(
        [_short(name) for name in measures.names], fontsize=min(10, 9 * side / 14 / len(measures.names)), color=INK
    )
    axes.tick_params(length=0, labelcolor=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def contact_sheet(picture: Tensor, pictures: Tensor, labels: Sequence[str]) -> Tensor:
    """`picture`, [1, height, width, 3], with `pictures` below it, each under its label. Lines are as wide as it is."""
    cells = as_pictures(pictures)
    columns = max(4, (picture.shape[2] - GAP) // (max(SMALLEST_SIDE, cells[0].width) + GAP))
    lines = [grid([("", cells[at : at + columns])], labels[at : at + columns]) for at in range(0, len(cells), columns)]
    return as_image(stacked([*as_pictures(picture), stacked(lines, BACKGROUND)], CARD))

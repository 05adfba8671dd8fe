"""The picture of a recorded run: what it comes to in sentences, a chart of it, and below these the details.

Lengths are in points. A picture has two pixels for each, so that a node of its width in the page shows 12 points as 12
pixels of the screen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .drawing import blank, line, measure, rendered
from .labelled_grid import wrap

WIDTH, MARGIN, LEFT = 440, 14, 52  # LEFT: of the axes, with room for their numbers
LINE, SIZE, PANEL = 17, 12, 150  # the height of a line of text, of its letters, of a panel
CARD, INK, FAINT = "#24272c", "#e9ecef", "#6c757d"  # a card of its own, for a dark page and a light one
COLORS = ("#4dabf7", "#ffa94d", "#63e6be", "#f783ac", "#ffe066", "#b197fc", "#a9e34b", "#ced4da")


@dataclass
class Panel:
    """Axes with a headline and a legend above them."""

    headline: str
    below: str  # what stands under the axes
    length: int  # how many steps or calls it shows
    draw: Callable  # (axes) → None
    legend: Sequence[tuple[str, Mapping]] = ()  # (label, how its line looks)

    @property
    def headlines(self) -> list[str]:
        """The lines of the headline."""
        return lines_of(self.headline, weight="bold")

    @property
    def columns(self) -> int:
        """Of the legend."""
        widest = max((measure(label, SIZE) for label, _ in self.legend), default=0)
        return max(1, int((WIDTH - 2 * MARGIN) // (widest + 40)))

    @property
    def above(self) -> float:
        """The height of what stands above the axes."""
        return LINE * (len(self.headlines) - (-len(self.legend) // self.columns)) + 14

    @property
    def height(self) -> float:
        """The height of all."""
        return self.above + PANEL + 2 * LINE + 26


def lines_of(text: str, indent: int = 0, weight: str = "normal") -> list[str]:
    """The lines that a text has in the picture."""
    return wrap(text, WIDTH - 2 * MARGIN - indent, lambda part: measure(part, SIZE, weight))


def draw_report(recorder, verdict: Sequence[str], moved: Mapping[str, Mapping[int, float]]) -> tuple[Tensor, Tensor]:
    """(the whole picture, its upper part without the details), [1, height, width, 3]. moved: guidance → step → how far it
    moved the picture. Raises ValueError without matplotlib."""
    colors = {name: COLORS[at % len(COLORS)] for at, name in enumerate(moved)}
    chart = [_moved(moved, colors)] if moved else []
    details = _details(recorder, colors)
    paragraphs = [lines_of(paragraph, 10) for paragraph in verdict]
    top = MARGIN + LINE + 8 + sum(LINE * len(lines) + 6 for lines in paragraphs) + 10
    short = top + sum(panel.height for panel in chart)
    sheet = Sheet(short + sum(panel.height for panel in details))
    sheet.text(MARGIN, "What the guidance did", weight="bold", size=14)
    y = MARGIN + LINE + 8
    for lines, color in zip(paragraphs, [*colors.values(), *[FAINT] * len(paragraphs)], strict=False):
        sheet.bar(y, LINE * len(lines), color)
        for words in lines:
            sheet.text(y, words, indent=10)
            y += LINE
        y += 6
    for panel in (*chart, *details):
        sheet.panel(top, panel)
        top += panel.height
    whole = rendered(sheet.figure)
    return whole, whole[:, : round(2 * short)]


class Sheet:
    """A figure of the picture's width on which things are placed by their distance from the top."""

    def __init__(self, height: float):
        self.height = math.ceil(height)
        self.figure = blank(WIDTH / 72, self.height / 72, CARD)

    def text(self, top: float, text: str, indent: float = 0, size: float = SIZE, **style) -> None:
        """One line."""
        place = (MARGIN + indent) / WIDTH, 1 - top / self.height
        style = {"color": INK, "va": "top", **style}
        self.figure.text(*place, text, fontsize=size, parse_math=False, **style)

    def bar(self, top: float, height: float, color: str) -> None:
        """A mark at the left of a paragraph."""
        x, ys = MARGIN / WIDTH, [1 - (top - 1) / self.height, 1 - (top + height - 3) / self.height]
        self.figure.add_artist(line([x, x], ys, color=color, linewidth=4))

    def panel(self, top: float, panel: Panel) -> None:
        """A panel at its place."""
        for words in panel.headlines:
            self.text(top, words, weight="bold")
            top += LINE
        legend_top = 1 - top / self.height
        top += panel.above - LINE * len(panel.headlines)
        axes = self.figure.add_axes(
            (LEFT / WIDTH, 1 - (top + PANEL) / self.height, (WIDTH - LEFT - 50) / WIDTH, PANEL / self.height)
        )
        dress(axes)
        panel.draw(axes)
        axes.set_xlim(-0.5, max(panel.length, 2) - 0.5)
        axes.locator_params(axis="x", integer=True)  # steps and calls are counted
        axes.set_xlabel(panel.below, fontsize=SIZE, color=INK)
        if panel.legend:
            lines = [line([], [], label=label, **style) for label, style in panel.legend]
            place = {
                "loc": "upper left",
                "bbox_to_anchor": (MARGIN / WIDTH, legend_top),
                "borderaxespad": 0,
                "borderpad": 0.1,
            }
            self.figure.legend(
                handles=lines, ncol=panel.columns, fontsize=SIZE, labelcolor=INK, frameon=False, handlelength=1.6, **place
            )  # fmt: skip


def dress(axes) -> None:
    """Give axes the colours and sizes of the picture."""
    axes.set_facecolor(CARD)
    axes.tick_params(labelsize=SIZE, colors=INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.5)
    for spine in axes.spines.values():
        spine.set_color(FAINT)


def _moved(moved: Mapping[str, Mapping[int, float]], colors: Mapping[str, str]) -> Panel:
    """How far each guidance moved the picture."""

    def draw(axes) -> None:
        for name, steps in moved.items():
            percents = [100 * size if math.isfinite(size) else math.nan for size in steps.values()]
            axes.plot([*steps], percents, color=colors[name], **CURVE)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:g}%")

    legend = [(name, {"color": color, **CURVE}) for name, color in colors.items()]
    return Panel(
        "How far each guidance moved the picture",
        "step (0 is the first)",
        len(next(iter(moved.values()))),
        draw,
        legend,
    )


CURVE = {"linewidth": 2, "marker": "o", "markersize": 4}
CALLS = "model call, in the order of sampling"


def _details(recorder, colors: Mapping[str, str]) -> list[Panel]:
    """What researchers look at: directions, effective cfg, errors of what went on uncomputed, and the cost."""
    calls = recorder.calls
    pairs = list(dict.fromkeys(pair for call in calls for pair in call.angles()))
    panels = [_angles(calls, pairs, colors)] if pairs else []
    panels += [_strength(calls, colors)] if any(call.shares() for call in calls) else []
    panels += [_known(calls, colors)] if any(call.heard for call in calls) else []
    return [*panels, _cost(calls)]


def _angles(calls, pairs: Sequence[tuple[str, str]], colors: Mapping[str, str]) -> Panel:
    styles = {
        (one, other): {"color": colors[one], "markerfacecolor": colors[other], "markeredgecolor": colors[other]}
        for one, other in pairs
    }

    def draw(axes) -> None:
        for pair, style in styles.items():
            found = [(at, call.angles()[pair]) for at, call in enumerate(calls) if pair in call.angles()]
            axes.plot(*zip(*found, strict=True), **CURVE, **style)
        axes.axhline(90, color=FAINT, linewidth=1, linestyle=":")
        axes.set(ylim=(0, 180), yticks=(0, 45, 90, 135, 180))
        axes.yaxis.set_major_formatter("{x:g}°")

    legend = [(f"{one}, {other}", {**CURVE, **style}) for (one, other), style in styles.items()]
    text = "Angle between two guidances: 0° push the same way, 90° are unrelated, 180° push against each other"
    return Panel(text, CALLS, len(calls), draw, legend)


def _strength(calls, colors: Mapping[str, str]) -> Panel:
    total = {"color": INK, **CURVE}

    def draw(axes) -> None:
        known = [(at, call) for at, call in enumerate(calls) if call.shares()]
        axes.plot([at for at, _ in known], [call.effective_cfg() for _, call in known], **total)
        for name, color in colors.items():
            shares = [(at, call.shares()[name]) for at, call in known if name in call.shares()]
            axes.plot(*zip(*shares, strict=True) if shares else ([], []), color=color, linewidth=1.5)
        axes.axhline(1, color=FAINT, linewidth=1, linestyle=":")

    legend = [("effective cfg", total), *((f"part of {name}", {"color": color}) for name, color in colors.items())]
    text = "Effective cfg: how strong cfg alone would have to be, and the part of each guidance in it"
    return Panel(text, CALLS, len(calls), draw, legend)


def _known(calls, colors: Mapping[str, str]) -> Panel:
    names = dict.fromkeys(name for call in calls for name in call.heard)
    legend = [(f"{name}, computed", {"color": colors.get(name, INK), **CURVE}) for name in names]
    ended = {"linestyle": "", "marker": "x", "markersize": 6}

    def draw(axes) -> None:
        for name in names:
            heard = [(at, call.heard[name]) for at, call in enumerate(calls) if name in call.heard]
            errors = [(at, one.error.item()) for at, one in heard if one.error is not None]
            axes.plot(*zip(*errors, strict=True) if errors else ([], []), color=colors.get(name, INK), **CURVE)
            stopped = [at for at, one in heard if one.state == "stopped"]
            axes.plot(stopped, [0] * len(stopped), color=colors.get(name, INK), **ended)
        axes.set_ylim(bottom=-0.02)

    for name in names:
        if any(call.heard[name].state == "stopped" for call in calls if name in call.heard):
            legend.append((f"{name}, ended", {"color": colors.get(name, INK), **ended}))
    text = "How wrong continued guidance was when it was next computed, as a part of its largest size"
    return Panel(text, CALLS, len(calls), draw, legend)


def _cost(calls) -> Panel:
    rows, saved = [call.rows for call in calls], [call.saved[1] for call in calls]

    def draw(axes) -> None:
        axes.bar(range(len(calls)), rows, color=FAINT)
        if any(saved):
            axes.bar(range(len(calls)), saved, bottom=rows, color="none", edgecolor=INK, linestyle=":")
        axes.locator_params(axis="y", integer=True)
        time = axes.twinx()
        dress(time)
        time.grid(visible=False)
        time.plot([call.milliseconds for call in calls], color=INK, linewidth=1.5)
        time.set_ylim(bottom=0)

    legend = [("predictions (left)", {"color": FAINT, "linewidth": 8})]
    legend += [("saved", {"color": INK, "linestyle": ":"})] if any(saved) else []
    legend += [("milliseconds (right)", {"color": INK})]
    return Panel("Cost: predictions that the network made, and the time", CALLS, len(calls), draw, legend)

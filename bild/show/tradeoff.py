"""Quality against speedup: a plot a set of examples, with every decoder's thresholds beside it.

Series differ in marker and line, not in colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator, NullLocator
from matplotlib.transforms import Bbox

from bild.pictures import INK, KINDS, SETTINGS
from bild.tasks.metrics import METRIC_NAMES

Line = Literal["-", "--", "-.", ":", ""]

TICKS = (0.7, 0.8, 0.9, 1, 1.2, 1.4, 1.6, 1.8, 2, 2.3)  # speedups
WIDE_TICKS = (0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 12)
LABELS = "Beside the marks: fallback threshold, rollback threshold."
BLUE, VERMILLION = KINDS["unaligned"].colour, KINDS["aligned"].colour


@dataclass(frozen=True)
class Style:
    """How a series looks.

    Attributes:
        name: in the legend.
        marker, colour, size, filled: of its points.
        line: through those of its points that no other of them beats, or level where their
            speed is not known; empty for none.
    """

    name: str
    marker: str
    colour: str
    size: float = 6.0
    filled: bool = True
    line: Line = ""


STYLES = {
    "large": Style("large model alone", "s", INK, 5.5),
    "small": Style("small model alone", "D", INK, 5.5),
    "published small": Style("aligned small model alone (on another card)", "D", INK, 5.5),
    "untimed small": Style("aligned small model alone, its speed not known", "", INK, line="-."),
    "lossless": Style("BiLD, lossless thresholds", "*", INK, 11, False),
    "unaligned": Style("BiLD, unaligned", "o", BLUE, line="-"),
    "aligned": Style("BiLD, aligned", "^", VERMILLION, 6.5, line="--"),
    "unaligned optuna": Style("BiLD, unaligned, pairs found by search", "d", BLUE, line="-"),
    "aligned optuna": Style("BiLD, aligned, pairs found by search", "<", VERMILLION, line="--"),
    "unaligned grid": Style("BiLD, unaligned, best of the grid", "x", BLUE, 5, line=":"),
    "aligned grid": Style("BiLD, aligned, best of the grid", "+", VERMILLION, line=":"),
    "paper unaligned": Style("paper, unaligned", "h", BLUE, 7.5, line=":"),
    "paper aligned": Style("paper, aligned", "v", VERMILLION, 7.5, line=":"),
    "reproduction unaligned": Style("reproduction, unaligned", "o", BLUE, 5, False, "-"),
    "reproduction aligned": Style("reproduction, aligned", "^", VERMILLION, 5.5, False, "--"),
    "own unaligned": Style("reproduction, its own small model, unaligned", "P", BLUE, 7),
    "own aligned": Style("reproduction, its own small model, aligned", "X", VERMILLION, 7),
}


@dataclass(frozen=True)
class Point:
    """A decoder in a picture.

    Attributes:
        score: 0 to 100.
        speedup: over the large model alone; None where it is not known.
        scores, speedups: 95 % intervals around them.
        label: written beside it.
    """

    score: float
    speedup: float | None
    scores: tuple[float, float] | None = None
    speedups: tuple[float, float] | None = None
    label: str = ""


@dataclass(frozen=True)
class Panel:
    """One plot of quality against speedup.

    Attributes:
        title: above it.
        metric: of the scores.
        series: points by the keys of `STYLES`; always the large model alone.
        note: below the title, smaller.
    """

    title: str
    metric: str
    series: dict[str, list[Point]]
    note: str = ""


def draw_tradeoff(panels: Sequence[Panel], title: str, columns: int = 2) -> Figure:
    """Quality against speedup, a plot a panel, one legend for all."""
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(3.7 * columns, 3.1 * rows + 1.3), layout="constrained")
        figure.suptitle(title, fontsize=11, wrap=True)
        places = list(figure.subplots(rows, columns, squeeze=False).flat)
        for place, content in zip(places, panels, strict=False):
            _draw_panel(place, content)
        free = places[len(panels) :]
        for place in free:
            place.set_axis_off()
        handles = [
            Line2D([], [], linestyle=style.line or "none", label=style.name, **_marker(style))
            for name, style in STYLES.items()
            if any(name in panel.series for panel in panels)
        ]
        marked = any(p.label for panel in panels for ps in panel.series.values() for p in ps)
        legend: dict[str, Any] = {"handles": handles, "title": LABELS if marked else None}
        if free and columns == 2 and len(handles) > 6:
            free[0].legend(loc="center", fontsize=9, **legend)
        else:
            figure.legend(loc="outside lower center", ncols=columns, fontsize=9, **legend)
        figure.draw_without_rendering()  # now places are known
        for place, content in zip(places, panels, strict=False):
            _write_labels(place, content, figure.dpi)
    return figure


def _draw_panel(place: Axes, content: Panel) -> None:
    place.set_title(content.title + (f"\n{content.note}" if content.note else ""))
    large = content.series["large"][0].score
    place.axhline(large, color=INK, alpha=0.5, linewidth=0.6, linestyle=":", zorder=0)
    place.axvline(1, color=INK, alpha=0.5, linewidth=0.6, linestyle=":", zorder=0)
    for name, points in content.series.items():
        style = STYLES[name]
        for point in points:
            if point.speedup is None:
                place.axhline(point.score, color=style.colour, linewidth=1, linestyle=style.line)
                continue
            place.errorbar(
                point.speedup,
                point.score,
                xerr=_bars(point.speedup, point.speedups),
                yerr=_bars(point.score, point.scores),
                elinewidth=0.6,
                capsize=1.5,
                capthick=0.6,
                zorder=3 if name == "large" else 2,
                **_marker(style),
            )
        front = _front(points)
        if style.line and front:
            place.plot(*zip(*front, strict=True), style.line, color=style.colour, linewidth=1)
    place.set_xscale("log")
    place.margins(x=0.1, y=0.12)
    low, high = place.get_xlim()
    place.xaxis.set_major_locator(FixedLocator(WIDE_TICKS if high / low > 2.5 else TICKS))
    place.xaxis.set_minor_locator(NullLocator())
    place.xaxis.set_major_formatter("{x:g}x")
    place.set_xlabel("speedup over the large model alone")
    place.set_ylabel(METRIC_NAMES.get(content.metric, content.metric))


# ------------------------------------------------------------------------------ labels


# Where a label may stand beside its point: ever farther away, in points of 1/72 inch.
NEAR = 5  # so near a label needs no line to its point
OFFSETS = [
    (x * distance, y * distance)
    for distance in (NEAR, 9, 14, 20, 28, 38)
    for x, y in ((1, 0.7), (1, 0), (1, -0.7), (-1, 0.7), (-1, 0), (-1, -0.7), (0, 1), (0, -1))
]


def _write_labels(place: Axes, content: Panel, dpi: float) -> None:
    """Write each point's label as near to it as nothing else stands."""
    taken = _obstacles(place, content, dpi)
    inside = place.get_window_extent()
    for name, points in content.series.items():
        for point in points:
            if point.label and point.speedup is not None:
                taken.append(_write_label(place, point, STYLES[name], taken, inside, dpi))


def _write_label(
    place: Axes, point: Point, style: Style, taken: list[Bbox], inside: Bbox, dpi: float
) -> Bbox:
    """Write a label and return where it stands, in pixels."""
    pixels = dpi / 72  # of a point

    def annotate(x: float, y: float, **more: Any) -> Annotation:
        text = place.annotate(
            point.label, (point.speedup, point.score), xytext=(x, y), textcoords="offset points",
            fontsize=8, color=style.colour, ha="center", va="center", **more,
        )  # fmt: skip
        text.set_in_layout(False)  # what it stands in is laid out already
        return text

    measured = annotate(0, 0)
    box = measured.get_window_extent()
    measured.remove()

    def centre(offset: tuple[float, float]) -> tuple[float, float]:
        """Of a label whose near edge is at an offset from the point, in points."""
        half = (box.width / 2 / pixels, box.height / 2 / pixels)
        x, y = (o + math.copysign(h, o) * (o != 0) for o, h in zip(offset, half, strict=True))
        return x, y

    def trouble(offset: tuple[float, float]) -> float:
        x, y = centre(offset)
        moved = box.translated(x * pixels, y * pixels)
        outside = moved.width * moved.height - _overlap(moved, inside)
        return sum(_overlap(moved, other) for other in taken) + 10 * outside

    best = min(OFFSETS, key=trouble)
    x, y = centre(best)
    line = {"arrowstyle": "-", "linewidth": 0.4, "color": style.colour, "shrinkA": 1}
    annotate(x, y, arrowprops=line if max(map(abs, best)) > NEAR else None)
    return box.translated(x * pixels, y * pixels)


def _obstacles(place: Axes, content: Panel, dpi: float) -> list[Bbox]:
    """Marks, their intervals and the lines between them, as boxes of pixels."""
    boxes: list[Bbox] = []
    to_pixels = place.transData.transform
    for name, points in content.series.items():
        style = STYLES[name]
        for point in points:
            if point.speedup is None:
                continue
            x, y = to_pixels((point.speedup, point.score))
            reach = style.size * dpi / 72 / 2 + 1
            boxes.append(Bbox.from_extents(x - reach, y - reach, x + reach, y + reach))
            for low, high in _ends(point):
                (x0, y0), (x1, y1) = to_pixels(low), to_pixels(high)
                boxes.append(Bbox.from_extents(x0 - 1, y0 - 1, x1 + 1, y1 + 1))
        if style.line:
            boxes += _along([tuple(to_pixels(p)) for p in _front(points)])
    return boxes


def _ends(point: Point) -> Iterable[tuple[tuple[float, float], tuple[float, float]]]:
    """Both ends of a point's intervals."""
    assert point.speedup is not None
    if point.scores is not None:
        yield (point.speedup, point.scores[0]), (point.speedup, point.scores[1])
    if point.speedups is not None:
        yield (point.speedups[0], point.score), (point.speedups[1], point.score)


def _along(line: Sequence[tuple[float, float]]) -> list[Bbox]:
    """Small boxes along a line of several points."""
    boxes = []
    for (x0, y0), (x1, y1) in pairwise(line):
        steps = max(1, round(math.dist((x0, y0), (x1, y1)) / 4))
        for i in range(steps + 1):
            x, y = x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps
            boxes.append(Bbox.from_extents(x - 1, y - 1, x + 1, y + 1))
    return boxes


def _overlap(a: Bbox, b: Bbox) -> float:
    """The area that two boxes share."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(0.0, width) * max(0.0, height)


def _front(points: Sequence[Point]) -> list[tuple[float, float]]:
    """(speedup, score) of the points that no other beats in both, the slowest first."""
    front: list[tuple[float, float]] = []
    known = [(p.speedup, p.score) for p in points if p.speedup is not None]
    for speedup, score in sorted(known, reverse=True):
        if not front or score > front[-1][1]:
            front.append((speedup, score))
    return front[::-1]


def _bars(value: float, interval: tuple[float, float] | None) -> list[list[float]] | None:
    return None if interval is None else [[value - interval[0]], [interval[1] - value]]


def _marker(style: Style) -> dict[str, Any]:
    return {
        "marker": style.marker,
        "markersize": style.size,
        "color": style.colour,
        "markerfacecolor": style.colour if style.filled else "none",
        "markeredgewidth": 0.9,
    }

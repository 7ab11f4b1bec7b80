"""Rules side by side, as a picture."""

from __future__ import annotations

from typing import Any, TypeAlias

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bild.evaluation.arms import BILD, SMALL
from bild.evaluation.record import ArmFigures
from bild.pictures import BLUE, GREEN, INK, PURPLE, SETTINGS, VERMILLION
from bild.show.rules import ALONE
from bild.tasks.metrics import METRIC_NAMES
from bild.tuning.record import RulesRecord

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, "#E69F00", "#56B4E9")
MARKERS = "o^sXDPv<>*hdpH8"  # with the colours, as many looks as no comparison has rules
Point: TypeAlias = tuple[float, float]  # speedup and score


def draw_rules(record: RulesRecord, title: str) -> Figure:
    """Score against speedup: a mark a setting, a line through the settings of one rule.

    The axes are of the rules. A small model that alone is far from all of them, which would leave
    them a corner, has its mark at the edge and its place in words.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(7.4, 4.6), layout="constrained")
        figure.suptitle(title, fontsize=11, wrap=True)
        place = figure.subplots()
        metric = METRIC_NAMES.get(record.metric, record.metric)
        groups: dict[str, list[ArmFigures]] = {}
        for arm in record.arms:
            name = arm.id.label.partition(":")[0] if arm.id.kind == BILD else ALONE[arm.id.kind]
            groups.setdefault(name, []).append(arm)
        near = [_point(record, arm) for arm in record.arms if arm.id.kind != SMALL]
        for number, (name, arms) in enumerate(groups.items()):
            points = [_point(record, arm) for arm in arms]
            alone = name in ALONE.values()
            colour = INK if alone else COLOURS[number % len(COLOURS)]
            look: dict[str, Any] = {
                "marker": MARKERS[number % len(MARKERS)],
                "color": colour,
                "label": name,
            }
            if name == ALONE[SMALL] and not all(map(_is_near, points[0], *_ranges(near))):
                _draw_outside(place, *points[0], near, look, metric)
                continue
            x, y = zip(*points, strict=True)
            place.plot(x, y, "-", linewidth=0.8, **look)
        large = _point(record, record.arms[0])
        place.axhline(large[1], color=INK, linewidth=0.6, linestyle=":")
        place.axvline(1, color=INK, linewidth=0.6, linestyle=":")
        place.set_xlabel("speedup over the large model alone")
        place.set_ylabel(metric)
        figure.legend(loc="outside right upper", fontsize=9)
    return figure


def _ranges(points: list[Point]) -> tuple[Point, Point]:
    """The lowest x and y, and the highest."""
    xs, ys = zip(*points, strict=True)
    return (min(xs), min(ys)), (max(xs), max(ys))


def _is_near(value: float, low: float, high: float) -> bool:
    """Whether a value is within a range, or as far from it as the range is long."""
    return low - (high - low) <= value <= high + (high - low)


def _draw_outside(
    place: Axes, x: float, y: float, near: list[Point], look: dict[str, Any], metric: str
) -> None:
    """A mark at the edge of the axes, on the side of a point that lies outside, and where it is."""
    (left, bottom), (right, top) = _ranges(near)
    across = 0.97 if x > right else 0.03 if x < left else 0.5
    up = 0.04 if y < bottom else 0.96 if y > top else 0.5
    place.margins(0.05, 0.14)  # so that nothing lies beneath the words
    place.plot(across, up, linestyle="", transform=place.transAxes, clip_on=False, **look)
    beside = -10 if across > 0.5 else 10
    place.annotate(
        f"outside: {x:.2f}x, {metric} {y:.1f}",
        (across, up),
        xycoords="axes fraction",
        textcoords="offset points",
        xytext=(beside, 0),
        ha="right" if beside < 0 else "left",
        va="center",
    )


def _point(record: RulesRecord, arm: ArmFigures) -> Point:
    speedup = arm.speed.speedup
    return 1.0 if speedup is None else speedup.value, arm.quality[record.metric].value

"""Rules side by side, as a picture."""

from __future__ import annotations

import matplotlib
from matplotlib.figure import Figure

from bild.evaluation.arms import BILD
from bild.evaluation.record import ArmFigures
from bild.pictures import BLUE, GREEN, INK, PURPLE, SETTINGS, VERMILLION
from bild.show.rules import ALONE
from bild.tasks.metrics import METRIC_NAMES
from bild.tuning.record import RulesRecord

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, "#E69F00", "#56B4E9")
MARKERS = "o^sXDPv<>*hd"


def draw_rules(record: RulesRecord, title: str) -> Figure:
    """Score against speedup: a mark a setting, a line through the settings of one rule."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(7.4, 4.6), layout="constrained")
        figure.suptitle(title, fontsize=11, wrap=True)
        place = figure.subplots()
        groups: dict[str, list[ArmFigures]] = {}
        for arm in record.arms:
            name = arm.id.label.partition(":")[0] if arm.id.kind == BILD else ALONE[arm.id.kind]
            groups.setdefault(name, []).append(arm)
        for number, (name, arms) in enumerate(groups.items()):
            points = [_point(record, arm) for arm in arms]
            alone = name in ALONE.values()
            colour = INK if alone else COLOURS[number % len(COLOURS)]
            marker = MARKERS[number % len(MARKERS)]
            x, y = zip(*points, strict=True)
            place.plot(x, y, "-", marker=marker, color=colour, linewidth=0.8, label=name)
        large = _point(record, record.arms[0])
        place.axhline(large[1], color=INK, linewidth=0.6, linestyle=":")
        place.axvline(1, color=INK, linewidth=0.6, linestyle=":")
        place.set_xlabel("speedup over the large model alone")
        place.set_ylabel(METRIC_NAMES.get(record.metric, record.metric))
        figure.legend(loc="outside right upper", fontsize=9)
    return figure


def _point(record: RulesRecord, arm: ArmFigures) -> tuple[float, float]:
    speedup = arm.speed.speedup
    return 1.0 if speedup is None else speedup.value, arm.quality[record.metric].value

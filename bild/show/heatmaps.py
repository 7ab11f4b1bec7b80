"""Scores and speeds over both thresholds, as heat maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bild.pictures import INK, SETTINGS, VERMILLION
from bild.tasks.metrics import METRIC_NAMES

PRICED = "speedup, priced: forwards counted,\ntimes the seconds of one"


@dataclass(frozen=True)
class Sweep:
    """Scores and speeds over pairs of thresholds.

    Attributes:
        title: what was swept.
        metric: of `scores`.
        speed: what `speeds` are.
        scores, speeds: by (fallback, rollback).
        framed: pairs to point out.
    """

    title: str
    metric: str
    speed: str
    scores: dict[tuple[float, float], float]
    speeds: dict[tuple[float, float], float]
    framed: frozenset[tuple[float, float]]


def draw_sweeps(sweeps: Sequence[Sweep], title: str) -> Figure:
    """Heat maps of score and speed over fallback and rollback threshold, a row a sweep."""
    with matplotlib.rc_context(SETTINGS):
        heights = [0.32 * len({r for _, r in s.scores}) + 1.1 for s in sweeps]
        widths = max(3.2, *(0.5 * len({f for f, _ in s.scores}) + 0.8 for s in sweeps))
        figure = Figure(figsize=(2 * widths, sum(heights) + 0.7), layout="constrained")
        figure.suptitle(title, fontsize=11)
        places = figure.subplots(
            len(sweeps), 2, squeeze=False, gridspec_kw={"height_ratios": heights}
        )
        for (left, right), sweep in zip(places, sweeps, strict=True):
            name = METRIC_NAMES.get(sweep.metric, sweep.metric)
            _draw_map(left, f"{name}, {sweep.title}", sweep.scores, sweep.framed, "{:.1f}")
            speed = sweep.speed if "\n" in sweep.speed else f"{sweep.speed}\n"
            _draw_map(right, speed, sweep.speeds, sweep.framed, "{:.2f}")
    return figure


def _draw_map(
    place: Axes,
    title: str,
    cells: dict[tuple[float, float], float],
    framed: frozenset[tuple[float, float]],
    form: str,
) -> None:
    fallbacks, rollbacks = (sorted({pair[i] for pair in cells}) for i in (0, 1))
    values = [[cells.get((f, r), math.nan) for f in fallbacks] for r in rollbacks]
    low, high = min(cells.values()), max(cells.values())
    spread = high - low
    missing = Rectangle(
        (0, 0), 1, 1, transform=place.transAxes, fill=False, hatch="////", edgecolor=INK,
        alpha=0.3, linewidth=0, zorder=0,
    )  # fmt: skip
    place.add_patch(missing)  # where no run was made
    place.pcolormesh(
        values, cmap="Greys", vmin=low - 0.15 * spread, vmax=high + 0.75 * spread,
        edgecolors="white", linewidth=0.5,
    )  # fmt: skip
    for (fallback, rollback), value in cells.items():
        x, y = fallbacks.index(fallback), rollbacks.index(rollback)
        place.text(
            x + 0.5, y + 0.5, form.format(value), fontsize=8, ha="center", va="center",
            color="black",
        )  # fmt: skip
        if (fallback, rollback) in framed:
            place.add_patch(
                Rectangle(
                    (x, y), 1, 1, fill=False, linewidth=2, edgecolor=VERMILLION, clip_on=False
                )
            )
    place.set_xticks([i + 0.5 for i in range(len(fallbacks))], [f"{f:g}" for f in fallbacks])
    place.set_yticks([i + 0.5 for i in range(len(rollbacks))], [f"{r:g}" for r in rollbacks])
    place.tick_params(length=0)
    place.set_title(title)
    place.set_xlabel("fallback threshold")
    place.set_ylabel("rollback threshold")

"""Runs that others published, as panels and sweeps, for pictures."""

from __future__ import annotations

from typing import Any

from bild.evaluation.record import PublishedRuns
from bild.show.heatmaps import Sweep
from bild.show.tradeoff import STYLES, Panel, Point
from bild.tasks.registry import TASKS

CARD = "Tesla T4"  # of the paper and of most runs of the reproduction
SMALLEST_MAP = 9  # cells


def published_panel(published: PublishedRuns) -> Panel:
    """The reproduction's runs of a task, on the card it ran most tasks on, and the paper's rows."""
    task, metric = TASKS[published.task], published.metric
    cards = {run["card"] for run in published.runs if run["mode"] == "vanilla"}
    card = CARD if CARD in cards else min(c for c in cards if c is not None)
    series: dict[str, list[Point]] = {name: [] for name in STYLES}
    for run in published.runs:
        point = Point(run["scores"][metric], run["speedup"])
        if run["mode"] == "small":
            known = run["speedup"] is not None  # against the large model on that card
            series["published small" if known else "untimed small"].append(point)
        elif run["sweep"] == "own small model" and run["card"] is None:
            if run["mode"] != "vanilla":
                series[f"own {run['mode']}"].append(point)
        elif run["sweep"] == "main" and run["card"] == card and run["speedup"] is not None:
            name = "large" if run["mode"] == "vanilla" else f"reproduction {run['mode']}"
            series[name].append(point)
    for row in task.published:
        if row.source == "paper":
            series[f"paper {row.mode}"].append(Point(row.score, row.speedup))
    title = f"{task.description.split(',')[0]}, {card}"
    return Panel(title, metric, {name: points for name, points in series.items() if points})


def published_sweeps(published: PublishedRuns, *, main_only: bool) -> list[Sweep]:
    """The reproduction's runs of a task over both thresholds, one sweep for what compares."""
    wanted = ("main",) if main_only else ("main", "search", "early stopping")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in published.runs:
        if run["fallback"] is not None and run["sweep"] in wanted:
            key = (run["sweep"], run["mode"], run["card"], run["samples"])
            groups.setdefault(key, []).append(run)
    sweeps = []
    for (sweep, mode, card, samples), runs in groups.items():
        cells = {(run["fallback"], run["rollback"]): run for run in runs}
        if len(cells) < SMALLEST_MAP or (main_only and card != CARD):
            continue
        known = all(run["speedup"] is not None for run in runs)
        name = mode if sweep == "main" else f"{sweep}, {mode or 'small model not named'}"
        presets = (
            () if sweep == "early stopping" else TASKS[published.task].thresholds.get(mode, ())
        )
        sweeps.append(
            Sweep(
                f"{name}\n({card}, {samples} examples)",
                published.metric,
                "speedup" if known else "examples/s",
                {pair: run["scores"][published.metric] for pair, run in cells.items()},
                {
                    pair: run["speedup"] if known else run["samples"] / run["seconds"]
                    for pair, run in cells.items()
                },
                frozenset((t.fallback, t.rollback) for t in presets) & frozenset(cells),
            )
        )
    return sweeps

"""Pictures of results: quality against speedup, and scores and speed over both thresholds.

They can be read in black and white: series differ in marker and line, not in colour alone. An SVG
that is drawn twice from the same records is the same file, byte by byte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bild.errors import BildError
from bild.evaluation.arms import BILD, SMALL
from bild.evaluation.record import ArmFigures, PublishedRuns, RunRecord
from bild.tasks.metrics import METRIC_NAMES
from bild.tasks.registry import TASKS
from bild.tuning.record import SearchRecord, SmallModelsRecord

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import FixedLocator, NullLocator
except ModuleNotFoundError as error:
    raise BildError("pictures need matplotlib: pip install -r requirements.txt") from error

Line = Literal["-", "--", "-.", ":", ""]

SETTINGS: dict[Any, Any] = {
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "bild",  # the same ids every time
}
TICKS = (0.7, 0.8, 0.9, 1, 1.2, 1.4, 1.6, 1.8, 2, 2.3)  # speedups
WIDE_TICKS = (0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 12)
CARD = "Tesla T4"  # of the paper and of most runs of the reproduction
SMALLEST_MAP = 9  # cells
SMALL_MODELS = "small-models.json"
BELOW = {"aligned", "unaligned grid", "aligned grid"}  # series whose labels stand below

BLUE, ORANGE, GREY = "#1b4f8a", "#d1670a", "#777777"


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
    "large": Style("large model alone", "s", "black"),
    "small": Style("small model alone", "D", GREY, 5.5),
    "published small": Style("aligned small model alone (on another card)", "D", GREY, 5.5),
    "untimed small": Style("aligned small model alone, its speed not known", "", GREY, line="-."),
    "lossless": Style("BiLD, lossless thresholds", "*", "black", 9),
    "unaligned": Style("BiLD, unaligned", "o", BLUE, line="-"),
    "aligned": Style("BiLD, aligned", "^", ORANGE, 6.5, line="--"),
    "unaligned optuna": Style("BiLD, unaligned, pairs found by search", "d", BLUE, line="-"),
    "aligned optuna": Style("BiLD, aligned, pairs found by search", "<", ORANGE, line="--"),
    "unaligned grid": Style("BiLD, unaligned, best of the grid", "x", BLUE, 5, line=":"),
    "aligned grid": Style("BiLD, aligned, best of the grid", "+", ORANGE, line=":"),
    "paper unaligned": Style("paper, unaligned", "h", BLUE, 7.5, line=":"),
    "paper aligned": Style("paper, aligned", "v", ORANGE, 7.5, line=":"),
    "reproduction unaligned": Style("reproduction, unaligned", "o", BLUE, 5, False, "-"),
    "reproduction aligned": Style("reproduction, aligned", "^", ORANGE, 5.5, False, "--"),
    "own unaligned": Style("reproduction, its own small model, unaligned", "P", BLUE, 7),
    "own aligned": Style("reproduction, its own small model, aligned", "X", ORANGE, 7),
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
    """One plot of quality against speedup; `series` by the keys of `STYLES`."""

    title: str
    metric: str
    series: dict[str, list[Point]]


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


@dataclass(frozen=True)
class Picture:
    """A figure, the name of its file without ending, and its title."""

    name: str
    title: str
    figure: Figure


# ------------------------------------------------------------------------------ pictures of folders


def draw_folders(folders: Sequence[Path], sweeps_of: Sequence[str] | None = None) -> list[Picture]:
    """All pictures of some folders of records.

    Args:
        folders: with `run*.json`, `search*.json`, `small-models.json` or published runs,
            `<task>.json`.
        sweeps_of: published tasks whose thresholds are drawn, the main runs on the panels' card
            alone; None for all tasks, and all runs.

    Raises:
        BildError: a folder without any record, or a file that is none.
    """
    panels: list[Panel] = []
    published: list[PublishedRuns] = []
    pictures: list[Picture] = []
    for folder in folders:
        runs = [RunRecord.load(p) for p in sorted(folder.glob("run*.json"))]
        searches = [SearchRecord.load(p) for p in sorted(folder.glob("search*.json"))]
        compared = [SmallModelsRecord.load(p) for p in folder.glob(SMALL_MODELS)]
        paths = [p for p in (folder / f"{task}.json" for task in TASKS) if p.exists()]
        if not (runs or searches or compared or paths):
            raise BildError(
                f"{str(folder)!r} holds neither run*.json nor search*.json; write some with "
                "--record of scripts/run_eval.py"
            )
        panels += _panels(folder.name, runs, searches)
        published += [PublishedRuns.load(path) for path in paths]
        swept = [search_sweep(search) for search in searches]
        swept = [sweep for sweep in swept if len(sweep.scores) >= SMALLEST_MAP]
        swept += [sweep for record in compared for sweep in small_models_sweeps(record)]
        if swept:
            title = f"Thresholds: {folder.name}"
            pictures.append(Picture(f"thresholds-{folder.name}", title, draw_sweeps(swept, title)))
    if panels:
        title = "Quality against speedup, with 95 % intervals"
        pictures.append(Picture("tradeoff", title, draw_tradeoff(panels, title)))
    if published:
        title = "Quality against speedup: the paper and its first reproduction (not measured here)"
        plots = [published_panel(p) for p in published]
        pictures.append(Picture("published", title, draw_tradeoff(plots, title)))
    for runs_of in published:
        if sweeps_of is None or runs_of.task in sweeps_of:
            swept = published_sweeps(runs_of, main_only=sweeps_of is not None)
            if swept:
                name = TASKS[runs_of.task].description.split(",")[0]
                title = f"Thresholds: {name}, first reproduction (frames: the paper's presets)"
                figure = draw_sweeps(swept, title)
                pictures.append(Picture(f"thresholds-{runs_of.task}", title, figure))
    return pictures


# ------------------------------------------------------------------------------ from our records


def _panels(name: str, runs: Sequence[RunRecord], searches: Sequence[SearchRecord]) -> list[Panel]:
    """A panel for each set of examples that the records of a folder are of."""
    panels = []
    records: list[RunRecord | SearchRecord] = [*runs, *searches]
    for sha256 in dict.fromkeys(r.data.sha256 for r in records):
        same = [r for r in records if r.data.sha256 == sha256]
        title = f"{name}, {same[0].data.samples} examples"
        if any(isinstance(r, SearchRecord) and r.costs is not None for r in same):
            title += "\n(speed of pairs found: priced)"
        panels.append(_panel(title, same))
    return panels


def _panel(title: str, records: Sequence[RunRecord | SearchRecord]) -> Panel:
    """The decoders of records of the same examples; published ones too, where they compare."""
    series: dict[str, list[Point]] = {name: [] for name in STYLES}
    for record in records:
        if isinstance(record, SearchRecord):
            _add_search(series, record)
        else:
            _add_run(series, record)
    metric, config = records[0].metric, records[0].config
    if config.data_file is None and config.max_samples is None:
        for row in TASKS[config.task].published:
            name = f"{row.source} {row.mode}"
            if name in series and row.metric == metric and not row.note:
                series[name].append(Point(row.score, row.speedup))
    return Panel(title, metric, {name: points for name, points in series.items() if points})


def _add_run(series: dict[str, list[Point]], run: RunRecord) -> None:
    if not series["large"]:
        series["large"].append(_measured(run.large, run.metric))
    small, pair, bild = run.arm(SMALL), run.arm(BILD), run.config.bild
    if not series["small"] and small is not None:
        series["small"].append(_measured(small, run.metric))
    if pair is not None and bild is not None:
        label = f"{bild.fallback_threshold:g}, {bild.rollback_threshold:g}"
        series["lossless" if bild.is_lossless else run.config.mode].append(
            _measured(pair, run.metric, label)
        )


def _add_search(series: dict[str, list[Point]], search: SearchRecord) -> None:
    if not series["large"]:
        large = search.large
        series["large"].append(Point(large.value, 1.0, (large.low, large.high)))
    for index in search.front:
        found = search.points[index]
        label = f"{found.fallback:g}, {found.rollback:g}" if index == search.chosen else ""
        series[f"{search.config.mode} {search.search.method}"].append(
            Point(found.score, found.speedup, speedups=(found.low, found.high), label=label)
        )


def search_sweep(search: SearchRecord) -> Sweep:
    """The pairs that a search decoded to the end; the chosen one is framed."""
    total = search.data.samples
    whole = {(p.fallback, p.rollback): p for p in search.points if p.samples == total}
    chosen = [] if search.chosen is None else [search.points[search.chosen]]
    asked = search.search
    allowed = f"{asked.max_loss:g}" + (" %" if asked.percent else "")
    return Sweep(
        f"{search.config.mode}\n({total} examples; frame: at most {allowed} lost)",
        search.metric,
        f"speedup ({asked.speed})",
        {pair: p.score for pair, p in whole.items()},
        {pair: p.speedup for pair, p in whole.items()},
        frozenset((p.fallback, p.rollback) for p in chosen),
    )


def small_models_sweeps(record: SmallModelsRecord) -> list[Sweep]:
    """The grid of each small model on test examples; its operating points are framed."""
    samples, metric = record.data.samples, record.metrics[0]
    sweeps = []
    for label, own in record.sweeps.items():
        cells = {(p.fallback, p.rollback): p for p in own["test"]}
        sweeps.append(
            Sweep(
                f"{label} (large alone: {record.large['test'][metric]:.1f})\n"
                f"({samples} test examples; frames: chosen)",
                metric,
                "speedup (priced)",
                {pair: p.scores[metric] for pair, p in cells.items()},
                {pair: p.speedup for pair, p in cells.items()},
                frozenset((at.fallback, at.rollback) for at in record.chosen[label].values()),
            )
        )
    return sweeps


def _measured(arm: ArmFigures, metric: str, label: str = "") -> Point:
    quality, speed = arm.quality[metric], arm.speed.speedup
    scores = quality.low, quality.high
    if speed is None:
        return Point(quality.value, 1.0, scores)
    return Point(quality.value, speed.value, scores, (speed.low, speed.high), label)


# ------------------------------------------------------------------------------ published runs


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


# ------------------------------------------------------------------------------ drawing


def draw_tradeoff(panels: Sequence[Panel], title: str, columns: int = 3) -> Figure:
    """Quality against speedup, a plot a panel, one legend for all."""
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(3.4 * columns + 0.4, 2.75 * rows + 0.9), layout="constrained")
        figure.suptitle(title, fontsize=10.5)
        places = list(figure.subplots(rows, columns, squeeze=False).flat)
        for place, content in zip(places, panels, strict=False):
            _draw_panel(place, content)
        handles = [
            _legend_entry(style)
            for name, style in STYLES.items()
            if any(name in panel.series for panel in panels)
        ]
        free = places[len(panels) :]
        for place in free:
            place.set_axis_off()
        if free:
            free[0].legend(handles=handles, loc="center", frameon=False)
        else:
            figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_sweeps(sweeps: Sequence[Sweep], title: str) -> Figure:
    """Heat maps of score and speed over fallback and rollback threshold, a row a sweep."""
    with mpl.rc_context(SETTINGS):
        heights = [0.3 * len({r for _, r in s.scores}) + 1.05 for s in sweeps]
        widths = max(2.8, *(0.5 * len({f for f, _ in s.scores}) + 0.8 for s in sweeps))
        figure = Figure(figsize=(2 * widths, sum(heights) + 0.6), layout="constrained")
        figure.suptitle(title, fontsize=10.5)
        places = figure.subplots(
            len(sweeps), 2, squeeze=False, gridspec_kw={"height_ratios": heights}
        )
        for (left, right), sweep in zip(places, sweeps, strict=True):
            name = METRIC_NAMES.get(sweep.metric, sweep.metric)
            _draw_map(left, f"{name}, {sweep.title}", sweep.scores, sweep.framed, "{:.1f}")
            _draw_map(right, f"{sweep.speed}\n", sweep.speeds, sweep.framed, "{:.2f}")
    return figure


def save(figure: Figure, path: Path, title: str) -> None:
    """Write a figure; the ending says whether as SVG or as PNG."""
    svg = path.suffix == ".svg"
    with mpl.rc_context(SETTINGS):
        figure.savefig(
            path,
            dpi=200,
            metadata={"Title": title, "Date": None, "Creator": None} if svg else {"Title": title},
        )


def _draw_panel(place: Axes, content: Panel) -> None:
    place.set_title(content.title)
    large = content.series["large"][0].score
    place.axhline(large, color="#bbbbbb", linewidth=0.6, linestyle=":", zorder=0)
    place.axvline(1, color="#bbbbbb", linewidth=0.6, linestyle=":", zorder=0)
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
            _write_label(place, name, point)
        front = _front(points)
        if style.line and front:
            place.plot(*zip(*front, strict=True), style.line, color=style.colour, linewidth=1)
    low, high = place.get_ylim()
    labelled = {name for name, points in content.series.items() if any(p.label for p in points)}
    above = (0.16 if labelled - BELOW else 0.05) * (high - low)
    below = (0.16 if labelled & BELOW else 0) * (high - low)
    place.set_ylim(low - below, high + above)
    place.set_xscale("log")
    low, high = place.get_xlim()
    place.set_xlim(low / 1.02, high * 1.05)
    place.xaxis.set_major_locator(FixedLocator(WIDE_TICKS if high / low > 2.5 else TICKS))
    place.xaxis.set_minor_locator(NullLocator())
    place.xaxis.set_major_formatter("{x:g}x")
    place.set_xlabel("speedup over the large model alone")
    place.set_ylabel(METRIC_NAMES.get(content.metric, content.metric))


def _write_label(place: Axes, name: str, point: Point) -> None:
    """Write a point's label beyond its interval, or beside it where no front runs."""
    side = -1 if name in BELOW else 1
    vertical = "bottom" if side > 0 else "top"
    if point.scores is not None:
        place.annotate(
            point.label, (point.speedup, point.scores[side > 0]), xytext=(0, 5 * side),
            textcoords="offset points", fontsize=7, rotation=90, ha="center", va=vertical,
        )  # fmt: skip
    else:
        place.annotate(
            point.label, (point.speedup, point.score), xytext=(4 * side, 4 * side),
            textcoords="offset points", fontsize=7, va=vertical,
            ha="left" if side > 0 else "right",
        )  # fmt: skip


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
    place.patch.set(facecolor="white", hatch="////", edgecolor="#dddddd")  # where no run was made
    place.pcolormesh(
        values, cmap="Greys", vmin=low - 0.15 * spread, vmax=high + 0.75 * spread,
        edgecolors="white", linewidth=0.5,
    )  # fmt: skip
    for (fallback, rollback), value in cells.items():
        x, y = fallbacks.index(fallback), rollbacks.index(rollback)
        place.text(x + 0.5, y + 0.5, form.format(value), fontsize=7, ha="center", va="center")
        if (fallback, rollback) in framed:
            place.add_patch(Rectangle((x, y), 1, 1, fill=False, linewidth=2, clip_on=False))
    place.set_xticks([i + 0.5 for i in range(len(fallbacks))], [f"{f:g}" for f in fallbacks])
    place.set_yticks([i + 0.5 for i in range(len(rollbacks))], [f"{r:g}" for r in rollbacks])
    place.tick_params(length=0)
    place.set_title(title)
    place.set_xlabel("fallback threshold")
    place.set_ylabel("rollback threshold")


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
        "markerfacecolor": style.colour if style.filled else "white",
        "markeredgewidth": 0.9,
    }


def _legend_entry(style: Style) -> Line2D:
    return Line2D([], [], linestyle=style.line or "none", label=style.name, **_marker(style))

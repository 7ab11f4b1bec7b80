"""Records of this repository as panels and sweeps, for pictures."""

from __future__ import annotations

from collections.abc import Sequence

from bild.evaluation.arms import BILD, SMALL
from bild.evaluation.record import ArmFigures, RunRecord
from bild.show.heatmaps import PRICED, Sweep
from bild.show.tradeoff import STYLES, Panel, Point
from bild.tasks.registry import get
from bild.tuning.record import SearchRecord, SmallModelsRecord


def panels_of(
    name: str, runs: Sequence[RunRecord], searches: Sequence[SearchRecord]
) -> list[Panel]:
    """A panel for each set of examples that the records of a folder are of."""
    panels = []
    records: list[RunRecord | SearchRecord] = [*runs, *searches]
    for sha256 in dict.fromkeys(r.data.sha256 for r in records):
        same = [r for r in records if r.data.sha256 == sha256]
        panels.append(_panel(f"{name}, {same[0].data.samples} examples", same))
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
        for row in get(config.task).published:
            name = f"{row.source} {row.mode}"
            if name in series and row.metric == metric and not row.note:
                series[name].append(Point(row.score, row.speedup))
    priced = any(isinstance(r, SearchRecord) and r.costs is not None for r in records)
    note = "speed of searched pairs: forwards counted,\ntimes the seconds of one" if priced else ""
    shown = {name: points for name, points in series.items() if points}
    return Panel(title, metric, shown, note)


def _add_run(series: dict[str, list[Point]], run: RunRecord) -> None:
    if not series["large"]:
        series["large"].append(_measured(run.large, run.metric))
    small, pair, bild = run.arm(SMALL), run.arm(BILD), run.config.bild
    if not series["small"] and small is not None:
        series["small"].append(_measured(small, run.metric))
    if pair is not None and bild is not None:
        label = f"{bild.fallback_threshold:g}, {bild.rollback_threshold:g}"
        if bild.acceptance is not None or bild.drafting is not None:
            label = bild.described
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
        PRICED if asked.speed == "forwards" else "speedup (measured)",
        {pair: p.score for pair, p in whole.items()},
        {pair: p.speedup for pair, p in whole.items()},
        frozenset((p.fallback, p.rollback) for p in chosen),
    )


def small_models_sweeps(record: SmallModelsRecord) -> list[Sweep]:
    """The grid of each small model; its operating points are framed."""
    split = "test" if record.grid.on_test else "validation"
    data = record.data if record.grid.on_test else record.validation
    metric = record.metrics[0]
    sweeps = []
    for label, own in record.sweeps.items():
        cells = {(p.fallback, p.rollback): p for p in own[split]}
        sweeps.append(
            Sweep(
                f"{label} (large alone: {record.large[split][metric]:.1f})\n"
                f"({data.samples} {split} examples; frames: chosen)",
                metric,
                PRICED,
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

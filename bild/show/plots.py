"""All pictures of some folders of records: quality against speedup, thresholds, agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from bild.errors import BildError
from bild.evaluation.record import PublishedRuns, RunRecord
from bild.show.heatmaps import draw_sweeps
from bild.show.own import panels_of, search_sweep, small_models_sweeps
from bild.show.published import SMALLEST_MAP, published_panel, published_sweeps
from bild.show.reliability import draw_reliability
from bild.show.rules_picture import draw_rules
from bild.show.tradeoff import Panel, draw_tradeoff
from bild.tasks.registry import TASKS
from bild.training.record import AgreementRecord
from bild.tuning.record import RulesRecord, SearchRecord, SmallModelsRecord

SMALL_MODELS, AGREEMENT, RULES = "small-models.json", "agreement.json", "rules.json"


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
        folders: with `run*.json`, `search*.json`, `small-models.json`, `agreement.json` or
            published runs, `<task>.json`.
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
        agreed = [AgreementRecord.load(p) for p in folder.glob(AGREEMENT)]
        ruled = [_rules(folder, RulesRecord.load(p)) for p in folder.glob(RULES)]
        paths = [p for p in (folder / f"{task}.json" for task in TASKS) if p.exists()]
        if not (runs or searches or compared or agreed or ruled or paths):
            raise BildError(
                f"{str(folder)!r} holds neither run*.json nor search*.json; write some with "
                "--record of scripts/run_eval.py"
            )
        pictures += ruled
        panels += panels_of(folder.name, runs, searches)
        published += [PublishedRuns.load(path) for path in paths]
        swept = [search_sweep(search) for search in searches]
        swept = [sweep for sweep in swept if len(sweep.scores) >= SMALLEST_MAP]
        swept += [sweep for known in compared for sweep in small_models_sweeps(known)]
        if swept:
            title = f"Thresholds: {folder.name}"
            pictures.append(Picture(f"thresholds-{folder.name}", title, draw_sweeps(swept, title)))
        for record in agreed:
            figure = draw_reliability(record.results)
            pictures.append(
                Picture(f"agreement-{folder.name}", f"Agreement: {folder.name}", figure)
            )
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


def _rules(folder: Path, record: RulesRecord) -> Picture:
    title = f"Rules: {folder.name}, {record.data.samples} examples"
    return Picture(f"rules-{folder.name}", title, draw_rules(record, title))

"""The fastest thresholds that lose at most so much quality, with so much confidence.

Optuna proposes thresholds (`bild.tuning.proposals`); those that clearly lose too much or are too
slow are given up early (`bild.tuning.examine`); a grid is the plain alternative. The confidence
holds for the choice among all thresholds that there are to choose from (`bild.tuning.verdict`).
Whatever was decoded is on disk, and no search decodes it again.

Speed is told in one of two ways:

"forwards", the default, prices what the pair did, its forwards and the tokens they were fed, with
what a forward costs here, measured once at the start (`bild.tuning.prices`).

"measured" takes the clock, with the large model alone decoded again beside every example, since
only ratios taken side by side mean anything. That costs two to three times as much.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from bild.config import SearchConfig
from bild.errors import BildError
from bild.evaluation.arms import BILD, VANILLA, Arm
from bild.evaluation.environment import Environment, environment
from bild.evaluation.figures import quality
from bild.evaluation.folder import UNREPORTED, Identity, own_folder, read_identity
from bild.evaluation.loop import Loop, samples
from bild.evaluation.own import OwnArm
from bild.evaluation.record import Quality, RunRecord
from bild.evaluation.run import (
    Workload,
    describe_config,
    describe_data,
    evaluate_loaded,
    identity,
)
from bild.files import as_read, sole_user
from bild.processes import go_on_alone, launch
from bild.progress import progress_bar
from bild.tasks.data import LoadedData
from bild.tasks.registry import Task, Thresholds
from bild.together import do_together
from bild.tuning.examine import ArmsOf, Search, decoded_file, front
from bild.tuning.prices import Costs, clock, known_costs
from bild.tuning.proposals import Proposals, candidates
from bild.tuning.record import Check, SearchRecord, Spent


def sweep(search: Search) -> None:
    """Decode with all thresholds of the grid, to the end."""
    grid = candidates(search.config, "grid")
    with _bar(search, "grid", len(grid) * search.plan.total) as bar:
        for thresholds in grid:
            search.examine(thresholds, bar, to_the_end=True)


def propose(search: Search, first: tuple[Thresholds, ...] = (), seed: int = 0) -> None:
    """Decode with what Optuna proposes, until the budget is spent or there is nothing new.

    Args:
        search: what decodes.
        first: thresholds to begin with, where they are in the space.
        seed: of the proposals.

    Raises:
        BildError: Optuna or what it needs is not installed.
    """
    proposals = Proposals(search.config, first, seed)
    grid = len(candidates(search.config, "grid"))
    budget = math.floor(search.config.budget * grid * search.plan.total)
    with _bar(search, "search", budget) as bar:
        while search.spent + search.plan.total <= budget:
            again = search.reopened()
            if again is not None:
                search.examine(again, bar)
                continue
            found = proposals.next(search.tried, search.centre)
            if found is None:
                break
            if found not in search.tried:
                search.examine(found, bar)
            proposals.tell(search.speedup(found), search.headroom(found))


def _bar(search: Search, name: str, total: int) -> tqdm:
    return progress_bar(name, total, shown=search.progress)


# ------------------------------------------------------------------------------ with real models


def search_thresholds(
    work: Workload,
    config: SearchConfig,
    output_dir: Path,
    *,
    check: LoadedData | None = None,
    progress: bool = True,
) -> tuple[SearchRecord, Path]:
    """Search for thresholds, and time the chosen ones on other examples.

    Everything is kept in `output_dir`/<task>/search-..., one folder for what decodes equally in one
    place: the same command goes on after a stop, and a search with another goal or the grid decodes
    only what is new.

    Args:
        work: models and examples; its thresholds mean nothing, its variant does.
        config: what to search for.
        output_dir: where the folder is made.
        check: examples to time the chosen thresholds on, beside the large model alone.
        progress: show progress bars.

    Returns:
        The record and the path it was saved to.

    Raises:
        BildError: as `propose`; a folder that cannot be written or is in use.
    """
    work, own = plain(work)
    folder = own_folder(output_dir / work.config.task, f"search-{config.speed}", own)
    with sole_user(folder, "search"):
        shutil.rmtree(folder / "shared", ignore_errors=True)  # of processes that were killed
        begun = begin(work, config, folder, progress)
        if config.method == "grid":
            sweep(begun.search)
        else:
            propose(begun.search, presets(work.task), work.config.seed)
        return conclude(begun, folder, check, progress)


def share_grid(work: Workload, config: SearchConfig, output_dir: Path) -> bool:
    """Decode all thresholds of the grid with the other processes, before `search_thresholds`.

    What each thresholds give is decoded by one process, into the file where a lone search would
    put it; the same thresholds are chosen.

    Args:
        work, config, output_dir: as of `search_thresholds`.

    Returns:
        Whether this is the first process, which goes on alone.

    Raises:
        BildError: another method than the grid; as `bild.together.do_together`.
    """
    if config.method != "grid":
        raise BildError(
            "several processes share what Optuna proposes through a database: name one with "
            "--storage, as sqlite:///search.db; or take --method grid, which needs none"
        )
    work, own = plain(work)
    folder = own_folder(output_dir / work.config.task, f"search-{config.speed}", own)
    work, is_timed = _shuffled(work), config.speed == "measured"
    arms, loop = _decoder(work, timed=is_timed), replace(_loop(work, is_timed), runs=1)
    points = [None, *candidates(config, "grid")]
    (folder / "decoded").mkdir(exist_ok=True)

    def decode(number: int) -> None:
        path = decoded_file(folder / "decoded", points[number])
        for _ in samples(arms(points[number]), loop, path):
            pass

    said = {**asdict(own), "points": [None if p is None else asdict(p) for p in points]}
    with sole_user(folder, "search") if launch().is_first else nullcontext():
        if do_together(folder / "shared", said, len(points), decode) is None:
            return False
        shutil.rmtree(folder / "shared", ignore_errors=True)
    go_on_alone()
    return True


def plain(work: Workload) -> tuple[Workload, Identity]:
    """The work without thresholds, and what it must share with another search's."""
    assert work.config.bild is not None
    plain = work.config.bild.without_thresholds()
    work = replace(work, config=replace(work.config, bild=plain))
    return work, identity(work, work.arms(), environment(work.large.device))


def _shuffled(work: Workload) -> Workload:
    """The examples in an order that means nothing: the first ones stand for all of them."""
    order = np.random.default_rng(work.config.seed).permutation(len(work.data.examples))
    return replace(
        work, data=replace(work.data, examples=tuple(work.data.examples[i] for i in order))
    )


def _loop(work: Workload, is_timed: bool) -> Loop:
    return work.loop() if is_timed else replace(work.loop(), warmup=0)


@dataclass(frozen=True)
class Begun:
    """A search whose prices are known and whose large model has decoded.

    Attributes:
        search: what decodes.
        work: models and examples, in the order in which they are decoded.
        costs: what forwards cost; None where the clock is taken.
        env: where it runs.
    """

    search: Search
    work: Workload
    costs: Costs | None
    env: Environment


def begin(work: Workload, config: SearchConfig, folder: Path, progress: bool) -> Begun:
    """Begin a search in its folder, or go on with it; arguments as of `search_thresholds`."""
    env = environment(work.large.device)
    work = _shuffled(work)
    costs = None if config.speed == "measured" else _costs(work, config, folder / "prices.json")
    search = Search(
        _decoder(work, timed=costs is None),
        _loop(work, costs is None),
        folder / "decoded",
        work.task.metric,
        config,
        clock if costs is None else costs,
        progress=progress,
    )
    return Begun(search, work, costs, env)


def conclude(
    begun: Begun, folder: Path, check: LoadedData | None, progress: bool, trials: int | None = None
) -> tuple[SearchRecord, Path]:
    """Make and save the record of all that was tried.

    Args:
        begun: the search.
        folder, check, progress: as of `begin` and `search_thresholds`.
        trials: of a study that several workers have shared.
    """
    search, work, costs = begun.search, begun.work, begun.costs
    config = search.config
    points, best = search.points(), search.best
    checked = None
    if best is not None and check is not None:
        checked = _check(work.with_thresholds(best), check, folder / "check", progress)
    total = search.plan.total
    record = SearchRecord(
        models=work.models,
        data=describe_data(work.data, search.large),
        env=begun.env,
        config=describe_config(work.config, work.task),
        search=config,
        costs=None if costs is None else asdict(costs),
        metric=work.task.metric,
        large=_large_alone(search, work.task.metric),
        candidates=search.plan.candidates,
        margin=search.margin,
        points=tuple(points),
        front=tuple(front(points, total)),
        chosen=None if best is None else list(search.tried).index(best),
        spent=Spent(
            by_pair=search.spent,
            large_alone=total + (search.spent if costs is None else 0),
            grid_by_pair=len(candidates(config, "grid")) * total,
        ),
        check=checked,
        trials=trials,
    )
    path = folder / f"{config.method}.json"
    record.save(path)
    return record, path


def _large_alone(search: Search, metric: str) -> Quality:
    texts = [s.of(VANILLA).text or "" for s in search.large]
    return quality(metric, texts, [s.reference or "" for s in search.large])


def _decoder(work: Workload, *, timed: bool) -> ArmsOf:
    """How a `Search` decodes: by the pair alone, or timed beside the large model."""
    alone = OwnArm(VANILLA, work.runner)

    def arms(thresholds: Thresholds | None) -> Sequence[Arm]:
        if thresholds is None:
            return [alone]
        pair = OwnArm(BILD, work.runner, work.with_thresholds(thresholds).config.bild)
        return [alone, pair] if timed else [pair]

    return arms


def _costs(work: Workload, config: SearchConfig, path: Path) -> Costs:
    """Measured when the folder was new, in the middle of the space then searched."""
    middle = Thresholds(sum(config.fallbacks) / 2, sum(config.rollbacks) / 2)
    return known_costs(path, {"small": work}, middle)["small"]


def presets(task: Task) -> tuple[Thresholds, ...]:
    """Thresholds known for this task, each once, in order."""
    return tuple(dict.fromkeys(t for some in task.thresholds.values() for t in some))


def _check(work: Workload, data: LoadedData, folder: Path, progress: bool) -> Check:
    """The figures of an evaluation on other examples, which is run unless it was run before."""
    config = replace(work.config, max_samples=None, data_file=data.origin, small_alone=False)
    work = replace(work, config=config, data=data)
    own = identity(work, work.arms(), environment(work.large.device))
    record = None
    for path in folder.glob("*/*/identity"):
        done = path.with_name("run.json")
        if path.with_name(UNREPORTED).exists():
            continue  # `evaluate_loaded` finds it again
        if done.exists() and read_identity(path) == as_read(asdict(own)):
            record = RunRecord.load(done)
    if record is None:
        record, _ = evaluate_loaded(work, folder, progress=progress)
    return Check(record.data, record.timing, record.arms)

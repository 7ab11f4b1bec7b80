"""Several small models beside one large model: which of them makes the better pair?

Each small model is decoded with all thresholds of a grid, on validation examples and on test
examples. Its two operating points, those the paper reports, are chosen on the validation examples.
On the test examples the large model alone, each small model alone and all operating points are then
timed side by side, example by example.

The grid's speeds are priced with what forwards cost (`bild.tuning.prices`): the clock drifts by
more than the small models differ. All of them share the large model's prices, and small models of
one shape each other's.

What is decoded is on disk at once (`bild.tuning.decodings`). The same command goes on after a stop;
another small model or other thresholds decode only what is new. The processes of `accelerate
launch` share all of it; who decoded which timed examples, and in how many seconds, is told apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median_low

from tqdm.auto import tqdm

from bild.config import EvalConfig, GridConfig
from bild.errors import BildError
from bild.evaluation.arms import BILD, SMALL, ArmId
from bild.evaluation.environment import environment, peak_memory
from bild.evaluation.figures import (
    arm_figures,
    process_figures,
    references_of,
    speed_ratio,
    texts_of,
)
from bild.evaluation.folder import Identity, own_folder
from bild.evaluation.loop import Sample, read_samples, samples
from bild.evaluation.own import OwnArm
from bild.evaluation.record import Interval
from bild.evaluation.run import (
    Workload,
    describe_config,
    describe_data,
    describe_timing,
    identity,
    prepare,
)
from bild.evaluation.shared import decode_together, is_shared, read_shared
from bild.files import sole_user
from bild.generation.stats import DecodeStats
from bild.processes import launch
from bild.progress import progress_bar
from bild.tasks import metrics
from bild.tasks.data import LoadedData
from bild.tasks.registry import Thresholds
from bild.tasks.sources import Sources
from bild.tuning.decodings import SPLITS, Decodings, Points
from bild.tuning.prices import Costs, known_costs
from bild.tuning.record import Chosen, Difference, GridPoint, SmallModelsRecord

GOALS = {"no loss": 0.0, "one point": 1.0}  # points of the task's metric that may be lost


def choose(points: Sequence[GridPoint], allowed: float) -> tuple[GridPoint, bool]:
    """The operating point for an allowed loss, and whether it keeps to it.

    The fastest of the points that lose at most so much; of equally fast ones that which loses
    least. Where all lose more, that which loses least; of equally good ones the fastest.

    Args:
        points: at least one.
        allowed: points of the metric.
    """
    kept = [p for p in points if p.loss <= allowed]
    if kept:
        return max(kept, key=lambda p: (p.speedup, -p.loss)), True
    return min(points, key=lambda p: (p.loss, -p.speedup)), False


# ------------------------------------------------------------------------------ with real models


def prepare_small_models(
    config: EvalConfig, sources: Sources, models: Mapping[str, str]
) -> dict[str, Workload]:
    """A workload for each small model; all share one large model, loaded once.

    Args:
        config: of the first small model, with any thresholds.
        sources: the same.
        models: small models by label.

    Raises:
        BildError: as `prepare`; or the small models know different numbers of token ids, so that
            the large model alone would not be the same beside each of them.
    """
    first, *others = models
    works = {first: prepare(config, sources)}
    for label in others:
        works[label] = works[first].with_small(models[label], sources)
    sizes = {label: work.runner.vocab_size for label, work in works.items()}
    for label in others:
        if sizes[label] != sizes[first]:
            raise BildError(
                f"the small models cannot be compared: with {first!r} a pair writes "
                f"{sizes[first]} token ids, with {label!r} {sizes[label]}"
            )
    return works


def compare_small_models(
    works: Mapping[str, Workload],
    test: LoadedData,
    grid: GridConfig,
    output_dir: Path,
    *,
    progress: bool = True,
) -> tuple[SmallModelsRecord, Path] | None:
    """Decode the grid with each small model, choose operating points, and time them.

    Args:
        works: of `prepare_small_models`, on the validation examples; the last small model is
            the one that the others are compared with.
        test: the test examples.
        grid: the thresholds.
        output_dir: everything is kept in `output_dir`/<task>/small-models-..., one folder for a
            large model and its settings.
        progress: show progress bars.

    Returns:
        The record and the path it was saved to; None in another process than the first.

    Raises:
        BildError: validation and test examples are the same; a folder that cannot be written or
            is in use; of several processes, as `bild.tuning.decodings.Decodings.help`.
    """
    first = next(iter(works.values()))
    if first.data.sha256 == test.sha256:
        raise BildError(
            f"validation and test examples are the same, those of {test.origin}: thresholds must "
            "be chosen on other examples than they are reported on"
        )
    config = replace(_plain(first.config), max_samples=None, data_file=None)
    everything = identity(
        replace(first, config=config), first.arms(), environment(first.large.device)
    )
    # Small models and examples have folders of their own in it.
    shared = {**everything.work, "models": asdict(first.models.large), "data": None}
    own = Identity(work=shared, place=everything.place)
    folder = own_folder(output_dir / first.config.task, "small-models", own)
    decodings = Decodings(works, test, grid, folder)
    if not launch().is_first:
        decodings.help(asdict(own), decodings.timed_in / "record.json")
        return None
    with sole_user(folder, "comparison"):
        decodings.timed_in.mkdir(exist_ok=True)
        decodings.forget_points()
        if launch().count > 1:
            decodings.share_grid(asdict(own))
        decodings.forget_shared()
        return _Comparison(decodings, progress).run()


class _Comparison:
    """One comparison in its folder, which this process alone writes records to."""

    def __init__(self, decodings: Decodings, progress: bool) -> None:
        self.decodings, self.progress = decodings, progress
        self.labels, self.grid = decodings.labels, decodings.grid
        self.works, self.data = decodings.works, decodings.data
        self.first = self.works["test"][self.labels[0]]
        self.task = self.first.task
        self.metrics = (self.task.metric, *self.task.more_metrics)
        self.env = environment(self.first.large.device)

    def run(self) -> tuple[SmallModelsRecord, Path]:
        costs = self._costs()
        large, alone = {}, {}
        sweeps: dict[str, dict[str, tuple[GridPoint, ...]]] = {label: {} for label in self.labels}
        for split in SPLITS:
            alone[split] = self._large_alone(split)
            (texts,) = texts_of(alone[split]).values()
            large[split] = self._scores(texts, alone[split])
            for label in self.labels if split in self.decodings.swept else ():
                points = self._sweep(split, label, alone[split], large[split], costs)
                sweeps[label][split] = tuple(points)
        chosen = {
            label: {goal: choose(sweeps[label]["validation"], GOALS[goal]) for goal in GOALS}
            for label in self.labels
        }
        operating = {
            label: list(dict.fromkeys(p.thresholds for p, _ in own.values()))
            for label, own in chosen.items()
        }
        arms = self.decodings.timed_arms(operating)
        timed, resumed = self._time(arms, operating)
        first, processes = self.first, process_figures(timed)
        peak = peak_memory(first.large.device)
        record = SmallModelsRecord(
            models=replace(first.models, small=self.decodings.small),
            data=describe_data(self.data["test"], alone["test"]),
            env=replace(self.env, resumed_after=resumed, peak_memory=peak),
            config=describe_config(_plain(first.config), first.task),
            validation=describe_data(self.data["validation"], alone["validation"]),
            grid=self.grid,
            metrics=self.metrics,
            costs={label: asdict(own) for label, own in costs.items()},
            large=large,
            sweeps=sweeps,
            chosen={
                label: {goal: Chosen(p.fallback, p.rollback, met) for goal, (p, met) in own.items()}
                for label, own in chosen.items()
            },
            timing=describe_timing(first.config, len(processes)),
            arms=arm_figures(timed, {arm.id: arm.built for arm in arms}, self.metrics),
            differences=tuple(self._differences(timed, arms, chosen)),
            processes=processes,
        )
        path = self.decodings.timed_in / "record.json"
        record.save(path)
        return record, path

    def _costs(self) -> dict[str, Costs]:
        """Prices with each small model, measured once, in the middle of the grid."""
        middle = Thresholds(median_low(self.grid.fallbacks), median_low(self.grid.rollbacks))
        path = self.decodings.timed_in / "prices.json"
        return known_costs(path, self.works["validation"], middle)

    def _large_alone(self, split: str) -> list[Sample]:
        with self._bar(f"{split}, large alone", len(self.data[split].examples)) as bar:
            return list(_counted(self.decodings.large_alone(split), bar))

    def _sweep(
        self,
        split: str,
        label: str,
        alone: Sequence[Sample],
        large: Mapping[str, float],
        costs: Mapping[str, Costs],
    ) -> list[GridPoint]:
        """Every point of the grid, with one small model."""
        points = []
        with self._bar(f"{split}, {label}", self.grid.size * len(alone)) as bar:
            for fallback in self.grid.fallbacks:
                for thresholds, found in self.decodings.row(split, label, fallback):
                    shown = f"{thresholds.fallback:g} {thresholds.rollback:g}"
                    bar.set_postfix_str(shown, refresh=False)
                    counted = _counted(found, bar)
                    points.append(self._point(thresholds, counted, alone, large, costs[label]))
        return points

    def _point(
        self,
        thresholds: Thresholds,
        found: Iterable[Sample],
        alone: Sequence[Sample],
        large: Mapping[str, float],
        price: Costs,
    ) -> GridPoint:
        texts: list[str] = []
        theirs = ours = 0.0
        stats = DecodeStats()
        for one, sample in zip(alone, found, strict=True):
            seconds = price(one, sample)
            theirs, ours = theirs + seconds[0], ours + seconds[1]
            texts.append(sample.of(BILD).text or "")
            stats += sample.of(BILD).did
        scores = self._scores(texts, alone)
        return GridPoint(
            fallback=thresholds.fallback,
            rollback=thresholds.rollback,
            scores=scores,
            loss=large[self.task.metric] - scores[self.task.metric],
            speedup=theirs / ours,
            fallback_rate=stats.fallback_rate,
            rollback_rate=stats.rollback_rate,
            large_forward_rate=stats.large_forward_rate,
        )

    def _time(self, arms: Sequence[OwnArm], points: Points) -> tuple[list[Sample], int]:
        """All arms on the test examples, side by side; and how many of these were there before."""
        loop, path = self.decodings.timed_loop(), self.decodings.timed_path(arms)
        path.parent.mkdir(exist_ok=True)
        ids = [arm.id for arm in arms]
        with self._bar(f"timed, {len(arms)} arms", loop.total) as bar:
            if not is_shared(path):
                known = read_samples(path, ids, loop)
                return list(_counted(samples(arms, loop, path, known=known), bar)), len(known)
            before = len(read_shared(path, ids, loop))
            ready = partial(self.decodings.tell_points, points)
            seen = lambda _, done: bar.update(max(0, done - bar.n))  # noqa: E731
            found = decode_together(arms, loop, path, ready, seen)
        self.decodings.forget_points()
        return found, before

    def _differences(
        self,
        timed: list[Sample],
        arms: Sequence[OwnArm],
        chosen: Mapping[str, Mapping[str, tuple[GridPoint, bool]]],
    ) -> Iterator[Difference]:
        """The last small model against each other one, alone and at each goal."""
        texts, references = texts_of(timed), references_of(timed)

        def arm(label: str, goal: str) -> ArmId:
            wanted: tuple[str, str, Thresholds | None] = SMALL, label, None
            if goal in chosen[label]:
                wanted = BILD, label, chosen[label][goal][0].thresholds
            return next(a.id for a in arms if (a.kind, a.label, a.thresholds) == wanted)

        *others, model = self.labels
        for goal, other in product(("small alone", *GOALS), others):
            ours, theirs = arm(model, goal), arm(other, goal)
            quality = {
                metric: Interval(
                    *metrics.paired_bootstrap(metric, texts[ours], texts[theirs], references)
                )
                for metric in self.metrics
            }
            yield Difference(goal, model, other, quality, speed_ratio(timed, theirs, ours))

    def _scores(self, texts: Sequence[str], samples: Sequence[Sample]) -> dict[str, float]:
        references = references_of(samples)
        return {metric: metrics.score(metric, texts, references).value for metric in self.metrics}

    def _bar(self, name: str, total: int) -> tqdm:
        return progress_bar(name, total, shown=self.progress)


def _plain(config: EvalConfig) -> EvalConfig:
    """Settings without what differs between the decoders of a comparison."""
    assert config.bild is not None
    return replace(config, bild=config.bild.without_thresholds(), small=None)


def _counted(found: Iterable[Sample], bar: tqdm) -> Iterator[Sample]:
    for sample in found:
        yield sample
        bar.update()

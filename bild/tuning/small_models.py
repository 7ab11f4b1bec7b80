"""Several small models beside one large model: which of them makes the better pair?

Each small model is decoded with every pair of thresholds of a grid, on validation examples and on
test examples. Its two operating points, those the paper reports, are chosen on the validation
examples. On the test examples the large model alone, each small model alone and all operating
points are then timed side by side, example by example.

The grid's speeds are priced with what forwards cost, as in `bild.tuning.search`: the clock drifts
by more than the small models differ. All of them share the large model's prices, and small models
of one shape each other's.

What is decoded is on disk at once. The same command goes on after a stop; another small model or
other thresholds decode only what is new.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median_low
from typing import Any

import torch
from tqdm.auto import tqdm

from bild.config import EvalConfig, GridConfig
from bild.errors import BildError
from bild.evaluation.record import SCHEMA, SmallModelsRecord, environment, peak_memory
from bild.evaluation.run import (
    EXCLUDED_FROM_TIME,
    Arm,
    SampleRecord,
    Workload,
    bounded,
    continue_samples,
    decoding_figures,
    describe_config,
    describe_data,
    make_arms,
    prepare,
    quality_figures,
    run_examples,
    speed_figures,
    speed_ratio,
    texts_of,
)
from bild.files import check_writable, digest, sole_user, write_json
from bild.generation.generate import BiLDOutput
from bild.generation.stats import DecodeStats
from bild.tasks import metrics
from bild.tasks.data import LoadedData
from bild.tasks.registry import Thresholds
from bild.tasks.sources import Sources
from bild.tuning.search import Costs, measure_costs

GOALS = {"no loss": 0.0, "one point": 1.0}  # points of the task's metric that may be lost
SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Point:
    """A small model with a pair of thresholds, on a set of examples.

    Attributes:
        fallback, rollback: the pair.
        scores: by metric, 0 to 100.
        loss: the large model's score on the same examples less this one, in the task's metric.
        speedup: over the large model alone, priced.
        fallback_rate, rollback_rate, large_forward_rate: per 100 generated tokens.
    """

    fallback: float
    rollback: float
    scores: dict[str, float]
    loss: float
    speedup: float
    fallback_rate: float
    rollback_rate: float
    large_forward_rate: float

    @property
    def pair(self) -> Thresholds:
        return Thresholds(self.fallback, self.rollback)


def choose(points: Sequence[Point], allowed: float) -> tuple[Point, bool]:
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


def arm_name(label: str, pair: Thresholds) -> str:
    """What a small model's pair of thresholds is called among the timed arms."""
    return f"bild {label} {pair.fallback:g} {pair.rollback:g}"


class RollbackRow:
    """Decodes with one fallback threshold and rising rollback thresholds, where these matter.

    The rules say up to which threshold an output stays the same (`AcceptanceRule.same_below`): on
    Tatoeba that spares three outputs in four, over rollbacks of 1, 2, 3 and 5.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], tuple[float, BiLDOutput]] = {}  # source -> limit, output

    def arm(self, work: Workload) -> Arm:
        """The pair's arm with the workload's thresholds, whose rollback is at least the last."""
        assert work.config.bild is not None
        rollback, rule = work.config.bild.rollback_threshold, work.config.bild.acceptance_rule
        decode = make_arms(work, trace=True)["bild"]

        def decode_where_needed(inputs: dict[str, torch.Tensor]) -> BiLDOutput:
            source = tuple(inputs["input_ids"][0].tolist())
            if source not in self._known or rollback >= self._known[source][0]:
                output: BiLDOutput = decode(inputs)
                assert output.trace is not None
                distances = [t.distance for t in output.trace.tokens if t.distance is not None]
                self._known[source] = rule.same_below(distances), replace(output, trace=None)
            return self._known[source][1]

        return decode_where_needed


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
) -> tuple[SmallModelsRecord, Path]:
    """Decode the grid with each small model, choose operating points, and time them.

    Args:
        works: of `prepare_small_models`, on the validation examples; the last small model is
            the one that the others are compared with.
        test: the test examples.
        grid: the pairs of thresholds.
        output_dir: everything is kept in `output_dir`/<task>/small-models-..., one folder for a
            large model and its settings.
        progress: show progress bars.

    Returns:
        The record and the path it was saved to.

    Raises:
        BildError: validation and test examples are the same; a folder that cannot be written or
            is in use.
    """
    first = next(iter(works.values()))
    if first.data.sha256 == test.sha256:
        raise BildError(
            f"validation and test examples are the same, those of {test.origin}: thresholds must "
            "be chosen on other examples than they are reported on"
        )
    config = replace(_plain(first.config), max_samples=None, data_file=None)
    identity = digest([asdict(config), first.models["large"], torch.__version__, SCHEMA])
    folder = output_dir / first.config.task / f"small-models-{identity[:12]}"
    check_writable(folder)
    with sole_user(folder, "comparison"):
        return _Comparison(works, test, grid, folder, progress).run()


class _Comparison:
    """One comparison in its folder, which this process alone writes to."""

    def __init__(
        self,
        works: Mapping[str, Workload],
        test: LoadedData,
        grid: GridConfig,
        folder: Path,
        progress: bool,
    ) -> None:
        self.labels = list(works)
        first = works[self.labels[0]]
        self.task, self.folder, self.progress = first.benchmark, folder, progress
        self.metrics = (self.task.metric, *self.task.more_metrics)
        self.grid = grid
        validation = replace(first.data, split="validation")
        self.data = {"validation": validation, "test": replace(test, split="test")}
        self.works = {
            split: {label: replace(work, data=data) for label, work in works.items()}
            for split, data in self.data.items()
        }
        self.small = {label: work.models["small"] for label, work in works.items()}
        self.env = environment(first.large.device, first.large.dtype)
        self.env["engine"] = str(first.runner.engine)

    def run(self) -> tuple[SmallModelsRecord, Path]:
        # What a clock says holds for one machine and these models.
        machine = [self.env[name] for name in ("device", "threads", "engine")]
        fingerprints = {label: model["fingerprint"] for label, model in self.small.items()}
        data = [data.sha256 for data in self.data.values()]
        timed_in = self.folder / f"timed-{digest([machine, fingerprints, data])[:12]}"
        timed_in.mkdir(exist_ok=True)

        costs = self._costs(timed_in)
        large, alone = {}, {}
        sweeps: dict[str, dict[str, list[Point]]] = {label: {} for label in self.labels}
        for split in SPLITS:
            alone[split] = self._large_alone(split)
            large[split] = self._scores(texts_of(alone[split])["vanilla"], alone[split])
            for label in self.labels:
                sweeps[label][split] = self._sweep(split, label, alone[split], large[split], costs)
        chosen = {
            label: {goal: choose(sweeps[label]["validation"], GOALS[goal]) for goal in GOALS}
            for label in self.labels
        }
        samples, resumed = self._time(timed_in, chosen)
        first = self.works["test"][self.labels[0]]
        record = SmallModelsRecord(
            config=describe_config(_plain(first.config)),
            models={**first.models, "small": self.small},
            data={split: describe_data(self.data[split], alone[split]) for split in SPLITS},
            env={
                **self.env,
                "resumed_after": resumed,
                "peak_memory": peak_memory(first.large.device),
            },
            grid={name: list(values) for name, values in asdict(self.grid).items()},
            costs={label: asdict(own) for label, own in costs.items()},
            large=large,
            sweeps={
                label: {split: [asdict(p) for p in points] for split, points in own.items()}
                for label, own in sweeps.items()
            },
            chosen={
                label: {
                    goal: {"fallback": p.fallback, "rollback": p.rollback, "met": met}
                    for goal, (p, met) in own.items()
                }
                for label, own in chosen.items()
            },
            quality={metric: quality_figures(metric, samples) for metric in self.metrics},
            speed={
                "excluded": EXCLUDED_FROM_TIME,
                "warmup": first.config.warmup,
                **speed_figures(samples),
            },
            decoding=decoding_figures(samples),
            differences=self._differences(samples, chosen),
        )
        path = timed_in / "record.json"
        record.save(path)
        return record, path

    def _costs(self, folder: Path) -> dict[str, Costs]:
        """Prices with each small model, measured once, in the middle of the grid."""
        path = folder / "prices.json"
        if not path.exists():
            middle = Thresholds(median_low(self.grid.fallbacks), median_low(self.grid.rollbacks))
            costs = measure_costs(list(self.works["validation"].values()), middle)
            write_json(path, dict(zip(self.labels, map(asdict, costs), strict=True)))
        known = json.loads(path.read_text(encoding="utf-8"))
        return {label: Costs(**known[label]) for label in self.labels}

    def _large_alone(self, split: str) -> list[SampleRecord]:
        work = _untimed(self.works[split][self.labels[0]])
        arms = {"vanilla": make_arms(work)["vanilla"]}
        path = self._folder(split) / "large.jsonl"
        samples = continue_samples(path, partial(run_examples, work, arms))
        with self._bar(f"{split}, large alone", len(work.data.examples)) as bar:
            return list(_counted(samples, bar))

    def _sweep(
        self,
        split: str,
        label: str,
        alone: Sequence[SampleRecord],
        large: Mapping[str, float],
        costs: Mapping[str, Costs],
    ) -> list[Point]:
        """Every pair of the grid, with one small model."""
        work = _untimed(self.works[split][label])
        folder = self._folder(split) / self.small[label]["fingerprint"][:12]
        folder.mkdir(exist_ok=True)
        points = []
        with self._bar(f"{split}, {label}", self.grid.size * len(alone)) as bar:
            for fallback in self.grid.fallbacks:
                row = RollbackRow()
                for rollback in self.grid.rollbacks:
                    pair = Thresholds(fallback, rollback)
                    bar.set_postfix_str(f"{fallback:g} {rollback:g}", refresh=False)
                    arms = {"bild": row.arm(work.with_thresholds(pair))}
                    path = folder / f"{fallback:g}-{rollback:g}.jsonl"
                    samples = continue_samples(path, partial(run_examples, work, arms))
                    points.append(
                        self._point(pair, _counted(samples, bar), alone, large, costs[label])
                    )
        return points

    def _point(
        self,
        pair: Thresholds,
        samples: Iterable[SampleRecord],
        alone: Sequence[SampleRecord],
        large: Mapping[str, float],
        price: Costs,
    ) -> Point:
        texts: list[str] = []
        theirs = ours = 0.0
        stats = DecodeStats()
        for one, sample in zip(alone, samples, strict=True):
            seconds = price(one, sample)
            theirs, ours = theirs + seconds[0], ours + seconds[1]
            texts.append(sample.arms["bild"].text)
            stats += sample.arms["bild"].stats
        scores = self._scores(texts, alone)
        return Point(
            fallback=pair.fallback,
            rollback=pair.rollback,
            scores=scores,
            loss=large[self.task.metric] - scores[self.task.metric],
            speedup=theirs / ours,
            fallback_rate=stats.fallback_rate,
            rollback_rate=stats.rollback_rate,
            large_forward_rate=stats.large_forward_rate,
        )

    def _time(
        self, folder: Path, chosen: Mapping[str, Mapping[str, tuple[Point, bool]]]
    ) -> tuple[list[SampleRecord], int]:
        """All arms on the test examples, side by side; and how many of these were there before."""
        arms: dict[str, Arm] = {}
        for label, work in self.works["test"].items():
            own = make_arms(work)
            arms.setdefault("vanilla", own["vanilla"])
            arms[f"small {label}"] = own["small"]
            for point, _ in chosen[label].values():
                pairs = make_arms(work.with_thresholds(point.pair))
                arms[arm_name(label, point.pair)] = pairs["bild"]
        work = self.works["test"][self.labels[0]]
        path = folder / f"{digest(list(arms))[:12]}.jsonl"
        known: list[int] = []

        def decode(start: int) -> Iterator[SampleRecord]:
            known.append(start)
            return run_examples(work, arms, start)

        with self._bar(f"timed, {len(arms)} arms", len(work.data.examples)) as bar:
            samples = list(_counted(continue_samples(path, decode), bar))
        return samples, known[0]

    def _differences(
        self,
        samples: list[SampleRecord],
        chosen: Mapping[str, Mapping[str, tuple[Point, bool]]],
    ) -> list[dict[str, Any]]:
        """The last small model against each other one, alone and at each goal."""
        texts, references = texts_of(samples), [s.reference for s in samples]

        def arm(label: str, goal: str) -> str:
            at_goal = chosen[label].get(goal)
            return f"small {label}" if at_goal is None else arm_name(label, at_goal[0].pair)

        *others, model = self.labels
        differences = []
        for goal, other in product(("small alone", *GOALS), others):
            ours, theirs = arm(model, goal), arm(other, goal)
            quality = {
                metric: bounded(
                    metrics.paired_bootstrap(metric, texts[ours], texts[theirs], references)
                )
                for metric in self.metrics
            }
            differences.append(
                {
                    "goal": goal,
                    "model": model,
                    "against": other,
                    "quality": quality,
                    "speed": bounded(speed_ratio(samples, theirs, ours)),
                }
            )
        return differences

    def _scores(self, texts: Sequence[str], samples: Sequence[SampleRecord]) -> dict[str, float]:
        references = [s.reference for s in samples]
        return {metric: metrics.score(metric, texts, references).value for metric in self.metrics}

    def _folder(self, split: str) -> Path:
        folder = self.folder / self.data[split].sha256[:12]
        folder.mkdir(exist_ok=True)
        return folder

    def _bar(self, name: str, total: int) -> tqdm:
        return tqdm(total=total, desc=name, unit="example", disable=not self.progress)


def _plain(config: EvalConfig) -> EvalConfig:
    """Settings without what differs between the decoders of a comparison."""
    assert config.bild is not None
    return replace(config, bild=config.bild.without_thresholds(), small=None)


def _untimed(work: Workload) -> Workload:
    return replace(work, config=replace(work.config, warmup=0))


def _counted(samples: Iterable[SampleRecord], bar: tqdm) -> Iterator[SampleRecord]:
    for sample in samples:
        yield sample
        bar.update()

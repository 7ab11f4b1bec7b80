"""The fastest pair of thresholds that loses at most so much quality, with so much confidence.

A pair of thresholds is decoded example by example. After each chunk a paired bootstrap against the
large model alone asks two things: with what chance the pair, once all examples are decoded, will be
shown to lose no more than is allowed, and with what chance it will then be faster than the best
pair so far. Where one of the two is small, the pair is given up. Optuna proposes the pairs; a grid
is the plain alternative. Whatever was decoded is on disk, and no search decodes it again.

Speed is told in one of two ways:

"forwards", the default, prices what a pair did, its forwards and the tokens they were fed, with
what a forward costs on this machine, measured once at the start. The clock of a shared machine
drifts by more than pairs of thresholds differ (in the earlier reproduction's sweep of WMT 2014 the
runs at rollback 2 took a fifth less time than their neighbours at 1 and 3), and whoever takes the
fastest of many noisy measurements takes the luckiest. Priced forwards are the same every time:
pairs decoded hours apart can be compared, a stopped search goes on with nothing lost, and the large
model alone is decoded once. A price is a model, though: time the chosen pair, on other examples.

"measured" takes the clock, with the large model alone decoded again beside every example of every
pair, since only ratios taken side by side mean anything. That costs two to three times as much.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from bild.config import SEARCH_STEPS, SearchConfig
from bild.errors import BildError
from bild.evaluation import timing
from bild.evaluation.arms import BILD, SMALL, VANILLA, Arm, ArmId
from bild.evaluation.environment import environment
from bild.evaluation.figures import quality
from bild.evaluation.loop import Loop, Sample, decode, samples
from bild.evaluation.own import OwnArm
from bild.evaluation.record import RunRecord
from bild.evaluation.run import (
    Workload,
    describe_config,
    describe_data,
    evaluate_loaded,
    identity,
)
from bild.files import as_read, check_writable, digest, sole_user, write_json
from bild.generation.stats import DecodeStats
from bild.tasks import metrics
from bild.tasks.data import LoadedData
from bild.tasks.registry import Task, Thresholds
from bild.tuning.record import Check, SearchRecord, Spent, TriedPair

FIRST_LOOK = 32  # examples; each later look has half as many again
RESAMPLES = 1000  # of a bootstrap
CALIBRATION = 24  # examples that the costs of a forward are measured on
STARTUP = 4  # pairs before the sampler learns from them

Floats = npt.NDArray[np.float64]
Verdict = Literal["kept", "too lossy", "too slow"]

# The arms that decode with a pair of thresholds, or the large model alone (None).
ArmsOf = Callable[[Thresholds | None], Sequence[Arm]]

# (an example by the large model alone, the same with a pair) -> seconds of each.
Price = Callable[[Sample, Sample], tuple[float, float]]


# ------------------------------------------------------------------------------ its time


@dataclass(frozen=True)
class Costs:
    """Seconds on one machine.

    Attributes:
        large_forward, small_forward: a decoder forward that is fed one token.
        large_token: each further token of a large forward. (The small model is rarely fed two.)
        large_encoder, small_encoder: a source.
    """

    large_forward: float
    large_token: float
    small_forward: float
    large_encoder: float
    small_encoder: float

    def __call__(self, alone: Sample, pair: Sample) -> tuple[float, float]:
        """The `Price` of an example: its seconds by the large model alone, and with a pair."""
        large, both = alone.of(VANILLA).did, pair.of(BILD).did
        return (
            self.large_encoder + self.large_forward * large.large_forwards,
            self.large_encoder
            + self.large_forward * both.large_forwards
            + self.large_token * (both.large_tokens_fed - both.large_forwards)
            + self.small_encoder
            + self.small_forward * both.small_forwards,
        )


def measure_costs(works: Sequence[Workload], pair: Thresholds) -> list[Costs]:
    """What forwards cost here: medians over a few examples, which all models decode in turn.

    What a token more in a large forward costs depends on how many there are, the second being the
    dearest; so it is measured with a pair of thresholds as they are in use.

    Args:
        works: of one large model on the same examples, each with another small model.
        pair: the thresholds.

    Returns:
        Costs with each of the small models. The large model has one price in all of them, and so
        have small models of one shape: between those the clock would only find its own noise.
    """
    shapes = [_shape(work.small) for work in works]
    alone = OwnArm(VANILLA, works[0].runner)
    smalls_alone = [OwnArm(SMALL, w.runner, label=str(i)) for i, w in enumerate(works)]
    pairs = [
        OwnArm(BILD, w.runner, w.with_thresholds(pair).config.bild, label=str(i))
        for i, w in enumerate(works)
    ]
    timed = decode([alone, *smalls_alone, *pairs], replace(works[0].loop(), runs=1))
    runs = [s.arms for s in islice(timed, CALIBRATION)]

    def of(arms: Sequence[ArmId]) -> tuple[float, float]:
        """Seconds of a forward and of a source."""
        each = [r[arm] for r in runs for arm in arms]
        return (
            median((a.seconds - (a.encoder_seconds or 0)) / a.did.large_forwards for a in each),
            median(a.encoder_seconds or 0 for a in each),
        )

    large, large_encoder = of([alone.id])
    smalls = [
        of([arm.id for arm, s in zip(smalls_alone, shapes, strict=True) if s == shape])
        for shape in shapes
    ]
    tokens = []
    for arm, (small, _) in zip(pairs, smalls, strict=True):
        for both in (r[arm.id] for r in runs):
            more = both.did.large_tokens_fed - both.did.large_forwards
            plain = large * both.did.large_forwards + small * both.did.small_forwards
            if more:
                tokens.append((both.seconds - (both.encoder_seconds or 0) - plain) / more)
    return [
        Costs(
            large_forward=large,
            large_token=max(0.0, median(tokens)) if tokens else 0.0,
            small_forward=small,
            large_encoder=large_encoder,
            small_encoder=small_encoder,
        )
        for small, small_encoder in smalls
    ]


def _shape(model: PreTrainedModel | None) -> list[torch.Size]:
    assert model is not None
    return [p.shape for p in model.parameters()]


def clock(_: Sample, pair: Sample) -> tuple[float, float]:
    """The measured `Price` of an example, which the large model decoded again beside the pair."""
    return pair.of(VANILLA).seconds, pair.of(BILD).seconds


# ------------------------------------------------------------------------------ its worth


class Search:
    """Decodes examples with pairs of thresholds, and says what the pairs are worth.

    What is decoded goes to a folder, a file a pair, and is read from there the next time.

    Args:
        arms: what decodes with a pair.
        loop: the examples, in an order that means nothing: the first ones stand for all of them.
        folder: where decoded examples are kept; one folder for one `arms`.
        metric: of `bild.tasks.metrics`.
        config: what is searched for.
        price: what an example costs.
        progress: show progress bars.
    """

    def __init__(
        self,
        arms: ArmsOf,
        loop: Loop,
        folder: Path,
        metric: str,
        config: SearchConfig,
        price: Price,
        *,
        progress: bool = True,
    ) -> None:
        self.total = total = len(loop.items)
        self.config, self.progress = config, progress
        self.findings: dict[Thresholds, TriedPair] = {}
        self._arms, self._loop = arms, replace(loop, runs=1)
        self._folder, self._metric, self._price = folder, metric, price
        self._times: dict[Thresholds, list[tuple[float, float]]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        examples = islice(self._samples(None), total)
        self.large = list(
            tqdm(examples, "large alone", total, unit="example", disable=not progress)
        )
        self.looks = [FIRST_LOOK]
        while self.looks[-1] < total:
            self.looks.append(self.looks[-1] * 3 // 2)
        self.looks[-1] = total

    @property
    def spent(self) -> int:
        """Examples decoded with pairs, were nothing known before."""
        return sum(f.samples for f in self.findings.values())

    @property
    def best(self) -> TriedPair | None:
        """The fastest pair that was kept."""
        kept = (f for f in self.findings.values() if f.verdict == "kept")
        return max(kept, key=lambda f: f.speedup, default=None)

    def front(self) -> list[TriedPair]:
        """Of the pairs decoded to the end those that none beats in both loss and speedup."""
        front: list[TriedPair] = []
        whole = (f for f in self.findings.values() if f.samples == self.total)
        for finding in sorted(whole, key=lambda f: (-f.speedup, f.loss)):
            if not front or finding.loss < front[-1].loss:
                front.append(finding)
        return front[::-1]

    def examine(self, pair: Thresholds, bar: tqdm, *, to_the_end: bool = False) -> TriedPair:
        """Decode a pair until it is clear what it is worth, or to the end, and remember that."""
        looks = [self.total] if to_the_end else self.looks
        texts: list[str] = []
        times: list[tuple[float, float]] = []
        stats = DecodeStats()
        for large, sample in zip(self.large, self._samples(pair), strict=False):
            texts.append(sample.of(BILD).text or "")
            times.append(self._price(large, sample))
            stats += sample.of(BILD).did
            bar.update()
            if len(texts) in looks:
                finding = self._look(pair, texts, times, stats)
                if finding.verdict is not None:
                    break
        self.findings[pair] = finding
        if self.best is not None:
            best = self.best
            bar.set_postfix_str(f"{best.fallback:g} {best.rollback:g}: {best.speedup:.2f}x")
        return finding

    def _look(
        self,
        pair: Thresholds,
        texts: list[str],
        times: list[tuple[float, float]],
        stats: DecodeStats,
    ) -> TriedPair:
        """What the first examples say.

        A bootstrap tells how far their means may be from those of all examples that could have
        been drawn. From the means of the `total` examples there are, they are off by sqrt(1 - n /
        total) of that; and the bound on the loss, which all examples will be judged by, will be
        off its mean by sqrt(n / total) of what it is off now. The risk of giving up a pair by
        mistake, 1 - confidence, is shared out among the looks.
        """
        n, confidence = len(texts), self.config.confidence
        ahead, shrunk = math.sqrt(1 - n / self.total), math.sqrt(n / self.total)
        alone = [s.of(VANILLA).text or "" for s in self.large[:n]]
        references = [s.reference or "" for s in self.large[:n]]
        scores, resampled = metrics.resampled_scores(
            self._metric, [texts, alone], references, RESAMPLES
        )
        room, rooms = self._headroom(scores), self._headroom(resampled)
        bound = room + (np.quantile(rooms, 1 - confidence) - room) * shrunk
        ratio, ratios = _speedups(times)
        best, small = self.best, (1 - confidence) / len(self.looks)

        verdict: Verdict | None = None
        if np.mean(bound + (rooms - room) * ahead >= 0) <= small:
            verdict = "too lossy"
        elif n == self.total:
            verdict = "kept"
        elif best is not None:
            theirs, rivals = _speedups(self._known_times(best)[:n])
            lead = ratio - theirs
            if np.mean(lead + (ratios - rivals - lead) * ahead > 0) <= small:
                verdict = "too slow"
        low, high = np.quantile(ratios, (0.025, 0.975))
        return TriedPair(
            fallback=pair.fallback,
            rollback=pair.rollback,
            samples=n,
            score=float(scores[0]),
            loss=float(scores[1] - scores[0]),
            loss_bound=float(np.quantile(resampled[:, 1] - resampled[:, 0], confidence)),
            headroom=float(bound),
            speedup=ratio,
            low=float(low),
            high=float(high),
            fallback_rate=stats.fallback_rate,
            rollback_rate=stats.rollback_rate,
            large_forward_rate=stats.large_forward_rate,
            verdict=verdict,
        )

    def _headroom(self, scores: Floats) -> Floats:  # (..., 2), pair and large alone -> (...)
        """Points that may still be lost."""
        pair, large = scores[..., 0], scores[..., 1]
        allowed = self.config.max_loss * (large / 100 if self.config.percent else 1.0)
        return pair - large + allowed

    def _known_times(self, finding: TriedPair) -> list[tuple[float, float]]:
        """The times of a pair that was decoded to the end."""
        pair = Thresholds(finding.fallback, finding.rollback)
        if pair not in self._times:
            both = zip(self.large, self._samples(pair), strict=False)
            self._times[pair] = [self._price(large, sample) for large, sample in both]
        return self._times[pair]

    def _samples(self, pair: Thresholds | None) -> Iterator[Sample]:
        """The examples as they come: first those on disk, then newly decoded ones, written down."""
        name = "large" if pair is None else f"{pair.fallback:g}-{pair.rollback:g}"
        return samples(self._arms(pair), self._loop, self._folder / f"{name}.jsonl")


def _speedups(times: list[tuple[float, float]]) -> tuple[float, Floats]:
    """The speedup of examples with these times, and resampled ones; equal draws for equal n."""
    alone, pair = zip(*times, strict=True)
    return timing.resampled_speedups(alone, pair, RESAMPLES)


# ------------------------------------------------------------------------------ where it looks


def grid(config: SearchConfig) -> list[Thresholds]:
    """The pairs of the full grid."""
    rollbacks = config.axis("rollback", "grid")
    return [Thresholds(f, r) for f in config.axis("fallback", "grid") for r in rollbacks]


def sweep(search: Search) -> None:
    """Decode every pair of the grid to the end."""
    pairs = grid(search.config)
    with _bar(search, "grid", len(pairs) * search.total) as bar:
        for pair in pairs:
            search.examine(pair, bar, to_the_end=True)


def propose(
    search: Search, storage: Path, first: tuple[Thresholds, ...] = (), seed: int = 0
) -> None:
    """Decode the pairs that Optuna proposes, until the budget is spent or there is nothing new.

    Its Gaussian processes model speedup and headroom over the two thresholds. They learn from the
    pairs given up too, by the estimates of that time. What they propose is new at first; later,
    for each known pair that they propose, a neighbour of the best pair is tried, until it has been
    compared with all its neighbours. The sampler is seeded anew for each proposal, so that a search
    that was stopped goes on as it would have.

    Args:
        search: what decodes; it is told what the study already knows.
        storage: SQLite file of the study, made where it is missing.
        first: pairs to begin with, where they are in the space.
        seed: of the proposals.

    Raises:
        BildError: Optuna or what it needs is not installed.
    """
    try:
        import optuna
        import scipy  # noqa: F401  (of which Optuna's sampler makes use)
    except ModuleNotFoundError as error:
        raise BildError(
            f"the search needs {error.name}: pip install -r requirements.txt, or use --method grid"
        ) from None
    config = search.config
    budget = math.floor(config.budget * len(grid(config)) * search.total)
    space: dict[str, optuna.distributions.BaseDistribution] = {}
    for name in ("fallback", "rollback"):
        values, step = config.axis(name, "optuna"), SEARCH_STEPS["optuna"][name]
        space[name] = optuna.distributions.FloatDistribution(values[0], values[-1], step=step)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    limits = {k: v for k, v in asdict(config).items() if k not in ("budget", "method", "speed")}
    study = optuna.create_study(
        storage=f"sqlite:///{storage}",
        study_name=json.dumps({**limits, "seed": seed}),
        direction="maximize",
        load_if_exists=True,
    )
    state = optuna.trial.TrialState
    for trial in study.get_trials(states=(state.RUNNING,)):  # cut off by the end of a process
        study.tell(trial.number, state=state.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)
    for pair in first:
        if all(getattr(pair, name) in config.axis(name, "optuna") for name in space):
            study.enqueue_trial(asdict(pair), skip_if_exists=True)

    trials, nothing_new = 0, False
    for trial in study.get_trials(states=(state.COMPLETE,)):
        finding = TriedPair(**trial.user_attrs["finding"])
        pair = Thresholds(finding.fallback, finding.rollback)
        trials, nothing_new = trials + 1, pair in search.findings
        search.findings[pair] = finding
    with _bar(search, "search", budget) as bar:
        while search.spent + search.total <= budget:
            if nothing_new and not study.get_trials(states=(state.WAITING,)):
                near = _untried_neighbour(search)
                if near is None:
                    break
                study.enqueue_trial(asdict(near))
            study.sampler = optuna.samplers.GPSampler(seed=seed + trials, n_startup_trials=STARTUP)
            asked = study.ask(space)
            pair = Thresholds(*(round(asked.params[name], 10) for name in space))
            trials, nothing_new = trials + 1, pair in search.findings
            finding = search.findings[pair] if nothing_new else search.examine(pair, bar)
            asked.set_user_attr("finding", asdict(finding))
            asked.set_constraint("headroom", -finding.headroom)
            study.tell(asked, finding.speedup)


def _untried_neighbour(search: Search) -> Thresholds | None:
    """A pair one step from the best one, or from that nearest to being kept; the fastest first."""
    centre = search.best or max(search.findings.values(), key=lambda f: f.headroom)
    steps = []
    for name in ("fallback", "rollback"):
        values = search.config.axis(name, "optuna")
        at = values.index(getattr(centre, name))
        steps.append(values[max(0, at - 1) : at + 2])
    pairs = (Thresholds(f, r) for f in steps[0] for r in reversed(steps[1]))
    return next((pair for pair in pairs if pair not in search.findings), None)


def _bar(search: Search, name: str, total: int) -> tqdm:
    return tqdm(
        total=total, initial=search.spent, desc=name, unit="example", disable=not search.progress
    )


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

    Everything is kept in `output_dir`/<task>/search-..., one folder for what decodes equally: the
    same command goes on after a stop, and a search with another goal or the grid decodes only
    what is new.

    Args:
        work: models and examples; its thresholds mean nothing, its variant does.
        config: what to search for.
        output_dir: where the folder is made.
        check: examples to time the chosen pair on, beside the large model alone.
        progress: show progress bars.

    Returns:
        The record and the path it was saved to.

    Raises:
        BildError: as `propose`; a folder that cannot be written or is in use.
    """
    assert work.config.bild is not None
    plain = work.config.bild.without_thresholds()
    work = replace(work, config=replace(work.config, bild=plain))
    env = environment(work.large.device)
    own = as_read(asdict(identity(work, work.arms(), env)))
    folder = output_dir / work.config.task / f"search-{config.speed}-{digest(own)[:12]}"
    check_writable(folder)
    with sole_user(folder, "search"):
        return _search(work, config, folder, check, progress)


def _search(
    work: Workload, config: SearchConfig, folder: Path, check: LoadedData | None, progress: bool
) -> tuple[SearchRecord, Path]:
    env = environment(work.large.device)
    order = np.random.default_rng(work.config.seed).permutation(len(work.data.examples))
    shuffled = replace(work.data, examples=tuple(work.data.examples[i] for i in order))
    work = replace(work, data=shuffled)
    costs = None if config.speed == "measured" else _costs(work, config, folder / "costs.json")
    search = Search(
        _decoder(work, timed=costs is None),
        work.loop() if costs is None else replace(work.loop(), warmup=0),
        folder / "decoded",
        work.task.metric,
        config,
        clock if costs is None else costs,
        progress=progress,
    )
    if config.method == "grid":
        sweep(search)
    else:
        propose(search, folder / "study.db", _presets(work.task), work.config.seed)

    points, best = list(search.findings.values()), search.best
    checked = None
    if best is not None and check is not None:
        chosen = work.with_thresholds(Thresholds(best.fallback, best.rollback))
        checked = _check(chosen, check, folder / "check", progress)
    texts = [s.of(VANILLA).text or "" for s in search.large]
    record = SearchRecord(
        models=work.models,
        data=describe_data(work.data, search.large),
        env=env,
        config=describe_config(work.config, work.task),
        search=config,
        costs=None if costs is None else asdict(costs),
        metric=work.task.metric,
        large=quality(work.task.metric, texts, [s.reference or "" for s in search.large]),
        points=tuple(points),
        front=tuple(points.index(p) for p in search.front()),
        chosen=None if best is None else points.index(best),
        spent=Spent(
            with_pairs=search.spent,
            large_alone=search.total + (search.spent if costs is None else 0),
            grid_with_pairs=len(grid(config)) * search.total,
        ),
        check=checked,
    )
    path = folder / f"{config.method}.json"
    record.save(path)
    return record, path


def _decoder(work: Workload, *, timed: bool) -> ArmsOf:
    """How a `Search` decodes: pairs alone, or beside the large model where they are timed."""
    alone = OwnArm(VANILLA, work.runner)

    def arms(pair: Thresholds | None) -> Sequence[Arm]:
        if pair is None:
            return [alone]
        both = OwnArm(BILD, work.runner, work.with_thresholds(pair).config.bild)
        return [alone, both] if timed else [both]

    return arms


def _costs(work: Workload, config: SearchConfig, path: Path) -> Costs:
    """The costs measured when the folder was new, in the middle of the space then searched."""
    if not path.exists():
        middle = Thresholds(sum(config.fallbacks) / 2, sum(config.rollbacks) / 2)
        (costs,) = measure_costs([work], middle)
        write_json(path, asdict(costs))
    return Costs(**json.loads(path.read_text(encoding="utf-8")))


def _presets(task: Task) -> tuple[Thresholds, ...]:
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
        if done.exists() and json.loads(path.read_text(encoding="utf-8")) == as_read(asdict(own)):
            record = RunRecord.load(done)
    if record is None:
        record, _ = evaluate_loaded(work, folder, progress=progress)
    return Check(record.data, record.timing, record.arms)

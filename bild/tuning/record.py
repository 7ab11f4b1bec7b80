"""What a search for thresholds and a comparison of small models leave behind, as typed files."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from bild.config import BiLDConfig, EvalConfig, GridConfig, SearchConfig
from bild.evaluation.record import (
    ArmFigures,
    DataIdentity,
    Interval,
    ProcessFigures,
    Quality,
    Record,
    Timing,
    arm_of,
)
from bild.tasks.registry import Thresholds


@dataclass(frozen=True)
class TriedPoint:
    """Thresholds that a search tried: what the decoded examples say of them.

    Attributes:
        fallback, rollback: the thresholds.
        samples: examples decoded with them.
        score: of the metric.
        loss: the large model's score on the same examples less this one; negative for a gain.
        loss_bound: the loss is at most this. With the confidence asked for, that is true of all
            points of the search at once, and so of the chosen one.
        headroom: points between the allowed loss and the bound, as the latter is expected to be
            once all examples are decoded; negative where too much is lost.
        speedup, low, high: over the large model alone, with a 95 % interval of its own.
        fallback_rate, rollback_rate, large_forward_rate: per 100 generated tokens.
        verdict: "kept", or why the point was given up: "too lossy", "too slow".
    """

    fallback: float
    rollback: float
    samples: int
    score: float
    loss: float
    loss_bound: float
    headroom: float
    speedup: float
    low: float
    high: float
    fallback_rate: float
    rollback_rate: float
    large_forward_rate: float
    verdict: str | None


@dataclass(frozen=True)
class Spent:
    """Examples that a search decoded.

    Attributes:
        by_pair: by the pair of models, with all thresholds together.
        large_alone: by the large model alone.
        grid_by_pair: what the pair decodes for a full grid.
    """

    by_pair: int
    large_alone: int
    grid_by_pair: int


@dataclass(frozen=True)
class Check:
    """The chosen thresholds timed on other examples, as in `RunRecord`, beside the large model."""

    data: DataIdentity
    timing: Timing
    arms: tuple[ArmFigures, ...]


@dataclass(frozen=True)
class SearchRecord(Record):
    """One search for thresholds (`bild.tuning.search`). Speedups are over the large model alone.

    Attributes:
        config: the settings; their thresholds mean nothing.
        search: what was searched for, where, and how.
        costs: seconds that forwards were priced with; None where the clock was taken.
        metric: the task's.
        large: the large model's score.
        candidates: thresholds that there were to choose from, tried or not.
        margin: standard errors between an estimated loss and its bound, so that all bounds of so
            many candidates hold at once (`bild.tuning.verdict`).
        points: the thresholds that were tried, in that order.
        front: of the points decoded to the end, those that no other beats in both loss and
            speedup, as indices into `points`, the slowest first.
        chosen: index of the fastest point that was kept; None when there is none.
        spent: what finding it cost.
        check: the chosen point on other examples; None when not asked for.
        trials: of the study that several workers shared; None of a search by one process.
    """

    kind: ClassVar[str] = "search"

    config: EvalConfig
    search: SearchConfig
    costs: dict[str, float] | None
    metric: str
    large: Quality
    candidates: int
    margin: float
    points: tuple[TriedPoint, ...]
    front: tuple[int, ...]
    chosen: int | None
    spent: Spent
    check: Check | None
    _: KW_ONLY
    trials: int | None = None


@dataclass(frozen=True)
class GridPoint:
    """A small model with thresholds, on a set of examples.

    Attributes:
        fallback, rollback: the thresholds.
        scores: by metric.
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
    def thresholds(self) -> Thresholds:
        return Thresholds(self.fallback, self.rollback)


@dataclass(frozen=True)
class Chosen:
    """An operating point: thresholds, and whether they met their goal on validation examples."""

    fallback: float
    rollback: float
    met: bool


@dataclass(frozen=True)
class Difference:
    """A small model against another one, alone or at a goal, on the same examples.

    Attributes:
        goal: of `bild.tuning.small_models`, or "small alone".
        model, against: labels.
        quality: by metric.
        speed: how many times as fast.
    """

    goal: str
    model: str
    against: str
    quality: dict[str, Interval]
    speed: Interval


@dataclass(frozen=True)
class SmallModelsRecord(Record):
    """Several small models beside one large model (`bild.tuning.small_models`).

    Small models go by labels. `data` are the test examples.

    Attributes:
        config: the settings; their small model and thresholds mean nothing.
        validation: the examples that thresholds were chosen on.
        grid: the thresholds decoded with, each fallback with each rollback.
        metrics: the task's own first.
        costs: by label the seconds that forwards were priced with.
        large: by split, by metric: the large model's score.
        sweeps: by label, by split that it was decoded on, every point of the grid.
        chosen: by label, by goal ("no loss", "one point"); where none met it, the point that lost
            least.
        timing: how the arms were timed, on test examples.
        arms: the large model alone, each small model alone, each chosen point.
        differences: the last small model against each other one.
        processes: those that shared the timed examples; none of a comparison by one process.
    """

    kind: ClassVar[str] = "small-models"

    config: EvalConfig
    validation: DataIdentity
    grid: GridConfig
    metrics: tuple[str, ...]
    costs: dict[str, dict[str, float]]
    large: dict[str, dict[str, float]]
    sweeps: dict[str, dict[str, tuple[GridPoint, ...]]]
    chosen: dict[str, dict[str, Chosen]]
    timing: Timing
    arms: tuple[ArmFigures, ...]
    differences: tuple[Difference, ...]
    _: KW_ONLY
    processes: tuple[ProcessFigures, ...] = ()

    def arm(self, kind: str, **fields: object) -> ArmFigures:
        """The arm of this kind, and with these values in its id."""
        found = arm_of(self.arms, kind, **fields)
        assert found is not None
        return found


@dataclass(frozen=True)
class RulesRecord(Record):
    """Rules side by side on one pair (`bild.tuning.rules`).

    Attributes:
        config: what was asked for; its `bild` has the settings that all rules share.
        metric: the task's, of `bild.tasks.metrics`.
        timing: how seconds were taken.
        arms: the large model alone first; of the pair one a rule, labelled with it.
        rules: the whole settings by label.
    """

    kind: ClassVar[str] = "rules"

    config: EvalConfig
    metric: str
    timing: Timing
    arms: tuple[ArmFigures, ...]
    rules: dict[str, BiLDConfig]

"""What a search for thresholds and a comparison of small models leave behind, as typed files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bild.config import EvalConfig, GridConfig, SearchConfig
from bild.evaluation.record import (
    ArmFigures,
    DataIdentity,
    Interval,
    Quality,
    Record,
    Timing,
    arm_of,
)
from bild.tasks.registry import Thresholds


@dataclass(frozen=True)
class TriedPair:
    """A pair of thresholds that a search tried: what the decoded examples say of it.

    Attributes:
        fallback, rollback: the pair.
        samples: examples it was decoded on.
        score: of the metric.
        loss: the large model's score on the same examples less this one; negative for a gain.
        loss_bound: the loss is at most this, with the confidence asked for.
        headroom: points between the allowed loss and the bound, as the latter is expected to be
            once all examples are decoded; negative where too much is lost.
        speedup, low, high: over the large model alone, with a 95 % interval.
        fallback_rate, rollback_rate, large_forward_rate: per 100 generated tokens.
        verdict: "kept", or why the pair was given up; None while that is open.
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
        with_pairs: with pairs of thresholds.
        large_alone: by the large model alone.
        grid_with_pairs: what a full grid decodes with pairs.
    """

    with_pairs: int
    large_alone: int
    grid_with_pairs: int


@dataclass(frozen=True)
class Check:
    """A chosen pair timed on other examples, beside the large model alone; as in `RunRecord`."""

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
        points: the pairs that were tried, in that order.
        front: of the pairs decoded to the end, those that no other beats in both loss and
            speedup, as indices into `points`, the slowest first.
        chosen: index of the fastest pair that was kept; None when there is none.
        spent: what finding it cost.
        check: the chosen pair on other examples; None when not asked for.
    """

    kind: ClassVar[str] = "search"

    config: EvalConfig
    search: SearchConfig
    costs: dict[str, float] | None
    metric: str
    large: Quality
    points: tuple[TriedPair, ...]
    front: tuple[int, ...]
    chosen: int | None
    spent: Spent
    check: Check | None


@dataclass(frozen=True)
class GridPoint:
    """A small model with a pair of thresholds, on a set of examples.

    Attributes:
        fallback, rollback: the pair.
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
    def pair(self) -> Thresholds:
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
        grid: the thresholds of all pairs decoded.
        metrics: the task's own first.
        costs: by label the seconds that forwards were priced with.
        large: by split, by metric: the large model's score.
        sweeps: by label, by split, every pair of the grid.
        chosen: by label, by goal ("no loss", "one point"); where none met it, the pair that lost
            least.
        timing: how the arms were timed, on test examples.
        arms: the large model alone, each small model alone, each chosen pair.
        differences: the last small model against each other one.
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

    def arm(self, kind: str, **fields: object) -> ArmFigures:
        """The arm of this kind, and with these values in its id."""
        found = arm_of(self.arms, kind, **fields)
        assert found is not None
        return found

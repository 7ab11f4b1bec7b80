"""What a benchmark leaves behind: every arm's time, where it goes, and what it should be.

Times are seconds, rates are per 100 generated tokens, shares are 0 to 1, intervals hold 95 %.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from bild.benchmark.config import BenchmarkConfig
from bild.evaluation.arms import ArmId
from bild.evaluation.record import Interval, Quality, Rates, Record, Timing
from bild.generation.stats import DecodeStats


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as another arm.

    Attributes:
        to: that arm.
        seconds: the whole decoding.
        decoding: without the encoders; None where one of the two cannot tell.
    """

    to: ArmId
    seconds: Interval
    decoding: float | None


@dataclass(frozen=True)
class ModelUse:
    """What an arm does with one model.

    Attributes:
        forward_rate: decoder forwards per 100 generated tokens.
        seconds_per_forward: in decodings that were taken apart.
        bytes_per_forward: of weights and cached keys and values.
        bytes_per_second: at which it reads them.
        of_ceiling: share of what the memory gives.
    """

    forward_rate: float
    seconds_per_forward: float
    bytes_per_forward: float
    bytes_per_second: float
    of_ceiling: float


@dataclass(frozen=True)
class StepCost:
    """One forward: seconds, and the share of what the memory gives."""

    seconds: float
    of_ceiling: float


@dataclass(frozen=True)
class CostFigures:
    """What the cost model says of a pair on an engine.

    Attributes:
        large_steps: a large forward, by the tokens it is fed.
        small_step: a small forward.
        encoders: both encoders.
        expected_large_forward_rate: by fallback and rollback rates.
        predicted_seconds, measured_seconds: of an output.
        floor_seconds, floor_seconds_per_token: below which memory lets no engine go.
        speedups: over the first greedy arm: "predicted", "measured" and "floor".
    """

    large_steps: dict[int, StepCost]
    small_step: StepCost
    encoders: float
    expected_large_forward_rate: float
    predicted_seconds: float
    measured_seconds: float
    floor_seconds: float
    floor_seconds_per_token: float
    speedups: dict[str, float]


@dataclass(frozen=True)
class BenchmarkArm:
    """All that a benchmark says of one arm.

    Attributes:
        id: which arm.
        title: what people call it.
        built: what ran it and how that was built.
        seconds: of an output.
        encoder_share: of the time; None where it cannot tell.
        outside_share: of the time, what is spent in no model; None where it cannot tell.
        tokens_per_second: generated ones.
        ready_seconds: until it was made and warm.
        same_output: share of outputs that equal those of another arm: the first pair's for a pair,
            else transformers' greedy decoding.
        models: what it does with "large" and "small".
        ratio: over transformers' greedy decoding, the first of it that ran.
        ratio_same: over that of its own precision.
        ratio_alone: of a pair or the small model alone, over the large model alone on the same
            engine: of a pair, what the method adds.
        stats: what happened in one pass, of arms that tell.
        rates: of a pair.
        quality: its score, of a task's pair.
        as_planned: share of outputs that are what was planted, of a planted pair.
        costs: of a pair, what it should take.
    """

    id: ArmId
    title: str
    built: str
    seconds: Spread
    encoder_share: float | None
    outside_share: float | None
    tokens_per_second: float
    ready_seconds: float
    same_output: float | None
    models: dict[str, ModelUse]
    ratio: Ratio | None
    ratio_same: Ratio | None
    ratio_alone: Ratio | None
    stats: DecodeStats | None
    rates: Rates | None
    quality: Quality | None
    as_planned: float | None
    costs: CostFigures | None


@dataclass(frozen=True)
class Growth:
    """An arm's seconds a token by output length.

    Attributes:
        id: which arm.
        title: what people call it.
        built: what ran it.
        seconds: of all, by length.
        decoding: without the encoders; the same where the arm cannot tell.
        longest_over_shortest: of `decoding`, medians.
    """

    id: ArmId
    title: str
    built: str
    seconds: dict[int, Spread]
    decoding: dict[int, Spread]
    longest_over_shortest: float


@dataclass(frozen=True)
class Throughput:
    """An arm's speed by how many sources it decodes at a time.

    Attributes:
        id: which arm.
        title: what people call it.
        built: what ran it.
        sentences_per_second: of all sources, encoders included, by batch size; over the passes.
        tokens_per_second: generated ones, medians.
        same_tokens: whether it wrote what it wrote at the first batch size.
    """

    id: ArmId
    title: str
    built: str
    sentences_per_second: dict[int, Spread]
    tokens_per_second: dict[int, float]
    same_tokens: dict[int, bool]


@dataclass(frozen=True)
class Failed:
    """An arm that could not run, and why."""

    id: ArmId
    title: str
    why: str


@dataclass(frozen=True)
class BenchmarkRecord(Record):
    """One benchmark (`bild.benchmark.run`).

    Attributes:
        config: what was asked for, as it ran.
        timing: how seconds were taken.
        metric: of the arms' quality; empty where nothing was scored.
        source_tokens: of a source, on average.
        memory: bytes a second that the memory gave, measured with every case.
        arms: those that ran, unless output lengths or batch sizes were asked for.
        growth: those that ran, where output lengths were asked for.
        failed: those that did not.
        throughput: those that ran, where batch sizes were asked for.
    """

    kind: ClassVar[str] = "benchmark"

    config: BenchmarkConfig
    timing: Timing
    metric: str
    source_tokens: float
    memory: Spread
    arms: tuple[BenchmarkArm, ...]
    growth: tuple[Growth, ...]
    failed: tuple[Failed, ...]
    throughput: tuple[Throughput, ...] = field(default=(), kw_only=True)

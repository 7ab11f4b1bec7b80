"""What the samples of a benchmark say of each arm."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from bild.benchmark import costs
from bild.benchmark.costs import StepTimes
from bild.benchmark.kinds import kind_of
from bild.benchmark.lab import Lab
from bild.benchmark.profile import ModelTime, Profile, total
from bild.benchmark.record import (
    BenchmarkArm,
    BenchmarkRecord,
    CostFigures,
    Failed,
    Growth,
    ModelUse,
    Ratio,
    Spread,
    StepCost,
    Throughput,
)
from bild.checkpoints.identity import short_path
from bild.evaluation.arms import BILD, SMALL, VANILLA, ArmId
from bild.evaluation.codec import decode
from bild.evaluation.environment import Environment
from bild.evaluation.figures import (
    first_pass,
    interval_covers,
    quality,
    references_of,
    speed_ratio,
    stats_of,
    texts_of,
)
from bild.evaluation.loop import EXCLUDED_FROM_TIME, Sample
from bild.evaluation.record import PATHS, Quality, Rates, Timing

GREEDY = "greedy"  # the kind that others are compared with
SMALL_ALONE = ("small", "greedy-small")  # kinds whose outputs are not the large model's


def record_of(lab: Lab, samples: Sequence[Sample], env: Environment) -> BenchmarkRecord:
    """The record of a finished benchmark that was made in the environment `env`."""
    figures = Figures(lab, samples)
    config = lab.config
    named: dict[str, Any] = {name: short_path(getattr(config, name)) for name in PATHS}
    covers = interval_covers(config.repeat)
    return BenchmarkRecord(
        models=lab.models,
        data=lab.data,
        env=env,
        config=replace(config, **named),
        timing=Timing(EXCLUDED_FROM_TIME, config.warmup, config.repeat, covers),
        metric=lab.metric or "",
        source_tokens=lab.source_tokens,
        memory=spread([s.beside["bytes_per_second"] for s in samples]),
        arms=()
        if config.lengths or config.batch_sizes
        else tuple(figures.arm(arm) for arm in figures.ran),
        growth=tuple(figures.growth(arm) for arm in figures.ran) if config.lengths else (),
        failed=tuple(
            Failed(arm, kind_of(arm).title, why) for arm, why in samples[-1].failed.items()
        ),
        throughput=tuple(figures.throughput(arm) for arm in figures.ran)
        if config.batch_sizes
        else (),
    )


@dataclass(frozen=True)
class Figures:
    """Figures of arms over the samples of one benchmark."""

    lab: Lab
    samples: Sequence[Sample]

    @cached_property
    def ran(self) -> list[ArmId]:
        """The arms that ran to the end, in the order of the settings."""
        return [arm for arm in self.lab.config.arms if arm not in self.samples[-1].failed]

    @cached_property
    def ceiling(self) -> float:
        """Bytes a second that the memory gives."""
        return statistics.median(s.beside["bytes_per_second"] for s in self.samples)

    @cached_property
    def texts(self) -> dict[ArmId, list[str]]:
        return texts_of([replace(s, arms={a: s.arms[a] for a in self.ran}) for s in self.samples])

    def arm(self, arm: ArmId) -> BenchmarkArm:
        """All that there is to say of an arm."""
        own = [s.arms[arm] for s in self.samples]
        profile = self.profile(arm)
        stats = None if own[0].stats is None else stats_of(self.samples, arm)
        figures = BenchmarkArm(
            id=arm,
            title=kind_of(arm).title,
            built=self.built(arm),
            seconds=spread([a.seconds for a in own]),
            encoder_share=self.encoder_share(arm),
            # CTranslate2 does not let look into a step, so what is outside its model is not known.
            outside_share=None if profile is None or not self._sees(arm) else profile.outside_share,
            tokens_per_second=sum(len(a.tokens) for a in own) / sum(a.seconds for a in own),
            ready_seconds=self.ready_seconds(arm),
            same_output=self.same_output(arm),
            models={} if profile is None else self.model_use(arm, profile),
            ratio=self.ratio(arm, self.greedy()),
            ratio_same=self.ratio(arm, self.greedy(arm.precision)),
            ratio_alone=self.ratio(arm, self.alone(arm)),
            stats=stats,
            rates=Rates.of(stats) if stats is not None and arm.kind == BILD else None,
            quality=self.quality(arm),
            as_planned=self.as_planned(arm),
            costs=None,
        )
        return replace(figures, costs=self.costs(figures))

    # -------------------------------------------------------------------------- of one arm

    def built(self, arm: ArmId) -> str:
        """What ran an arm."""
        found: str = next(s.beside["built"][str(arm)] for s in self.samples if "built" in s.beside)
        return found

    def ready_seconds(self, arm: ArmId) -> float:
        """Seconds until an arm was made and warm, the first time."""
        first = self.samples[0]
        made: float = first.beside["made_seconds"][str(arm)]
        return made + first.warmup_seconds[arm]

    def profile(self, arm: ArmId) -> Profile | None:
        """The decodings that were taken apart, as one."""
        parts = [
            decode(Profile, s.beside["profiles"][str(arm)])
            for s in self.samples
            if str(arm) in s.beside.get("profiles", {})
        ]
        return total(parts) if parts else None

    def encoder_share(self, arm: ArmId) -> float | None:
        """Of an arm's time, the encoders': as it was told, or in the decodings taken apart."""
        own = [s.arms[arm] for s in self.samples]
        told = [a.encoder_seconds for a in own if a.encoder_seconds is not None]
        if len(told) == len(own):
            return sum(told) / sum(a.seconds for a in own)
        profile = self.profile(arm)
        return None if profile is None else profile.encoder_share

    def same_output(self, arm: ArmId) -> float | None:
        """Share of outputs that equal those of the arm of its kind that ran first."""
        alike = [a for a in self.ran if a.kind == (BILD if arm.kind == BILD else GREEDY)]
        if not alike:
            return None
        first = first_pass(self.samples)
        return share(s.arms[alike[0]].tokens == s.arms[arm].tokens for s in first)

    def quality(self, arm: ArmId) -> Quality | None:
        """The score of an arm's outputs."""
        if self.lab.metric is None:
            return None
        return quality(self.lab.metric, self.texts[arm], references_of(self.samples))

    def as_planned(self, arm: ArmId) -> float | None:
        """Share of outputs that are what was planted; None of a task's pair."""
        if self.lab.config.planted is None or arm.kind in SMALL_ALONE:
            return None
        whole = arm == replace(arm, ahead=False, adaptive=False, small_precision=None)
        whole = whole and arm.kind == BILD
        return share(
            tuple(s.arms[arm].tokens) == p.tokens
            and (not whole or p.stats is None or s.arms[arm].stats == p.stats)
            for s in first_pass(self.samples)
            for p in [self.lab.expected[s.index]]
        )

    def model_use(self, arm: ArmId, profile: Profile) -> dict[str, ModelUse]:
        """What an arm does with each model that took part."""
        tokens = [len(s.arms[arm].tokens) for s in self.samples]
        uses = {}
        for name, times in profile.models.items():
            rate = self._forward_rate(arm, name, times, profile)
            if not times.forwards:
                continue
            seconds = times.decoder / times.forwards
            read = self.bytes_read(name, arm, statistics.mean(tokens))
            uses[name] = ModelUse(
                forward_rate=rate,
                seconds_per_forward=seconds,
                bytes_per_forward=read,
                bytes_per_second=read / seconds,
                of_ceiling=read / seconds / self.ceiling,
            )
        return uses

    def _forward_rate(self, arm: ArmId, name: str, times: ModelTime, profile: Profile) -> float:
        """Forwards per 100 tokens: counted over all cases where the arm tells, else in some."""
        stats = stats_of(self.samples, arm)
        if arm.kind == BILD:
            forwards = stats.large_forwards if name == "large" else stats.small_forwards
            return 100 * forwards / stats.generated_tokens
        of = [s for s in self.samples if str(arm) in s.beside.get("profiles", {})]
        return 100 * times.forwards / sum(len(s.arms[arm].tokens) for s in of)

    def bytes_read(self, name: str, arm: ArmId, length: float) -> float:
        """Bytes of one forward of a model in the middle of an output."""
        size = self.lab.sizes[name]
        precision = arm.precision
        if name == "small" and arm.small_precision is not None:
            precision = arm.small_precision
        return size.bytes_read(precision, self.lab.source_tokens, length / 2)

    def _sees(self, arm: ArmId) -> bool:
        return not kind_of(arm).converts

    # -------------------------------------------------------------------------- of two arms

    def greedy(self, precision: str | None = None) -> ArmId | None:
        """transformers' greedy decoding: the first that ran, or that of a precision."""
        of = (a for a in self.ran if a.kind == GREEDY and precision in (None, a.precision))
        return next(of, None)

    def alone(self, arm: ArmId) -> ArmId | None:
        """Of a pair or the small model alone, the large model alone on the same engine."""
        plain = replace(arm, ahead=False, adaptive=False, small_precision=None)
        wanted = replace(plain, kind=VANILLA)
        return wanted if arm.kind in (BILD, SMALL) and wanted in self.ran else None

    def ratio(self, arm: ArmId, other: ArmId | None) -> Ratio | None:
        """How many times as fast an arm is as another one."""
        if other is None:
            return None
        whole = speed_ratio(self.samples, other, arm)
        shares = [self.encoder_share(a) for a in (other, arm)]
        decoding = None
        if shares[0] is not None and shares[1] is not None:
            decoding = whole.value * (1 - shares[0]) / (1 - shares[1])
        return Ratio(other, whole, decoding)

    # -------------------------------------------------------------------------- the cost model

    def costs(self, figures: BenchmarkArm) -> CostFigures | None:
        """Step times of a pair's engine, what they and the rates predict, and the floor below."""
        arm, lab = figures.id, self.lab
        measured = [
            StepTimes.from_dict(s.beside["steps"][str(arm)])
            for s in self.samples
            if str(arm) in s.beside.get("steps", {})
        ]
        if not measured:
            return None
        steps = costs.median_steps(measured)
        length = statistics.mean(len(s.arms[arm].tokens) for s in self.samples)
        given: Any = figures.rates if lab.config.rates is None else lab.config.rates
        rates = given.fallback_rate, given.rollback_rate
        expected = costs.expect(*rates, length, lab.config.bild)
        large, small = (self.bytes_read(name, arm, length) for name in ("large", "small"))
        predicted = costs.predict(expected, steps, length)
        seconds = statistics.mean(s.arms[arm].seconds for s in self.samples)
        floor = costs.floor(expected, large, small, self.ceiling)
        whole = {
            "predicted": predicted,
            "measured": seconds,
            "floor": steps.encoders + length * floor,
        }
        speedups = {}
        if figures.ratio is not None:
            base = statistics.mean(s.arms[figures.ratio.to].seconds for s in self.samples)
            speedups = {name: base / own for name, own in whole.items()}
        return CostFigures(
            large_steps={
                width: StepCost(s, large / s / self.ceiling) for width, s in steps.large.items()
            },
            small_step=StepCost(steps.small, small / steps.small / self.ceiling),
            encoders=steps.encoders,
            expected_large_forward_rate=expected.large_forward_rate,
            predicted_seconds=predicted,
            measured_seconds=seconds,
            floor_seconds=whole["floor"],
            floor_seconds_per_token=floor,
            speedups=speedups,
        )

    # -------------------------------------------------------------------------- output lengths

    def growth(self, arm: ArmId) -> Growth:
        """Seconds a token by output length."""
        lengths = sorted({e.length for e in self.lab.expected if e.length is not None})
        by_length: dict[int, tuple[Spread, Spread]] = {}
        for length in lengths:
            of = [s for s in self.samples if self.lab.expected[s.index].length == length]
            encoder_share = replace(self, samples=of).encoder_share(arm) or 0.0
            per_token = [s.arms[arm].seconds / len(s.arms[arm].tokens) for s in of]
            whole = spread(per_token)
            by_length[length] = whole, spread([t * (1 - encoder_share) for t in per_token])
        medians = [decoding.median for _, decoding in by_length.values()]
        return Growth(
            id=arm,
            title=kind_of(arm).title,
            built=self.built(arm),
            seconds={n: whole for n, (whole, _) in by_length.items()},
            decoding={n: decoding for n, (_, decoding) in by_length.items()},
            longest_over_shortest=medians[-1] / medians[0],
        )

    # -------------------------------------------------------------------------- batch sizes

    def throughput(self, arm: ArmId) -> Throughput:
        """Sentences a second by batch size."""
        sizes, sources = self.lab.config.batch_sizes, self.lab.data.samples
        by_size = {
            size: [s.arms[arm] for s in self.samples if s.index == i]
            for i, size in enumerate(sizes)
        }
        first = by_size[sizes[0]][0].tokens
        return Throughput(
            id=arm,
            title=kind_of(arm).title,
            built=self.built(arm),
            sentences_per_second={
                size: spread([sources / a.seconds for a in own]) for size, own in by_size.items()
            },
            tokens_per_second={
                size: statistics.median(len(a.tokens) / a.seconds for a in own)
                for size, own in by_size.items()
            },
            same_tokens={
                size: all(a.tokens == first for a in own) for size, own in by_size.items()
            },
        )


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    low, median, high = (float(v) for v in np.quantile(values, (0.25, 0.5, 0.75)))
    return Spread(median, low, high)


def share(holds: Iterable[bool]) -> float:
    """Of some things, the share that holds."""
    return statistics.mean(map(float, holds))

"""What the samples of a run say of each arm: quality, speed, and what happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from bild.evaluation import timing
from bild.evaluation.arms import BILD, VANILLA, ArmId
from bild.evaluation.loop import Sample
from bild.evaluation.record import (
    ArmFigures,
    Interval,
    ProcessFigures,
    Quality,
    Rates,
    Speed,
)
from bild.generation.stats import DecodeStats
from bild.tasks import metrics

WITHIN_ONE_RUN = "examples, within one run: another day or machine is not in them"


def interval_covers(runs: int) -> str:
    """What the intervals of speedups cover, in words."""
    return WITHIN_ONE_RUN if runs == 1 else f"{runs} runs and their examples, both resampled"


def arm_figures(
    samples: Sequence[Sample],
    built: Mapping[ArmId, str],
    metric_names: Sequence[str],
    batch_size: int = 1,
) -> tuple[ArmFigures, ...]:
    """The figures of each arm; the large model alone is among them.

    Args:
        samples: of a finished run, pass by pass.
        built: what ran each arm, in the order of the record.
        metric_names: of `bild.tasks.metrics`, the task's first.
        batch_size: examples that were decoded together.
    """
    baseline = next(arm for arm in built if arm.kind == VANILLA)
    qualities = {name: quality_figures(samples, baseline, name) for name in metric_names}
    texts = texts_of(samples)
    figures = []
    for arm, engine in built.items():
        stats = stats_of(samples, arm)
        same = sum(a == b for a, b in zip(texts[arm], texts[baseline], strict=True))
        figures.append(
            ArmFigures(
                id=arm,
                built=engine,
                quality={name: own[arm] for name, own in qualities.items()},
                speed=speed_figures(samples, baseline, arm, batch_size),
                stats=stats,
                rates=Rates.of(stats) if arm.kind == BILD else None,
                tokens_per_sample=stats.generated_tokens / len(texts[arm]),
                identical=None if arm == baseline else same / len(texts[arm]),
            )
        )
    return tuple(figures)


def quality_figures(
    samples: Sequence[Sample], baseline: ArmId, metric: str
) -> dict[ArmId, Quality]:
    """Of each arm its score with an interval, and how it differs from the baseline's."""
    references = references_of(samples)
    texts = texts_of(samples)
    figures = {}
    for arm, own in texts.items():
        difference = None
        if arm != baseline:
            change = metrics.paired_bootstrap(metric, own, texts[baseline], references)
            difference = Interval(*change)
        figures[arm] = quality(metric, own, references, difference)
    return figures


def quality(
    metric: str,
    texts: Sequence[str],
    references: Sequence[str],
    difference: Interval | None = None,
) -> Quality:
    """The score of texts, with an interval."""
    score = asdict(metrics.score(metric, texts, references))
    low, high = metrics.bootstrap(metric, texts, references)
    return Quality(score["value"], low, high, score["signature"], score["extra"], difference)


def speed_figures(
    samples: Sequence[Sample], baseline: ArmId, arm: ArmId, batch_size: int = 1
) -> Speed:
    """Seconds of an arm, and its speedup over the baseline; of all passes."""
    own = [s.arms[arm] for s in samples]
    runs = passes(samples)
    total = sum(a.seconds for a in own)
    encoders = [a.encoder_seconds for a in own]
    known = None if None in encoders else sum(e for e in encoders if e is not None) / runs
    ratio = None if arm == baseline else speed_ratio(samples, baseline, arm, batch_size)
    return Speed(
        seconds=total / runs,
        encoder_seconds=known,
        seconds_per_sample=total / len(own),
        tokens_per_second=sum(len(a.tokens) for a in own) / total,
        speedup=ratio,
    )


def speed_ratio(
    samples: Sequence[Sample], baseline: ArmId, arm: ArmId, batch_size: int = 1
) -> Interval:
    """`timing.speedup` of an arm over another one; batches are what is resampled."""
    theirs, own = (seconds_of(samples, a, batch_size) for a in (baseline, arm))
    return Interval(*timing.speedup(theirs, own))


def process_figures(samples: Sequence[Sample]) -> tuple[ProcessFigures, ...]:
    """What each process did; nothing where one did it all."""
    if not any(s.process for s in samples):
        return ()
    figures = []
    for process in sorted({s.process for s in samples}):
        own = [s for s in samples if s.process == process]
        arms = own[0].arms
        seconds = {str(arm): sum(s.arms[arm].seconds for s in own) for arm in arms}
        warmup = {str(arm): sum(s.warmup_seconds.get(arm, 0.0) for s in own) for arm in arms}
        figures.append(ProcessFigures(process, len(own), seconds, warmup))
    return tuple(figures)


def passes(samples: Sequence[Sample]) -> int:
    """How often the examples were decoded."""
    return samples[-1].run + 1


def first_pass(samples: Sequence[Sample]) -> list[Sample]:
    """Each example once: what is decoded is the same in every pass."""
    return [s for s in samples if s.run == 0]


def seconds_of(samples: Sequence[Sample], arm: ArmId, batch_size: int = 1) -> list[list[float]]:
    """An arm's seconds, (runs, batches); a batch of one is an example."""
    runs: list[list[float]] = [[] for _ in range(passes(samples))]
    for sample in samples:
        if sample.index % batch_size == 0:
            runs[sample.run].append(0.0)
        runs[sample.run][-1] += sample.arms[arm].seconds
    return runs


def stats_of(samples: Sequence[Sample], arm: ArmId) -> DecodeStats:
    """What an arm did, summed over the examples of one pass."""
    own = (s.arms[arm].stats for s in first_pass(samples))
    return sum((stats for stats in own if stats is not None), DecodeStats())


def texts_of(samples: Sequence[Sample]) -> dict[ArmId, list[str]]:
    """The outputs of each arm, in the examples' order."""
    first = first_pass(samples)
    return {
        arm: [text for s in first if (text := s.arms[arm].text) is not None]
        for arm in samples[0].arms
    }


def references_of(samples: Sequence[Sample]) -> list[str]:
    """What should have come out, in the examples' order."""
    return [s.reference for s in first_pass(samples) if s.reference is not None]

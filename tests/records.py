"""Records with figures that a reader can follow, for tests of tables, pictures and files."""

from __future__ import annotations

from dataclasses import replace

from bild.config import BiLDConfig, EvalConfig, SearchConfig
from bild.evaluation.arms import BILD, SMALL, VANILLA, ArmId
from bild.evaluation.environment import Environment, PeakMemory
from bild.evaluation.record import (
    ArmFigures,
    DataIdentity,
    Interval,
    ModelIdentity,
    Models,
    Quality,
    Rates,
    RunRecord,
    Speed,
    Timing,
)
from bild.generation.stats import DecodeStats
from bild.tuning.record import SearchRecord, Spent, TriedPoint

BUILT = "fast, float32, compiled"
STATS = DecodeStats(
    generated_tokens=200,
    fallbacks=20,
    rollbacks=5,
    drafted_tokens=180,
    verifications=40,
    verified_tokens=150,
    large_forwards=60,
    small_forwards=200,
)


def around(value, width=1.0):
    return Interval(value, value - width, value + width)


def environment(**changes):
    env = Environment(
        commit="c" * 40,
        dirty=False,
        code="d" * 64,
        python="3.11.7",
        versions={"torch": "2.13.0", "transformers": "5.23.0", "numpy": "2.4.6"},
        device="cpu",
        processor="a processor x 2",
        gpu=None,
        threads=2,
        wait_policy=None,
        system="Linux x86_64",
        load_average=0.1,
        peak_memory=PeakMemory(10**9, None),
    )
    return replace(env, **changes)


def data(sha256="1" * 64, samples=50):
    return DataIdentity("a file", None, "validation", samples, samples, sha256)


def models(small="small"):
    return Models(
        large=ModelIdentity("my/large", None, "abc", 11_500_000),
        small={"small": ModelIdentity(f"my/{small}", None, small, 2_300_000)},
        tokenizer=ModelIdentity("my/large", None, "def"),
    )


def arm(kind, score, speedup, *, stats=None):
    """The figures of an arm; without a speedup it is the large model alone."""
    alone = speedup is None
    seconds = 10.0 if alone else 10.0 / speedup
    stats = DecodeStats(generated_tokens=200, large_forwards=200) if stats is None else stats
    return ArmFigures(
        id=ArmId(kind, "fast", "float32", True),
        built=BUILT,
        quality={
            "bleu": Quality(
                score, score - 1, score + 1, "v:2", {"chrF2": 50.0},
                None if alone else around(score - 30, 0.5),
            )
        },
        speed=Speed(
            seconds, 1.0, seconds / 50, 200 / seconds, None if alone else around(speedup, 0.1)
        ),
        stats=stats,
        rates=Rates.of(stats) if kind == BILD else None,
        tokens_per_sample=4.0,
        identical=None if alone else 0.5,
    )  # fmt: skip


def run_record(mode="unaligned", fallback=0.4, rollback=3.0, *, score=29.0, speedup=1.5, **bild):
    """A run of the large model alone (30 BLEU), BiLD and the small model alone (25 BLEU, 4x)."""
    config = BiLDConfig(fallback, rollback, **bild)
    return RunRecord(
        models=models("small" if mode == "unaligned" else "aligned"),
        data=data(),
        env=environment(),
        config=EvalConfig("demo", mode, config, max_new_tokens=128, max_source_tokens=1024),
        metric="bleu",
        timing=Timing(("loading",), 2, 1, "examples, within one run"),
        arms=(
            arm(VANILLA, 30.0, None),
            arm(BILD, score, speedup, stats=STATS),
            arm(SMALL, 25.0, 4.0),
        ),
    )


def search_record(points, samples=50, method="grid", sha256="1" * 64):
    """A search on given pairs: (fallback, rollback, score, speedup)."""
    tried = tuple(
        TriedPoint(
            fallback, rollback, samples, score, 20 - score, 21 - score, 0.5, speedup,
            speedup - 0.1, speedup + 0.1, 10.0, 1.0, 40.0, "kept",
        )
        for fallback, rollback, score, speedup in points
    )  # fmt: skip
    return SearchRecord(
        models=models(),
        data=data(sha256, samples),
        env=environment(),
        config=EvalConfig("demo", "unaligned", BiLDConfig()),
        search=SearchConfig(max_loss=0.5, method=method),
        costs=None,
        metric="bleu",
        large=Quality(20.0, 19.0, 21.0, "v:2", {}),
        candidates=100,
        margin=2.5,
        points=tried,
        front=(0, len(tried) - 1),
        chosen=0,
        spent=Spent(samples * len(tried), samples, 100 * samples),
        check=None,
    )

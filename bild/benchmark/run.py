"""One benchmark: every case decoded by each arm, timed, and written down, in the one loop there is.

The arms of `bild.benchmark.kinds` run in one process. With each case the memory's bandwidth and the
steps of our own engines are measured again, so that a machine that changes changes them too; the
first cases are decoded once more by each arm, to see where its time goes.

Cases come from a task's pair, or from a planted pair (`bild.benchmark.planted`); with `lengths`
each of them is decoded to several output lengths, for the growth of a token's time; with
`batch_sizes` a case is all sources, so many at a time, for sentences a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bild.benchmark.config import BenchmarkConfig
from bild.benchmark.costs import MemoryCeiling
from bild.benchmark.figures import record_of
from bild.benchmark.kinds import BenchmarkArm, PairArm, kind_of
from bild.benchmark.lab import Lab, prepare
from bild.benchmark.record import BenchmarkRecord
from bild.evaluation.arms import ArmId
from bild.evaluation.codec import encode
from bild.evaluation.environment import environment, peak_memory
from bild.evaluation.folder import Identity
from bild.evaluation.in_folder import run_in_folder
from bild.evaluation.loop import Item, Loop, Sample, read_samples, reason, samples
from bild.evaluation.record import SCHEMA
from bild.files import check_writable
from bild.progress import progress_bar

PROFILED = 4  # cases that are taken apart, in each pass

Report = Callable[[BenchmarkRecord, list[Sample], Path], None]


def run_benchmark(
    config: BenchmarkConfig,
    output_dir: Path,
    *,
    report: Report | None = None,
    progress: bool = True,
) -> tuple[BenchmarkRecord, Path]:
    """Run a benchmark into a new folder of `output_dir`/benchmark; go on with an unfinished one.

    Every finished case is written at once. A run that was stopped goes on at the next call with the
    same settings, data and models, on the same machine by the same code.

    Args:
        config: what to put side by side.
        output_dir: where the run's folder is made.
        report: shows the record, the samples and the path of run.json.
        progress: show a progress bar.

    Returns:
        The record and the path of its run.json.

    Raises:
        BildError: bad settings, data or models; an output folder that cannot be written; no arm
            that can run.
    """
    folder = output_dir / "benchmark"
    check_writable(folder)
    lab = prepare(config, folder / "ctranslate2")
    env = environment(lab.kit.device, ["ctranslate2"])
    bench = _Bench(lab)
    resumed = 0

    def decode_into(path: Path) -> Iterator[Sample]:
        nonlocal resumed
        known = read_samples(path, config.arms, bench.loop)
        resumed = len(known)
        failed = known[-1].failed if known else {}
        arms = [] if resumed == bench.loop.total else bench.make_arms(failed)
        found = samples(arms, bench.loop, path, bench.failed, config.arms, known)
        return _with_progress(found, bench.loop.total, resumed, progress)

    def summarize(found: list[Sample]) -> BenchmarkRecord:
        peak = peak_memory(lab.kit.device)
        return record_of(lab, found, replace(env, resumed_after=resumed, peak_memory=peak))

    work = {**asdict(config), "arms": [encode(arm) for arm in config.arms]}
    identity = Identity(
        work={
            "config": {n: v for n, v in work.items() if n not in ("device", "threads")},
            "models": asdict(lab.models),
            "data": asdict(lab.data),
            "schema": SCHEMA,
        },
        place=env.place(),
    )
    return run_in_folder(folder, identity, BenchmarkRecord, decode_into, summarize, report)


@dataclass
class _Bench:
    """The arms of a benchmark, and what is measured beside them."""

    lab: Lab
    arms: dict[ArmId, BenchmarkArm] = field(default_factory=dict)
    failed: dict[ArmId, str] = field(default_factory=dict)
    made_seconds: dict[ArmId, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config, lab = self.lab.config, self.lab
        self.loop = Loop(
            items=lab.items,
            # Of batches a case is all sources: one is enough.
            warmup=min(1, config.warmup)
            if config.batch_sizes
            else config.warmup * max(1, len(config.lengths)),
            runs=config.repeat,
            seed=config.seed,
            to_text=lab.to_text,
            beside=self.beside,
            may_fail=True,
        )
        self.profiled = 0
        self.ceiling: MemoryCeiling | None = None

    def make_arms(self, failed: dict[ArmId, str]) -> list[BenchmarkArm]:
        """The arms that have not failed, in the order of the settings; those that do are noted."""
        self.failed = dict(failed)
        wanted = [arm for arm in self.lab.config.arms if arm not in failed]
        for arm in sorted(wanted, key=lambda a: not kind_of(a).converts):
            start = time.perf_counter()
            try:
                self.arms[arm] = kind_of(arm).make(self.lab.kit, arm)
            except Exception as error:  # whatever an engine may raise: it stays out
                self.failed[arm] = reason(error)
                continue
            self.made_seconds[arm] = time.perf_counter() - start
        self.lab.kit.release()
        self.ceiling = MemoryCeiling(self.lab.kit.device)
        return [self.arms[arm] for arm in wanted if arm in self.arms]

    def beside(self, item: Item, ran: list[ArmId]) -> dict[str, Any]:
        """What is measured with a case, by the arms that have just run."""
        assert self.ceiling is not None
        arms = [self.arms[arm] for arm in ran]
        measured: dict[str, Any] = {"bytes_per_second": self.ceiling.measure()}
        batches = self.lab.config.batch_sizes
        if not (self.lab.config.lengths or batches):
            steps = {
                str(a.id): s for a in arms if isinstance(a, PairArm) and (s := a.steps(item.case))
            }
            measured["steps"] = {name: asdict(own) for name, own in steps.items()}
        if not batches and self.profiled < PROFILED * max(1, len(self.lab.config.lengths)):
            self.profiled += 1
            measured["profiles"] = {str(a.id): asdict(a.profile(item.case)) for a in arms}
        if self.made_seconds:  # once a process
            measured["made_seconds"] = {str(a): s for a, s in self.made_seconds.items()}
            measured["built"] = {str(a): arm.built for a, arm in self.arms.items()}
            self.made_seconds = {}
        return measured


def _with_progress(
    found: Iterator[Sample], total: int, resumed: int, progress: bool
) -> Iterator[Sample]:
    with progress_bar("benchmark", total, done=resumed, unit="case", shown=progress) as bar:
        for number, sample in enumerate(found):
            if number >= resumed:
                bar.update()
            yield sample

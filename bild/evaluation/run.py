"""One evaluation: a task's examples decoded by the large model alone, the pair and the small model.

What is timed, and in which order: `bild.evaluation.loop`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from bild.checkpoints.identity import describe_model, describe_tokenizer, short_path
from bild.checkpoints.loading import load_model, load_tokenizer
from bild.checkpoints.names import resolve_model
from bild.checkpoints.vocabulary import check_tokenizer_size
from bild.config import EvalConfig
from bild.evaluation import loop as looping
from bild.evaluation.arms import BILD, VANILLA, Arm, Case
from bild.evaluation.environment import Environment, environment, peak_memory
from bild.evaluation.figures import arm_figures, interval_covers, process_figures
from bild.evaluation.folder import Identity
from bild.evaluation.in_folder import run_in_folder
from bild.evaluation.loop import EXCLUDED_FROM_TIME, Item, Loop, Sample
from bild.evaluation.own import OwnArm, own_arms
from bild.evaluation.record import (
    PATHS,
    SCHEMA,
    DataIdentity,
    ModelIdentity,
    Models,
    RunRecord,
    Timing,
)
from bild.evaluation.shared import (
    Seen,
    decode_together,
    folder_of_first,
    help_decode,
    is_shared,
    read_shared,
    wait_for_first,
)
from bild.files import check_writable
from bild.generation.loading import load_runner, source_tokens
from bild.generation.pair import BiLDModel
from bild.generation.single import SingleModel
from bild.generation.stats import DecodeStats
from bild.processes import agree, launch
from bild.progress import progress_bar
from bild.tasks.data import LoadedData
from bild.tasks.reading import Example
from bild.tasks.registry import Task, Thresholds
from bild.tasks.sources import Sources, locate

Report = Callable[[RunRecord, list[Sample], Path], None]


@dataclass(frozen=True)
class Workload:
    """Everything an evaluation needs, loaded and checked."""

    config: EvalConfig
    task: Task  # with the configuration's limits
    data: LoadedData
    runner: BiLDModel | SingleModel  # the pair on its engine, or the large model alone
    tokenizer: PreTrainedTokenizerBase
    models: Models

    @property
    def large(self) -> PreTrainedModel:
        return self.runner.model if isinstance(self.runner, SingleModel) else self.runner.large

    @property
    def small(self) -> PreTrainedModel | None:
        return None if isinstance(self.runner, SingleModel) else self.runner.small

    def with_thresholds(self, thresholds: Thresholds) -> Workload:
        """The same work with other thresholds."""
        assert self.config.bild is not None
        bild = replace(
            self.config.bild,
            fallback_threshold=thresholds.fallback,
            rollback_threshold=thresholds.rollback,
        )
        return replace(self, config=replace(self.config, bild=bild))

    def with_small(self, name: str, sources: Sources) -> Workload:
        """The same work with another small model; the large one, on its engine, is shared.

        Args:
            name: its checkpoint.
            sources: what this work was prepared from.

        Raises:
            BildError: as `prepare`.
        """
        assert isinstance(self.runner, BiLDModel)
        checkpoint = resolve_model(name)
        load_tokenizer(sources.large, checkpoint, sources.tokenizer)  # it compares the two's
        small = load_model(checkpoint, self.large.dtype, self.large.device)
        runner = self.runner.with_small(small)
        check_tokenizer_size(self.tokenizer, runner.vocab_size)
        own = {"small": ModelIdentity(**describe_model(checkpoint, small))}
        return replace(
            self,
            config=replace(self.config, small=name),
            runner=runner,
            models=replace(self.models, small=own),
        )

    def arms(self) -> list[OwnArm]:
        """The arms of this evaluation."""
        config = self.config
        arms = own_arms(self.runner, config.bild, small_alone=config.small_alone)
        return [replace(arm, drawn=config.drawn, seed=config.seed) for arm in arms]

    def loop(self, data: LoadedData | None = None) -> Loop:
        """How its examples, or others, are gone through."""
        examples = (self.data if data is None else data).examples
        return Loop(
            items=[item(self, example, i) for i, example in enumerate(examples)],
            warmup=self.config.warmup,
            batch_size=self.config.batch_size,
            runs=self.config.repeat,
            seed=self.config.seed,
            to_text=self.to_text,
        )

    @property
    def heading(self) -> str:
        """What runs on what, in a line."""
        names = [self.models.large.id, *(m.id for m in self.models.small.values())]
        return (
            f"{' / '.join(names)} on {self.large.device}, engine {self.arms()[0].built}, "
            f"{torch.get_num_threads()} thread(s)"
        )

    def to_text(self, tokens: Sequence[int]) -> str:
        """The text of output tokens."""
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text


def prepare(config: EvalConfig, sources: Sources) -> Workload:
    """Load models and tokenizer, and check that they fit together.

    Raises:
        BildError: whatever cannot be loaded or does not fit, by name and value.
    """
    runner, tokenizer = load_runner(config, sources)
    smalls = {}
    if isinstance(runner, BiLDModel) and sources.small is not None:
        smalls["small"] = ModelIdentity(**describe_model(sources.small, runner.small))
    large = runner.large if isinstance(runner, BiLDModel) else runner.model
    named = sources.large if sources.tokenizer is None else sources.tokenizer
    models = Models(
        large=ModelIdentity(**describe_model(sources.large, large)),
        small=smalls,
        tokenizer=ModelIdentity(**describe_tokenizer(named)),
    )
    return Workload(config, sources.task, sources.data, runner, tokenizer, models)


def item(work: Workload, example: Example, number: int) -> Item:
    """An example, the so many-th, with its source tokens, (1, S), cut to the limit."""
    limit = work.task.max_source_tokens
    ids, length = source_tokens(work.tokenizer, work.task.prefix + example.source, limit)
    case = Case(ids, work.task.max_new_tokens, number=number)
    return Item(example.source, example.target, case, truncated=length > limit)


# ------------------------------------------------------------------------------ the run


def evaluate(
    config: EvalConfig,
    output_dir: Path,
    *,
    sources: Sources | None = None,
    report: Report | None = None,
    progress: bool = True,
) -> tuple[RunRecord, Path]:
    """Run an evaluation into a new folder of `output_dir`/<task>; go on with an unfinished one.

    Every finished example is written at once. A run that was stopped goes on at the next call
    with the same settings, data and models, on the same machine by the same code; elsewhere a new
    one begins, and a sentence says why. The processes of `accelerate launch` share the examples
    (`bild.evaluation.shared`), and all of them return the one record.

    Args:
        config: what to evaluate.
        output_dir: where the run's folder is made, under the task's name.
        sources: data and checkpoints, if `locate` has found them already.
        report: shows the record, the samples and the path of run.json. A run that ended before
            this was done is reported by the next call, not decoded again.
        progress: show a progress bar, and what runs on what.

    Returns:
        The record and the path of its run.json.

    Raises:
        BildError: bad settings, data or models; an output folder that cannot be written.
    """
    check_writable(output_dir / config.task)
    work = prepare(config, locate(config) if sources is None else sources)
    return evaluate_loaded(work, output_dir, report=report, progress=progress)


def evaluate_loaded(
    work: Workload, output_dir: Path, *, report: Report | None = None, progress: bool = True
) -> tuple[RunRecord, Path]:
    """`evaluate` for models that are loaded already."""
    set_seed(work.config.seed)
    arms, loop = work.arms(), work.loop()
    env = environment(work.large.device)
    own = identity(work, arms, env)
    if not launch().is_first:
        folder = folder_of_first(own)
        help_decode(arms, loop, folder / "samples.jsonl")
        wait_for_first(folder / "run.json", folder, "its record")
        return RunRecord.load(folder / "run.json"), folder / "run.json"
    resumed = 0

    def decode_into(path: Path) -> Iterator[Sample]:
        nonlocal resumed
        if is_shared(path):
            resumed = len(read_shared(path, [arm.id for arm in arms], loop))
            with _watched(loop.total, resumed, work.config.task, progress) as seen:
                ready = partial(agree, str(path.parent.absolute()))
                return iter(decode_together(arms, loop, path, ready, seen))
        known = looping.read_samples(path, [arm.id for arm in arms], loop)
        resumed = len(known)
        found = looping.samples(arms, loop, path, known=known)
        return with_progress(found, loop.total, resumed, work.config.task) if progress else found

    def summarize(samples: list[Sample]) -> RunRecord:
        peak = peak_memory(work.large.device)
        return record_of(work, arms, samples, replace(env, resumed_after=resumed, peak_memory=peak))

    folder = output_dir / work.config.task
    return run_in_folder(folder, own, RunRecord, decode_into, summarize, report)


def identity(work: Workload, arms: Sequence[Arm], env: Environment) -> Identity:
    """What a run must share with this one to be continued by it."""
    settings = asdict(work.config)
    place = ("device", "threads")  # as they were asked for; as they are, they are in `env`
    return Identity(
        work={
            "config": {name: v for name, v in settings.items() if name not in place},
            "models": asdict(work.models),
            "data": work.data.sha256,
            "schema": SCHEMA,
        },
        place={
            **env.place(),
            **_same_device(env),
            "arms": {str(arm.id): arm.built for arm in arms},
        },
    )


def _same_device(env: Environment) -> dict[str, str]:
    """One name for the GPUs of several processes: that of a lone one."""
    is_one_of_many = launch().count > 1 and env.device.startswith("cuda")
    return {"device": "cuda:0"} if is_one_of_many else {}


def record_of(
    work: Workload, arms: Sequence[Arm], samples: list[Sample], env: Environment
) -> RunRecord:
    """The record of a finished run that was made in the environment `env`."""
    metric, processes = work.task.metric, process_figures(samples)
    return RunRecord(
        models=work.models,
        data=describe_data(work.data, samples),
        env=env,
        config=describe_config(work.config, work.task),
        metric=metric,
        timing=describe_timing(work.config, len(processes)),
        arms=arm_figures(
            samples, {arm.id: arm.built for arm in arms}, [metric], work.config.batch_size
        ),
        processes=processes,
    )


def describe_config(config: EvalConfig, task: Task) -> EvalConfig:
    """The settings as they ran, without the folders of the machine they were used on."""
    found: dict[str, Any] = {name: short_path(getattr(config, name)) for name in PATHS}
    found |= {name: getattr(task, name) for name in ("max_source_tokens", "max_new_tokens")}
    return replace(config, **found)


def describe_timing(config: EvalConfig, processes: int = 0) -> Timing:
    """How an evaluation takes seconds, where several processes shared it that many."""
    covers = interval_covers(config.repeat)
    if config.batch_size > 1:
        covers += f"; by batches of {config.batch_size}, whose seconds their examples share evenly"
    if processes:
        covers += f"; shared by {processes} process(es), whose seconds are added up"
    return Timing(EXCLUDED_FROM_TIME, config.warmup, config.repeat, covers)


def describe_data(data: LoadedData, samples: Sequence[Sample]) -> DataIdentity:
    """Where the decoded examples came from, how many they are, and their checksum."""
    first = [s for s in samples if s.run == 0]
    return DataIdentity(
        origin=short_path(data.origin) or "",
        revision=data.revision,
        split=data.split,
        samples=len(first),
        available=data.available,
        sha256=data.sha256,
        truncated_sources=sum(s.truncated for s in first),
    )


# ------------------------------------------------------------------------------ progress


def with_progress(
    samples: Iterator[Sample], total: int, resumed: int, name: str
) -> Iterator[Sample]:
    """The samples, with a progress bar that shows speedup and rates so far."""
    figures = RunningFigures()
    with progress_bar(name, total, done=resumed) as bar:
        for number, sample in enumerate(samples):
            figures.add(sample)
            if number >= resumed:
                bar.set_postfix_str(str(figures), refresh=False)
                bar.update()
            yield sample


@contextmanager
def _watched(total: int, resumed: int, name: str, shown: bool) -> Iterator[Seen]:
    """Told of each example that is decoded here, and how many are by all: a progress bar."""
    figures = RunningFigures()
    with progress_bar(name, total, done=resumed, shown=shown) as bar:

        def seen(sample: Sample, done: int) -> None:
            figures.add(sample)
            bar.set_postfix_str(str(figures), refresh=False)
            bar.update(max(0, done - bar.n))

        yield seen


class RunningFigures:
    """Speedup and rates so far; each example is added up once."""

    def __init__(self) -> None:
        self.stats = DecodeStats()
        self.vanilla = self.bild = 0.0  # seconds

    def add(self, sample: Sample) -> None:
        by_kind = {arm.kind: done for arm, done in sample.arms.items()}
        pair = by_kind.get(BILD)
        if pair is not None and pair.stats is not None:
            self.stats += pair.stats
            self.bild += pair.seconds
            self.vanilla += by_kind[VANILLA].seconds

    def __str__(self) -> str:
        if not self.bild:
            return ""
        return (
            f"speedup {self.vanilla / self.bild:.2f}x, "
            f"fallback {self.stats.fallback_rate:.1f}%, rollback {self.stats.rollback_rate:.1f}%"
        )

"""One evaluation: every example decoded by each arm in turn, timed, scored, and written down.

Arms: "vanilla" is the large model alone, "bild" the pair, "small" the small model alone. For each
example they run one after the other in one process, the first of them rotating, so that a noisy or
shared machine slows them alike. Timed is decoding alone, both encoders included; tokenization,
detokenization, scoring and loading are not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from bild.checkpoints.identity import describe_model, describe_tokenizer, short_path
from bild.checkpoints.loading import find_device, load_model, load_tokenizer
from bild.checkpoints.names import resolve_model
from bild.checkpoints.vocabulary import check_tokenizer_size, shared_vocab_size
from bild.config import EvalConfig
from bild.evaluation import timing
from bild.evaluation.record import SCHEMA, RunRecord, environment, peak_memory
from bild.files import check_writable, digest, open_run, read_lines, write_lines
from bild.generation.generate import BiLDOutput
from bild.generation.pair import BiLDModel, SingleModel
from bild.generation.stats import DecodeStats
from bild.tasks import metrics
from bild.tasks.data import Example, LoadedData
from bild.tasks.registry import Task, Thresholds
from bild.tasks.sources import Sources, locate

EXCLUDED_FROM_TIME = ("loading", "tokenization", "detokenization", "scoring", "warm-up")


@dataclass(frozen=True)
class ArmSample:
    """One example under one arm; seconds are wall clock."""

    text: str
    tokens: list[int]
    seconds: float
    encoder_seconds: float
    stats: DecodeStats


@dataclass(frozen=True)
class SampleRecord:
    """One example under all arms: a line of samples.jsonl."""

    index: int
    source: str
    reference: str
    source_tokens: int
    truncated: bool
    arms: dict[str, ArmSample]

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> SampleRecord:
        fields = json.loads(line)
        arms = {
            name: ArmSample(**{**arm, "stats": DecodeStats(**arm["stats"])})
            for name, arm in fields["arms"].items()
        }
        return cls(**{**fields, "arms": arms})


@dataclass(frozen=True)
class Workload:
    """Everything an evaluation needs, loaded and checked."""

    config: EvalConfig
    benchmark: Task  # with the configuration's limits
    data: LoadedData
    large: PreTrainedModel
    small: PreTrainedModel | None
    runner: BiLDModel | SingleModel  # the pair on its engine, or the large model alone
    tokenizer: PreTrainedTokenizerBase
    models: dict[str, Any]

    @property
    def identity(self) -> str:
        """A digest of all that decides the outputs: runs that share it can be continued."""
        parts = [asdict(self.config), self.models, self.data.sha256, torch.__version__, SCHEMA]
        return digest(parts)

    def with_thresholds(self, pair: Thresholds) -> Workload:
        """The same work with other thresholds."""
        assert self.config.bild is not None
        bild = replace(
            self.config.bild,
            fallback_threshold=pair.fallback,
            rollback_threshold=pair.rollback,
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
        return replace(
            self,
            config=replace(self.config, small=name),
            small=small,
            runner=runner,
            models={**self.models, "small": describe_model(checkpoint, small)},
        )


def prepare(config: EvalConfig, sources: Sources) -> Workload:
    """Load models and tokenizer, and check that they fit together.

    Raises:
        BildError: whatever cannot be loaded or does not fit, by name and value.
    """
    device = find_device(config.device)
    tokenizer = load_tokenizer(sources.large, sources.small, sources.tokenizer)
    dtype = getattr(torch, config.dtype)
    large = load_model(sources.large, dtype, device)
    models = {
        "large": describe_model(sources.large, large),
        "tokenizer": describe_tokenizer(
            sources.large if sources.tokenizer is None else sources.tokenizer
        ),
    }
    rows = large.get_output_embeddings().weight.shape[0]
    small = None
    if sources.small is not None:
        small = load_model(sources.small, dtype, device)
        rows = shared_vocab_size(large, small)
        models["small"] = describe_model(sources.small, small)
    check_tokenizer_size(tokenizer, rows)
    options: Any = {n: getattr(config, n) for n in ("engine", "precision", "compile")}
    runner = SingleModel(large, **options) if small is None else BiLDModel(large, small, **options)
    return Workload(config, sources.task, sources.data, large, small, runner, tokenizer, models)


def evaluate(
    config: EvalConfig, output_dir: Path, *, sources: Sources | None = None, progress: bool = True
) -> tuple[RunRecord, Path]:
    """Run an evaluation into a new folder of `output_dir`/<task>; go on with an unfinished one.

    Every finished example is written at once. A run that was stopped goes on at the next call
    with the same settings, data and models.

    Args:
        config: what to evaluate.
        output_dir: where the run's folder is made, under the task's name.
        sources: data and checkpoints, if `locate` has found them already.
        progress: show a progress bar.

    Returns:
        The record and the path of its run.json.

    Raises:
        BildError: bad settings, data or models; an output folder that cannot be written.
    """
    check_writable(output_dir / config.task)
    work = prepare(config, locate(config) if sources is None else sources)
    return evaluate_loaded(work, output_dir, progress=progress)


def evaluate_loaded(
    work: Workload, output_dir: Path, *, progress: bool = True
) -> tuple[RunRecord, Path]:
    """`evaluate` for models that are loaded already."""
    config = work.config
    set_seed(config.seed)
    arms = make_arms(work)
    env = environment(work.large.device, getattr(torch, config.dtype))  # the code that runs now
    env["engine"] = str(work.runner.engine)
    with open_run(output_dir / config.task, work.identity) as folder:
        samples = read_samples(folder / "samples.jsonl")
        resumed = len(samples)
        bar = tqdm(
            total=len(work.data.examples), initial=resumed, desc=config.task, unit="example",
            disable=not progress,
        )  # fmt: skip
        with bar:
            figures = RunningFigures(samples)
            bar.set_postfix_str(str(figures))
            fresh = run_examples(work, arms, start=resumed)
            for sample in write_lines(folder / "samples.jsonl", fresh):
                samples.append(sample)
                figures.add(sample)
                bar.set_postfix_str(str(figures), refresh=False)
                bar.update()
        record = summarize(work, samples, {**env, "resumed_after": resumed})
        record.save(folder / "run.json")
    return record, folder / "run.json"


# ------------------------------------------------------------------------------ decoding

Arm = Callable[[dict[str, Any]], Any]  # source tensors -> BiLDOutput


def make_arms(work: Workload, *, trace: bool = False) -> dict[str, Arm]:
    """The arms of a workload: source tensors -> output; with `trace`, the pair's has one."""
    options: dict[str, Any] = {
        "max_new_tokens": work.benchmark.max_new_tokens,
        "do_sample": False,
        "num_beams": 1,
        "return_dict_in_generate": True,
    }

    runner = work.runner
    arms: dict[str, Arm] = {"vanilla": lambda inputs: runner.greedy(**inputs, **options)}
    if isinstance(runner, BiLDModel):
        bild_config = work.config.bild
        own = {**options, "bild_config": bild_config, "output_trace": trace}
        arms["bild"] = lambda inputs: runner.generate(**inputs, **own)
        if work.config.small_alone:
            arms["small"] = lambda inputs: runner.greedy(**inputs, which="small", **options)
    return arms


def run_examples(work: Workload, arms: dict[str, Arm], start: int = 0) -> Iterator[SampleRecord]:
    """Decode the examples from number `start` on with every arm, the first arm rotating."""
    examples = work.data.examples
    for example in examples[: work.config.warmup] if start < len(examples) else ():
        inputs, _ = tokenize(work, example)
        for arm in arms.values():
            arm(inputs)
    names = list(arms)
    for index in range(start, len(examples)):
        inputs, full_length = tokenize(work, examples[index])
        turn = index % len(names)
        done = {name: _decode(work, arms[name], inputs) for name in names[turn:] + names[:turn]}
        yield SampleRecord(
            index=index,
            source=examples[index].source,
            reference=examples[index].target,
            source_tokens=inputs["input_ids"].shape[1],
            truncated=full_length > work.benchmark.max_source_tokens,
            arms={name: done[name] for name in names},
        )


def tokenize(work: Workload, example: Example) -> tuple[dict[str, torch.Tensor], int]:
    """An example's source tensors, (1, S), cut to the limit; and its uncut length in tokens."""
    limit = work.benchmark.max_source_tokens
    full = work.tokenizer(work.benchmark.prefix + example.source, return_tensors="pt")
    length = full["input_ids"].shape[1]
    if length > limit:
        full = work.tokenizer(
            work.benchmark.prefix + example.source,
            truncation=True, max_length=limit, return_tensors="pt",
        )  # fmt: skip
    names = ("input_ids", "attention_mask")
    return {name: full[name].to(work.large.device) for name in names}, length


def _decode(work: Workload, arm: Arm, inputs: dict[str, torch.Tensor]) -> ArmSample:
    models = {"large": work.large}
    if work.small is not None:
        models["small"] = work.small
    with timing.ForwardClock(models, work.large.device) as clock:
        output: BiLDOutput
        output, seconds = timing.timed(work.large.device, lambda: arm(inputs))
    assert output.sequences is not None
    assert output.stats is not None
    tokens = output.sequences[0].tolist()
    encoder_seconds = sum(t.encoder for t in clock.times.values())
    text = work.tokenizer.decode(tokens, skip_special_tokens=True)
    return ArmSample(text, tokens, seconds, encoder_seconds, output.stats)


# ------------------------------------------------------------------------------ figures


def summarize(work: Workload, samples: list[SampleRecord], env: dict[str, Any]) -> RunRecord:
    """The record of a finished run that was made in the environment `env`."""
    metric = work.benchmark.metric
    return RunRecord(
        config=describe_config(work.config),
        models=work.models,
        data=describe_data(work.data, samples),
        env={**env, "peak_memory": peak_memory(work.large.device)},
        quality={"metric": metric, **quality_figures(metric, samples)},
        speed={
            "excluded": EXCLUDED_FROM_TIME,
            "warmup": work.config.warmup,
            **speed_figures(samples),
        },
        decoding=decoding_figures(samples),
    )


def quality_figures(metric: str, samples: list[SampleRecord]) -> dict[str, dict[str, Any]]:
    """Of each arm its score with a 95 % interval, and how it differs from the large model's."""
    references, texts = [s.reference for s in samples], texts_of(samples)
    figures: dict[str, dict[str, Any]] = {}
    for name, own in texts.items():
        low, high = metrics.bootstrap(metric, own, references)
        score = metrics.score(metric, own, references)
        figures[name] = {**asdict(score), "low": low, "high": high}
        if name != "vanilla":
            change = metrics.paired_bootstrap(metric, own, texts["vanilla"], references)
            figures[name]["difference"] = bounded(change)
    return figures


def speed_figures(samples: list[SampleRecord]) -> dict[str, dict[str, Any]]:
    """Of each arm its seconds, tokens a second, and speedup over the large model alone."""
    figures: dict[str, dict[str, Any]] = {}
    for name in samples[0].arms:
        runs = [s.arms[name] for s in samples]
        total = sum(r.seconds for r in runs)
        figures[name] = {
            "seconds": total,
            "encoder_seconds": sum(r.encoder_seconds for r in runs),
            "seconds_per_sample": total / len(samples),
            "tokens_per_second": sum(r.stats.generated_tokens for r in runs) / total,
        }
        if name != "vanilla":
            figures[name]["speedup"] = bounded(speed_ratio(samples, "vanilla", name))
    return figures


def decoding_figures(samples: list[SampleRecord]) -> dict[str, dict[str, Any]]:
    """Of each arm what happened, summed up; of a pair, an arm called "bild ...", its rates too."""
    texts = texts_of(samples)
    figures: dict[str, dict[str, Any]] = {}
    for name, own in texts.items():
        stats = sum((s.arms[name].stats for s in samples), DecodeStats())
        figures[name] = {
            **asdict(stats),
            "tokens_per_sample": stats.generated_tokens / len(samples),
        }
        if name != "vanilla":
            same = sum(a == b for a, b in zip(own, texts["vanilla"], strict=True))
            figures[name]["identical_to_vanilla"] = same / len(samples)
        if name.split()[0] == "bild":
            figures[name] |= {
                "fallback_rate": stats.fallback_rate,
                "rollback_rate": stats.rollback_rate,
                "large_forward_rate": stats.large_forward_rate,
                "mean_accepted_length": (
                    stats.mean_accepted_length if stats.verifications else None
                ),
            }
    return figures


def texts_of(samples: list[SampleRecord]) -> dict[str, list[str]]:
    """The outputs of each arm, in the examples' order."""
    return {name: [s.arms[name].text for s in samples] for name in samples[0].arms}


def speed_ratio(samples: list[SampleRecord], baseline: str, arm: str) -> tuple[float, float, float]:
    """`timing.speedup` of an arm over another one."""
    theirs, ours = ([s.arms[name].seconds for s in samples] for name in (baseline, arm))
    return timing.speedup(theirs, ours)


def bounded(figure: tuple[float, float, float]) -> dict[str, float]:
    """(value, low, high) by name, as records hold them."""
    return dict(zip(("value", "low", "high"), figure, strict=True))


def describe_config(config: EvalConfig) -> dict[str, Any]:
    """The settings as JSON values, without the folders of the machine they were used on."""
    fields = asdict(config)
    fields["bild"] = None if config.bild is None else config.bild.to_dict()
    for name in ("large", "small", "tokenizer", "data_file"):
        fields[name] = short_path(fields[name])
    return fields


def describe_data(data: LoadedData, samples: list[SampleRecord]) -> dict[str, Any]:
    """Where the decoded examples came from, how many they are, and their checksum."""
    return {
        "origin": short_path(data.origin),
        "revision": data.revision,
        "split": data.split,
        "samples": len(samples),
        "available": data.available,
        "sha256": data.sha256,
        "truncated_sources": sum(s.truncated for s in samples),
    }


class RunningFigures:
    """Speedup and rates so far, for the progress bar; each example is added up once."""

    def __init__(self, samples: list[SampleRecord]) -> None:
        self.stats = DecodeStats()
        self.vanilla = self.bild = 0.0  # seconds
        for sample in samples:
            self.add(sample)

    def add(self, sample: SampleRecord) -> None:
        if "bild" in sample.arms:
            self.stats += sample.arms["bild"].stats
            self.bild += sample.arms["bild"].seconds
            self.vanilla += sample.arms["vanilla"].seconds

    def __str__(self) -> str:
        if not self.bild:
            return ""
        return (
            f"speedup {self.vanilla / self.bild:.2f}x, "
            f"fallback {self.stats.fallback_rate:.1f}%, rollback {self.stats.rollback_rate:.1f}%"
        )


# ------------------------------------------------------------------------------ files


def read_samples(path: Path) -> list[SampleRecord]:
    """The examples in samples.jsonl; a line cut off by the end of a process is taken out."""
    return read_lines(path, SampleRecord.from_json)


def continue_samples(
    path: Path, decode: Callable[[int], Iterator[SampleRecord]]
) -> Iterator[SampleRecord]:
    """The examples in samples.jsonl, then those decoded from there on, each written down at once.

    Args:
        path: the file, made where it is missing.
        decode: yields the examples from the given number on.
    """
    known = read_samples(path)
    yield from known
    yield from write_lines(path, decode(len(known)))

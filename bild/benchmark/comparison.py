"""One benchmark: every case decoded by each arm in turn, timed, and written down.

The arms of `bild.benchmark.arms` run in one process, one after the other for each case, the first
of them rotating, so that a noisy or shared machine slows them alike. With each case the memory's
bandwidth and the steps of our own engines are measured again, for the same reason.

Cases come from a pair's task, or from a planted pair (`bild.benchmark.planted`); with `lengths`
each of them is decoded to several output lengths, for the growth of a token's time.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from bild.benchmark import costs
from bild.benchmark.arms import Arm, Case, Kit, Models, Outcome, make_arm
from bild.benchmark.planted import build_pair, configs, plan_outputs
from bild.checkpoints.identity import describe_model, short_path
from bild.checkpoints.loading import find_device, load_model, load_tokenizer
from bild.checkpoints.vocabulary import shared_vocab_size
from bild.config import BiLDConfig, EvalConfig
from bild.errors import BildError
from bild.evaluation import timing
from bild.evaluation.environment import environment, peak_memory
from bild.evaluation.folder import Identity, open_run
from bild.files import append_lines, check_writable, read_lines, write_json
from bild.generation.stats import DecodeStats
from bild.tasks import metrics
from bild.tasks.registry import PublishedRow, get
from bild.tasks.sources import locate

SCHEMA = 1

GREEDY = "greedy"  # the arm that others are compared with

EXCLUDED_FROM_TIME = ("loading", "tokenization", "detokenization", "scoring", "warm-up")


@dataclass(frozen=True)
class ComparisonConfig:
    """What to compare.

    Attributes:
        arms: full names of `bild.benchmark.arms`.
        bild: thresholds and variant of the BiLD arms.
        samples: sources to decode.
        task: whose data, prefix, metric and limits; for a planted pair, whose rates.
        large, small, tokenizer, data_file: instead of the task's.
        planted: a pair of `bild.benchmark.planted.PAIRS` instead of checkpoints.
        rates: of a planted pair, a recorded row.
        source_tokens: of a planted source; None for what is usual in the task.
        max_new_tokens: limit of an output; None for the task's. A planted output has its own end.
        lengths: output lengths to decode every source to; empty for its own end.
        device: "cpu", "cuda", "cuda:1", ...; "auto" for a GPU when there is one.
        threads: of the CPU; None for as many as torch takes.
        warmup: untimed cases before the first.
        seed: of planted weights and outputs.
    """

    arms: tuple[str, ...]
    bild: BiLDConfig
    samples: int
    task: str = "demo"
    large: str | None = None
    small: str | None = None
    tokenizer: str | None = None
    data_file: str | None = None
    planted: str | None = None
    rates: PublishedRow | None = None
    source_tokens: int | None = None
    max_new_tokens: int | None = None
    lengths: tuple[int, ...] = ()
    device: str = "auto"
    threads: int | None = None
    warmup: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "source_tokens", "max_new_tokens", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BildError(f"{name} must be at least 1, got {value}")
        if self.warmup < 0:
            raise BildError(f"warmup must be at least 0, got {self.warmup}")
        short = [length for length in self.lengths if length < 2]
        if short:
            raise BildError(f"an output length must be at least 2, got {short[0]}")
        assert (self.planted is None) == (self.rates is None)


@dataclass(frozen=True)
class Sample:
    """One case under all arms: a line of samples.jsonl.

    Attributes:
        index: of the case.
        source: of the source among the samples.
        length: the output length asked for; None for the output's own end.
        outcomes: of the arms that ran.
        failed: arms that could not, and why; they stay out from then on.
        ready_seconds: arms that were made just before: how long that and their warm-up took,
            compilation included.
        bytes_per_second: what the memory gave.
        steps: times of single steps, of arms that can tell.
    """

    index: int
    source: int
    length: int | None
    outcomes: dict[str, Outcome]
    failed: dict[str, str]
    ready_seconds: dict[str, float]
    bytes_per_second: float
    steps: dict[str, costs.StepTimes]

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Sample:
        fields = json.loads(line)
        outcomes = {name: Outcome.from_dict(o) for name, o in fields["outcomes"].items()}
        steps = {name: costs.StepTimes.from_dict(s) for name, s in fields["steps"].items()}
        return cls(**{**fields, "outcomes": outcomes, "steps": steps})


@dataclass(frozen=True)
class NumberedCase:
    """A case and its place: source number, output length, and what is planted or wanted there."""

    case: Case
    source: int
    length: int | None
    reference: str | None = None
    tokens: tuple[int, ...] | None = None  # the planted output
    stats: DecodeStats | None = None  # what BiLD does on the way, by plan


@dataclass(frozen=True)
class Lab:
    """Everything a benchmark needs, checked."""

    config: ComparisonConfig
    kit: Kit
    cases: list[NumberedCase]
    models: dict[str, Any]
    data: dict[str, Any]
    sizes: dict[str, costs.DecoderSize]
    tokenizer: PreTrainedTokenizerBase | None = None
    metric: str | None = None

    @property
    def identity(self) -> str:
        """A digest of all that decides the outputs: runs that share it can be continued."""
        versions = [torch.__version__, torch.get_num_threads(), SCHEMA]
        return _digest([asdict(self.config), self.models, self.data, *versions])


# ------------------------------------------------------------------------------ preparation


def prepare(config: ComparisonConfig, cache: Path) -> Lab:
    """Find or make models and cases.

    Args:
        config: what to compare.
        cache: a folder for converted models.

    Raises:
        BildError: whatever cannot be loaded or does not fit, by name and value.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = find_device(config.device)
    make = _task_lab if config.planted is None else _planted_lab
    return make(config, device, cache)


def _planted_lab(config: ComparisonConfig, device: torch.device, cache: Path) -> Lab:
    row = config.rates
    assert config.planted is not None
    assert row is not None
    assert row.fallback_rate is not None
    assert row.rollback_rate is not None
    assert row.mean_length is not None
    source_tokens = config.source_tokens
    if source_tokens is None:
        source_tokens = get(config.task).usual_source_tokens()
    length = max(config.lengths, default=round(row.mean_length))
    plans = plan_outputs(
        row.fallback_rate, row.rollback_rate, length, config.samples, config.bild, config.seed
    )
    shapes = configs(config.planted)
    ends = not config.lengths
    fallback = config.bild.fallback_threshold
    pair = build_pair(*shapes, plans, fallback, ends=ends, seed=config.seed)
    cases = []
    for number, output in enumerate(pair.outputs):
        for wanted in config.lengths or (None,):
            limit = length if wanted is None else wanted
            cases.append(
                NumberedCase(
                    Case(output.source(source_tokens), limit),
                    number,
                    wanted,
                    tokens=output.tokens[:limit],
                    stats=output.stats if limit == length else None,
                )
            )
    # Of all that decides the weights: their own last bits differ where threads share a sum.
    fingerprint = _digest(
        [
            [shape.to_dict() for shape in shapes],
            [plan.kinds for plan in plans],
            *(fallback, ends, config.seed, torch.__version__),
        ]
    )
    names = dict(zip(("large", "small"), config.planted.split("/"), strict=True))
    return Lab(
        config,
        Kit((pair.large, pair.small), config.bild, device, cache, fingerprint),
        cases,
        models={
            which: {
                "id": f"{name} (planted)",
                "fingerprint": fingerprint,
                "parameters": getattr(pair, which).num_parameters(),
            }
            for which, name in names.items()
        },
        data={
            "origin": f"simulated acceptance: rates recorded for {config.task}, {row.mode}",
            "fallback_rate": row.fallback_rate,
            "rollback_rate": row.rollback_rate,
            "source_tokens": source_tokens,
            "output_tokens": length,
        },
        sizes=_sizes((pair.large, pair.small)),
    )


def _task_lab(config: ComparisonConfig, device: torch.device, cache: Path) -> Lab:
    sources = locate(
        EvalConfig(
            config.task,
            "unaligned",
            config.bild,
            max_samples=config.samples,
            large=config.large,
            small=config.small,
            tokenizer=config.tokenizer,
            data_file=config.data_file,
            max_new_tokens=config.max_new_tokens,
        )
    )
    assert sources.small is not None
    task = sources.task
    tokenizer = load_tokenizer(sources.large, sources.small, sources.tokenizer)
    large, small = (load_model(n, torch.float32, "cpu") for n in (sources.large, sources.small))
    shared_vocab_size(large, small)
    cases = []
    for number, example in enumerate(sources.data.examples):
        ids = tokenizer(
            task.prefix + example.source,
            truncation=True,
            max_length=task.max_source_tokens,
            return_tensors="pt",
        )["input_ids"]
        for wanted in config.lengths or (None,):
            case = Case(ids, task.max_new_tokens) if wanted is None else Case(ids, wanted, True)
            reference = None if config.lengths else example.target
            cases.append(NumberedCase(case, number, wanted, reference))
    models = {
        "large": describe_model(sources.large, large),
        "small": describe_model(sources.small, small),
    }
    fingerprint = _digest([m["fingerprint"] for m in models.values()])
    return Lab(
        config,
        Kit((large, small), config.bild, device, cache, fingerprint),
        cases,
        models,
        data={
            "origin": short_path(sources.data.origin),
            "sha256": sources.data.sha256,
            "source_tokens": statistics.mean(c.case.input_ids.shape[1] for c in cases),
        },
        sizes=_sizes((large, small)),
        tokenizer=tokenizer,
        metric=None if config.lengths else task.metric,
    )


def _sizes(models: Models) -> dict[str, costs.DecoderSize]:
    return {n: costs.DecoderSize.of(m) for n, m in zip(("large", "small"), models, strict=True)}


def _digest(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


# ------------------------------------------------------------------------------ running


def compare(
    config: ComparisonConfig, output_dir: Path, *, progress: bool = True
) -> tuple[dict[str, Any], Path]:
    """Run a benchmark into a new folder of `output_dir`/benchmark; go on with an unfinished one.

    Every finished case is written at once. A run that was stopped goes on at the next call with the
    same settings, data and models.

    Args:
        config: what to compare.
        output_dir: where the run's folder is made.
        progress: show a progress bar.

    Returns:
        The record (`summarize`) and the path of its run.json.

    Raises:
        BildError: bad settings, data or models; an output folder that cannot be written; no arm
            that can run.
    """
    folder = output_dir / "benchmark"
    check_writable(folder)
    lab = prepare(config, folder / "ctranslate2")
    place = environment(lab.kit.device)
    env = asdict(place)
    with open_run(folder, Identity({"digest": lab.identity}, place.place())) as opened:
        run = opened.path
        samples = read_lines(run / "samples.jsonl", Sample.from_json)
        env["resumed_after"] = len(samples)
        bar = tqdm(
            total=len(lab.cases), initial=len(samples), desc="benchmark", unit="case",
            disable=not progress,
        )  # fmt: skip
        with bar:
            fresh = run_cases(lab, samples)
            for sample in append_lines(run / "samples.jsonl", fresh, Sample.to_json):
                samples.append(sample)
                bar.update()
        env["peak_memory"] = asdict(peak_memory(lab.kit.device))
        record = summarize(lab, samples, env)
        write_json(run / "run.json", record)
        opened.reported()
    return record, run / "run.json"


def run_cases(lab: Lab, done: Sequence[Sample]) -> Iterator[Sample]:
    """Decode the cases after those done with every arm that can, the first arm rotating."""
    cases = lab.cases[len(done) :]
    if not cases:
        return
    failed = {name: why for sample in done for name, why in sample.failed.items()}
    arms, ready = _make_arms(lab, failed)
    lab.kit.release()
    ceiling = costs.MemoryCeiling(lab.kit.device)
    for index, numbered in enumerate(cases, start=len(done)):
        if not arms:
            reasons = "; ".join(f"{name}: {why}" for name, why in failed.items())
            raise BildError(f"no arm can run: {reasons}")
        turn = (index + numbered.source) % len(arms)
        order = [*arms][turn:] + [*arms][:turn]
        outcomes = {}
        for name in order:
            try:
                outcomes[name] = arms[name].run(numbered.case)
            except Exception as error:  # whatever an engine may raise: its arm ends here
                failed[name] = _reason(error)
                del arms[name]
        steps = {} if lab.config.lengths else _measure_steps(arms, numbered.case)
        yield Sample(
            index,
            numbered.source,
            numbered.length,
            {name: outcomes[name] for name in lab.config.arms if name in outcomes},
            dict(failed),
            ready,
            ceiling.measure(),
            steps,
        )
        ready = {}


def _make_arms(lab: Lab, failed: dict[str, str]) -> tuple[dict[str, Arm], dict[str, float]]:
    """The arms, each of them warmed up, and the seconds that took; those that fail are noted."""
    arms: dict[str, Arm] = {}
    ready: dict[str, float] = {}
    warmup = lab.cases[: lab.config.warmup * max(1, len(lab.config.lengths))]
    # CTranslate2 first: it converts a copy, whose room the other arms' weights can then have.
    for name in sorted(lab.config.arms, key=lambda n: not n.startswith("ctranslate2")):
        if name in failed:
            continue
        start = time.perf_counter()
        try:
            arm = make_arm(name, lab.kit)
            for numbered in warmup:
                arm.run(numbered.case)
        except Exception as error:  # as above
            failed[name] = _reason(error)
            continue
        arms[name] = arm
        ready[name] = time.perf_counter() - start
    return {name: arms[name] for name in lab.config.arms if name in arms}, ready


def _measure_steps(arms: dict[str, Arm], case: Case) -> dict[str, costs.StepTimes]:
    steps = {}
    for name, arm in arms.items():
        decoders = arm.decoders()
        if decoders is not None:
            ids = case.input_ids.to(decoders[0].device)
            steps[name] = costs.measure_steps(*decoders, ids, prefix=case.max_new_tokens // 2)
    return steps


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    if isinstance(error, BildError):
        return lines[0]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# ------------------------------------------------------------------------------ figures


def summarize(lab: Lab, samples: Sequence[Sample], env: dict[str, Any]) -> dict[str, Any]:
    """The record of a finished run. Times are seconds, rates are per 100 generated tokens.

    Its parts: `config`, `models`, `data`, `env`; `memory` (bytes a second that were measured);
    `arms`, by name, or `growth` where output lengths were asked for; `costs`, of BiLD on each of
    our engines; `failed`, by name.
    """
    failed = samples[-1].failed
    names = [n for n in lab.config.arms if n not in failed]
    config = asdict(lab.config)
    config["bild"] = lab.config.bild.to_dict()
    for name in ("large", "small", "tokenizer", "data_file"):
        config[name] = short_path(config[name])
    ceiling = statistics.median(s.bytes_per_second for s in samples)
    record = {
        "schema": SCHEMA,
        "config": config,
        "models": lab.models,
        "data": {**lab.data, "samples": len({s.source for s in samples})},
        "env": env,
        "excluded_from_time": EXCLUDED_FROM_TIME,
        "memory": {"bytes_per_second": _spread([s.bytes_per_second for s in samples])},
        "failed": failed,
    }
    if lab.config.lengths:
        return {**record, "growth": {name: _growth(samples, name) for name in names}}
    arms = {name: _arm_figures(lab, samples, name, names, ceiling) for name in names}
    predicted = {
        name: _cost_figures(lab, samples, name, arms, ceiling)
        for name in names
        if name in samples[0].steps
    }
    return {**record, "arms": arms, "costs": predicted}


def _arm_figures(
    lab: Lab, samples: Sequence[Sample], name: str, names: Sequence[str], ceiling: float
) -> dict[str, Any]:
    outcomes = [s.outcomes[name] for s in samples]
    seconds = [o.seconds for o in outcomes]
    tokens = sum(len(o.tokens) for o in outcomes)
    encoders = [o.seconds - _decoding(o) for o in outcomes]
    inside = [sum(t.encoder + t.decoder for t in o.times.values()) for o in outcomes]
    figures: dict[str, Any] = {
        "seconds": _spread(seconds),
        "encoder_seconds": _spread(encoders),
        "tokens": tokens,
        "tokens_per_second": tokens / sum(seconds),
        "ready_seconds": next(s.ready_seconds[name] for s in samples if name in s.ready_seconds),
        # CTranslate2 does not let look into a step, so what is outside its model is not known.
        "overhead": None if name.startswith("ctranslate2") else 1 - sum(inside) / sum(seconds),
        "same_output": {
            other: _share(s.outcomes[other].tokens == s.outcomes[name].tokens for s in samples)
            for other in names
        },
        "models": {
            which: use
            for which in ("large", "small")
            if (use := _model_use(lab, outcomes, which, name, ceiling)) is not None
        },
    }
    for label, other in _references(name, names).items():
        against = [s.outcomes[other] for s in samples]
        figures[label] = {
            "to": other,
            **_ratio([o.seconds for o in against], seconds),
            "decoding": _ratio(*([_decoding(o) for o in part] for part in (against, outcomes))),
        }
    if outcomes[0].stats is not None and name.startswith("bild"):
        stats = sum((o.stats for o in outcomes if o.stats is not None), DecodeStats())
        figures["rates"] = {
            "fallback_rate": stats.fallback_rate,
            "rollback_rate": stats.rollback_rate,
            "large_forward_rate": stats.large_forward_rate,
            **asdict(stats),
        }
    if lab.metric is not None:
        assert lab.tokenizer is not None
        texts = lab.tokenizer.batch_decode([o.tokens for o in outcomes], skip_special_tokens=True)
        references = [r for s in samples if (r := lab.cases[s.index].reference) is not None]
        score = metrics.score(lab.metric, texts, references)
        low, high = metrics.bootstrap(lab.metric, texts, references)
        figures["quality"] = {**asdict(score), "low": low, "high": high}
    if lab.config.planted is not None and "small" not in name:
        planted = [lab.cases[s.index] for s in samples]
        figures["as_planned"] = _share(
            tuple(o.tokens) == p.tokens and ("rates" not in figures or o.stats == p.stats)
            for o, p in zip(outcomes, planted, strict=True)
        )
    return figures


def _decoding(outcome: Outcome) -> float:
    """Seconds without the encoders."""
    return outcome.seconds - sum(t.encoder for t in outcome.times.values())


def _ratio(baseline: Sequence[float], method: Sequence[float]) -> dict[str, float]:
    value, low, high = timing.speedup(baseline, method)
    return {"value": value, "low": low, "high": high}


def _model_use(
    lab: Lab, outcomes: Sequence[Outcome], which: str, name: str, ceiling: float
) -> dict[str, Any] | None:
    """How often a model ran, how long, and how fast it read its weights; None if it did not run."""
    times = [o.times[which] for o in outcomes if which in o.times]
    forwards = sum(t.forwards for t in times)
    if not forwards:
        return None
    tokens = [len(o.tokens) for o in outcomes]
    seconds = sum(t.decoder for t in times) / forwards
    precision = name.partition("@")[2]
    read = lab.sizes[which].bytes_read(
        precision, lab.data["source_tokens"], statistics.mean(tokens) / 2
    )
    return {
        "forward_rate": 100 * forwards / sum(tokens),
        "seconds_per_forward": seconds,
        "bytes_per_forward": read,
        "bytes_per_second": read / seconds,
        "of_ceiling": read / seconds / ceiling,
    }


def _references(name: str, names: Sequence[str]) -> dict[str, str]:
    """What an arm's seconds are compared with: the first greedy arm, and that of its precision."""
    precision = name.partition("@")[2]
    found = {}
    for label, wanted in (("ratio", f"{GREEDY}@"), ("ratio_same", f"{GREEDY}@{precision}")):
        other = next((n for n in names if n.startswith(wanted)), None)
        if other is not None:
            found[label] = other
    return found


def _cost_figures(
    lab: Lab, samples: Sequence[Sample], name: str, arms: dict[str, Any], ceiling: float
) -> dict[str, Any]:
    """Step times of an engine, what they and the rates predict, and the floor below it."""
    steps = costs.median_steps([s.steps[name] for s in samples])
    figures = arms[name]
    length = figures["tokens"] / len(samples)
    rates = lab.config.rates
    given = figures["rates"] if rates is None else asdict(rates)
    expected = costs.expect(given["fallback_rate"], given["rollback_rate"], length, lab.config.bild)
    precision = name.partition("@")[2]
    large, small = (
        lab.sizes[which].bytes_read(precision, lab.data["source_tokens"], length / 2)
        for which in ("large", "small")
    )
    predicted = costs.predict(expected, steps, length)
    measured = statistics.mean(s.outcomes[name].seconds for s in samples)
    floor = costs.floor(expected, large, small, ceiling)
    result = {
        "large_steps": {
            width: {"seconds": s, "of_ceiling": large / s / ceiling}
            for width, s in steps.large.items()
        },
        "small_step": {"seconds": steps.small, "of_ceiling": small / steps.small / ceiling},
        "encoders": steps.encoders,
        "expected_large_forward_rate": expected.large_forward_rate,
        "predicted_seconds": predicted,
        "measured_seconds": measured,
        "floor_seconds": steps.encoders + length * floor,
        "floor_seconds_per_token": floor,
    }
    if "ratio" in figures:
        other = figures["ratio"]["to"]
        baseline = statistics.mean(s.outcomes[other].seconds for s in samples)
        result["speedup"] = {
            "to": other,
            "predicted": baseline / predicted,
            "measured": baseline / measured,
            "floor": baseline / result["floor_seconds"],
        }
    return result


def _growth(samples: Sequence[Sample], name: str) -> dict[str, Any]:
    """Seconds a token by output length; `decoding` is without the encoders."""
    by_length: dict[int, dict[str, Any]] = {}
    for length in sorted({s.length for s in samples if s.length is not None}):
        outcomes = [s.outcomes[name] for s in samples if s.length == length]
        by_length[length] = {
            "seconds_per_token": _spread([o.seconds / len(o.tokens) for o in outcomes]),
            "decoding": _spread([_decoding(o) / len(o.tokens) for o in outcomes]),
        }
    medians = [figures["decoding"]["median"] for figures in by_length.values()]
    return {"lengths": by_length, "longest_over_shortest": medians[-1] / medians[0]}


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = (
        torch.tensor(values, dtype=torch.float64)
        .quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
        .tolist()
    )
    return {"median": median, "low": low, "high": high}


def _share(holds: Iterable[bool]) -> float:
    return statistics.mean(map(float, holds))

"""What a benchmark decodes, and with which models: a task's pair, or a planted one."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bild.benchmark.config import OF_TASKS, BenchmarkConfig
from bild.benchmark.costs import DecoderSize
from bild.benchmark.kit import Kit, Models
from bild.benchmark.plan import plan_outputs
from bild.benchmark.planted import PlantedOutput, build_pair, configs
from bild.checkpoints.identity import describe_model, short_path
from bild.checkpoints.loading import find_device, load_model, load_tokenizer
from bild.checkpoints.vocabulary import shared_vocab_size
from bild.config import EvalConfig
from bild.evaluation.arms import BatchCase, Case
from bild.evaluation.loop import Item
from bild.evaluation.record import DataIdentity, ModelIdentity
from bild.evaluation.record import Models as ModelIdentities
from bild.files import digest
from bild.generation.stats import DecodeStats
from bild.tasks.registry import get
from bild.tasks.sources import locate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Expected:
    """What is planted or wanted of an item.

    Attributes:
        source: number of its source among the samples.
        length: the output length asked for; None for the output's own end.
        tokens: the planted output; None of a task's pair.
        stats: what BiLD does on the way, by plan.
    """

    source: int
    length: int | None
    tokens: tuple[int, ...] | None = None
    stats: DecodeStats | None = None


@dataclass(frozen=True)
class Lab:
    """Everything a benchmark needs, checked.

    Attributes:
        config: what to put side by side.
        kit: the models.
        items, expected: what is decoded, and what is known of it; one of each a case.
        models, data: their identities.
        source_tokens: of a source, on average.
        sizes: of the decoders, "large" and "small".
        to_text: makes text of output tokens, for a metric; None where nothing is scored.
        metric: the task's.
    """

    config: BenchmarkConfig
    kit: Kit
    items: list[Item]
    expected: list[Expected]
    models: ModelIdentities
    data: DataIdentity
    source_tokens: float
    sizes: dict[str, DecoderSize]
    to_text: Callable[[Sequence[int]], str] | None = None
    metric: str | None = None


def prepare(config: BenchmarkConfig, cache: Path) -> Lab:
    """Find or make models and cases.

    Args:
        config: what to put side by side.
        cache: a folder for converted models.

    Raises:
        BildError: whatever cannot be loaded or does not fit, by name and value.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = find_device(config.device)
    make = _task_lab if config.planted is None else _planted_lab
    lab = make(config, device, cache)
    return in_batches(lab) if config.batch_sizes else lab


def in_batches(lab: Lab) -> Lab:
    """The same sources as one case for each batch size."""
    sources = tuple(item.case.input_ids for item in lab.items)
    limit = max(item.case.max_new_tokens for item in lab.items)
    items = [
        Item(
            f"{len(sources)} sources, {size} at a time",
            None,
            BatchCase(torch.cat(sources, 1), limit, sources=sources, batch_size=size),
        )
        for size in lab.config.batch_sizes
    ]
    expected = [Expected(number, None) for number in range(len(items))]
    return replace(lab, items=items, expected=expected, to_text=None, metric=None)


# ------------------------------------------------------------------------------ planted


def _planted_lab(config: BenchmarkConfig, device: torch.device, cache: Path) -> Lab:
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
    rates = row.fallback_rate, row.rollback_rate
    plans = plan_outputs(*rates, length, config.samples, config.bild, config.seed)
    shapes = configs(config.planted)
    ends, fallback = not config.lengths, config.bild.fallback_threshold
    pair = build_pair(
        *shapes, plans, fallback, ends=ends, guess_share=config.guess_share, seed=config.seed
    )
    items, expected = _planted_items(config, pair.outputs, source_tokens, length)
    # Of all that decides the weights: their own last bits differ where threads share a sum.
    kinds = [plan.kinds for plan in plans]
    shape_settings = [shape.to_dict() for shape in shapes]
    how = [fallback, ends, config.guess_share, config.seed, torch.__version__]
    fingerprint = digest([shape_settings, kinds, how])
    large, small = (
        ModelIdentity(f"{name} (planted)", None, fingerprint, model.num_parameters())
        for name, model in zip(config.planted.split("/"), (pair.large, pair.small), strict=True)
    )
    models = pair.large, pair.small
    return Lab(
        config,
        Kit(models, config.bild, device, cache, fingerprint),
        items,
        expected,
        models=ModelIdentities(large, {"small": small}),
        data=DataIdentity(
            origin=f"simulated acceptance: rates recorded for {config.task}, {row.mode}",
            revision=None,
            split="planted",
            samples=config.samples,
            available=config.samples,
            sha256=fingerprint,
        ),
        source_tokens=source_tokens,
        sizes=_sizes(models),
    )


def _planted_items(
    config: BenchmarkConfig, outputs: Sequence[PlantedOutput], source_tokens: int, length: int
) -> tuple[list[Item], list[Expected]]:
    items, expected = [], []
    for number, output in enumerate(outputs):
        for wanted in config.lengths or (None,):
            limit = length if wanted is None else wanted
            name = f"token {output.source_token}, {source_tokens} times"
            items.append(Item(name, None, Case(output.source(source_tokens), limit)))
            stats = output.stats if limit == length else None
            expected.append(Expected(number, wanted, output.tokens[:limit], stats))
    return items, expected


# ------------------------------------------------------------------------------ a task's pair


def _task_lab(config: BenchmarkConfig, device: torch.device, cache: Path) -> Lab:
    sources = locate(
        EvalConfig(
            config.task,
            "unaligned",
            config.bild,
            max_samples=config.samples,
            large=config.large,
            small=config.small,
            tokenizer=config.tokenizer,
            **{name: getattr(config, name) for name in OF_TASKS},
        )
    )
    assert sources.small is not None
    task, data = sources.task, sources.data
    tokenizer = load_tokenizer(sources.large, sources.small, sources.tokenizer)
    large, small = (load_model(n, torch.float32, "cpu") for n in (sources.large, sources.small))
    shared_vocab_size(large, small)
    items, expected, truncated = [], [], 0
    for number, example in enumerate(data.examples):
        ids, cut = _source(tokenizer, task.prefix + example.source, task.max_source_tokens)
        truncated += cut
        for wanted in config.lengths or (None,):
            case = Case(ids, task.max_new_tokens) if wanted is None else Case(ids, wanted, True)
            items.append(Item(example.source, example.target, case, cut))
            expected.append(Expected(number, wanted))
    identities = [
        ModelIdentity(**describe_model(name, model))
        for name, model in ((sources.large, large), (sources.small, small))
    ]
    scored = not config.lengths

    def to_text(tokens: Sequence[int]) -> str:
        text: str = tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    return Lab(
        config,
        Kit((large, small), config.bild, device, cache, digest([asdict(i) for i in identities])),
        items,
        expected,
        models=ModelIdentities(identities[0], {"small": identities[1]}),
        data=DataIdentity(
            origin=short_path(data.origin) or "",
            revision=data.revision,
            split=data.split,
            samples=len(data.examples),
            available=data.available,
            sha256=data.sha256,
            truncated_sources=truncated,
        ),
        source_tokens=statistics.mean(item.case.input_ids.shape[1] for item in items),
        sizes=_sizes((large, small)),
        to_text=to_text if scored else None,
        metric=task.metric if scored else None,
    )


def _source(tokenizer: PreTrainedTokenizerBase, text: str, limit: int) -> tuple[torch.Tensor, bool]:
    """Source tokens, (1, S), and whether they were cut to the limit."""
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    if ids.shape[1] <= limit:
        return ids, False
    cut = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")
    return cut["input_ids"], True


def _sizes(models: Models) -> dict[str, DecoderSize]:
    return {n: DecoderSize.of(m) for n, m in zip(("large", "small"), models, strict=True)}

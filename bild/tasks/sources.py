"""Where an evaluation's data and checkpoints are; found out before torch is even imported.

So that a missing network is told in a second, not after the libraries have loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from bild.checkpoints.hub import resolve_model, resolve_tokenizer
from bild.config import EvalConfig
from bild.tasks.data import LoadedData, load_examples
from bild.tasks.registry import Task, get


@dataclass(frozen=True)
class Sources:
    """What an evaluation reads.

    Attributes:
        task: the task, with the configuration's limits.
        data: its examples.
        large, small: checkpoints by name; no small one in mode "vanilla".
        tokenizer: its name; None for the one beside the large model.
    """

    task: Task
    data: LoadedData
    large: str
    small: str | None
    tokenizer: str | None


def locate(config: EvalConfig) -> Sources:
    """Load the data and find the checkpoints of an evaluation, without loading them.

    Raises:
        BildError: whatever is missing, by name, with the way out.
    """
    task, large, small, tokenizer = locate_models(config)
    data_file = None if config.data_file is None else Path(config.data_file)
    data = load_examples(task, config.max_samples, data_file)
    return Sources(task, data, large, small, tokenizer)


def locate_models(config: EvalConfig) -> tuple[Task, str, str | None, str | None]:
    """The task with the configuration's limits, and the names of large, small and tokenizer.

    As in `Sources`; the same errors, for the checkpoints alone.
    """
    task = get(config.task)
    limits = {n: getattr(config, n) for n in ("max_source_tokens", "max_new_tokens")}
    task = replace(task, **{n: v for n, v in limits.items() if v is not None})
    small = task.small_model(config.mode)
    if config.small is not None and config.mode != "vanilla":
        small = config.small
    large = task.large if config.large is None else config.large
    tokenizer = task.tokenizer if config.tokenizer is None else config.tokenizer
    for name in (large, small):
        if name is not None:
            resolve_model(name)
    resolve_tokenizer(large if tokenizer is None else tokenizer)
    return task, large, small, tokenizer

"""Where an evaluation's data and checkpoints are; found out before torch is even imported.

So that a missing network is told in a second, not after the libraries have loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from bild.checkpoints.names import EARLY_EXIT, Checkpoint, resolve_model, resolve_tokenizer
from bild.config import EvalConfig
from bild.errors import BildError
from bild.tasks.data import LoadedData, load_examples
from bild.tasks.registry import Task, get
from bild.tasks.words import bleu_by


@dataclass(frozen=True)
class Models:
    """The checkpoints of an evaluation, found once and for all.

    Attributes:
        task: the task, with the configuration's own keys, prefix, metric and limits.
        large, small: the pair; no small one in mode "vanilla".
        tokenizer: the one named by the configuration or the task; None for the one beside the
            large model, with which the small model's own must agree.
    """

    task: Task
    large: Checkpoint
    small: Checkpoint | None
    tokenizer: Checkpoint | None


@dataclass(frozen=True)
class Sources(Models):
    """What an evaluation reads.

    Attributes:
        data: the task's examples.
    """

    data: LoadedData


def locate(config: EvalConfig) -> Sources:
    """Load the data and find the checkpoints of an evaluation, without loading them.

    Raises:
        BildError: whatever is missing, by name, with the way out.
    """
    models = locate_models(config)
    data_file = None if config.data_file is None else Path(config.data_file)
    target_file = None if config.target_file is None else Path(config.target_file)
    data = load_examples(models.task, config.max_samples, data_file, target_file)
    if config.data_revision is not None and data.revision is None:
        raise BildError(
            f"the revision {config.data_revision!r} of the data was asked for, but they come from "
            f"{data.origin}, which has none; leave it out"
        )
    return Sources(models.task, models.large, models.small, models.tokenizer, data)


OWN = ("source_key", "target_key", "prefix", "metric", "max_source_tokens", "max_new_tokens")


def locate_models(config: EvalConfig) -> Models:
    """Find the checkpoints of an evaluation, without its data; the errors of `locate`."""
    task = get(config.task)
    own = {name: getattr(config, name) for name in OWN}
    task = replace(task, **{n: v for n, v in own.items() if v is not None})
    if config.bleu_tokenize is not None:
        task = replace(task, metric=bleu_by(config.bleu_tokenize, task.metric))
    if config.data_revision is not None and task.data is not None:
        task = replace(task, data=replace(task.data, revision=config.data_revision))
    if config.small is None or config.mode == "vanilla":
        small = task.small_model(config.mode)
    else:
        small = config.small
    tokenizer = task.tokenizer if config.tokenizer is None else config.tokenizer
    named = task.large if config.large is None else config.large
    if named is None:
        raise BildError(f"{task.name} has no large model of its own; give it with --large")
    large = resolve_model(named)
    found = Models(
        task,
        large,
        small=None if small is None else _small(small, large),
        tokenizer=None if tokenizer is None else resolve_tokenizer(tokenizer),
    )
    if tokenizer is None:
        resolve_tokenizer(large)  # there must be one
    return found


def _small(name: str, large: Checkpoint) -> Checkpoint:
    """The small model; one that is a part of the large model is where that is."""
    return resolve_model(name) if EARLY_EXIT.fullmatch(name) is None else replace(large, name=name)

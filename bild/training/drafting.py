"""Training a drafter (`bild.checkpoints.drafter`) from a large model alone.

The large model writes the targets, if it is to; then the drafter's distribution is drawn to the
large one's at every position, in part on outputs that the drafter has written itself
(`OnPolicyTrainer`). The large model stays as it is: its encoder's states are what both read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bild.checkpoints.drafter import BiLDDrafter, hand_over, make_drafter
from bild.checkpoints.identity import describe_model
from bild.checkpoints.loading import load_model
from bild.checkpoints.names import Checkpoint, CheckpointName, resolve_model
from bild.errors import BildError
from bild.files import check_writable
from bild.tasks.data import LoadedData, checksum, load_file
from bild.training.alignment import OnPolicyTrainer
from bild.training.config import DrafterOptions, LabelConfig, OnPolicyConfig, TrainingJob
from bild.training.labelling import label
from bild.training.trainer import train


def train_drafter(
    large: CheckpointName,
    job: TrainingJob,
    options: DrafterOptions,
    labels: LabelConfig,
    config: OnPolicyConfig,
) -> dict[str, Any]:
    """Train a drafter for a large model; started again, it goes on where it stopped.

    Args:
        large: folder or hub id of the large model.
        job: the training; `init_from` names a drafter to go on with, of this large model or of
            another of the same width.
        options: the drafter's shape, and what it is trained on.
        labels: how the large model writes the targets.
        config: divergence, and how often the drafter writes its own targets.

    Returns:
        The facts of the training, see `bild.training.trainer.train`; their losses are divergences,
        in nats per token.

    Raises:
        BildError: a large model whose encoder no drafter can read; as `label` and `train`.
    """
    if job.preset.best_by is not None:
        raise BildError(
            f"best_by={job.preset.best_by!r} would let the drafter write without its large model; "
            "a drafter keeps its last checkpoint: --best-by last"
        )
    found = resolve_model(large)
    teacher = load_model(found, torch.float32, "cpu")
    check_writable(job.output_dir)
    data = _targets(found, job, options, labels)
    method = {
        "name": "drafter",
        "large_model": describe_model(found, teacher),
        **asdict(options),
        **asdict(config),
    }
    return train(
        replace(job, train=data, method=method),
        make_trainer=partial(OnPolicyTrainer, teacher=teacher, config=config),
        make_model=partial(_start, large=teacher, options=options),
    )


def _targets(
    large: Checkpoint, job: TrainingJob, options: DrafterOptions, labels: LabelConfig
) -> LoadedData:
    """The sources with the targets that are trained on."""
    if options.train_on == "references":
        return job.train
    output = job.output_dir / "calibration.jsonl"
    label(large, job.train, output, labels, tokenizer=job.tokenizer)
    written = load_file(output, labels.source_key, labels.target_key, "train")
    if options.train_on == "outputs":
        return written
    examples = (*job.train.examples, *written.examples)
    return replace(written, examples=examples, available=len(examples), sha256=checksum(examples))


def _start(
    job: TrainingJob,
    tokenizer: PreTrainedTokenizerBase,
    *,
    large: PreTrainedModel,
    options: DrafterOptions,
) -> BiLDDrafter:
    """The drafter that training starts from: a checkpoint, or one made of the large model."""
    if job.init_from is None:
        return make_drafter(
            large, options.layers, options.feed_width, shortlist(job, tokenizer, options.shortlist)
        )
    model = load_model(job.init_from, torch.float32, "cpu")
    if not isinstance(model, BiLDDrafter):
        raise BildError(
            f"{job.init_from!r} is a {model.config.model_type}, not a drafter; leave --init-from "
            "out, or use another --method"
        )
    hand_over(model, large)  # most of what it knows holds for a large model that was trained on
    return model


def shortlist(
    job: TrainingJob, tokenizer: PreTrainedTokenizerBase, size: int | None
) -> Tensor | None:
    """The most frequent token ids of the training's targets, ascending; None for all.

    The end of a sequence is always among them.
    """
    if size is None:
        return None
    counts: Counter[int] = Counter()
    targets = [example.target for example in job.train.examples]
    for start in range(0, len(targets), 1000):
        rows = tokenizer(text_target=targets[start : start + 1000])["input_ids"]
        counts.update(token for row in rows for token in row)
    return torch.tensor(sorted(token for token, _ in counts.most_common(size)))

"""What a training reads: its whole training set in the order of training, and its validation set.

The order depends on the seed alone, so that a training that goes on, or is shared by more
processes, sees the same batches.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.trainer_pt_utils import get_length_grouped_indices

from bild.training.config import TrainingJob
from bild.training.corpus import Pair, concatenate


def tokenize_pairs(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, job: TrainingJob
) -> tuple[Dataset, list[int]]:
    """A data set of input_ids and labels, and each pair's length (source + target tokens)."""
    limit = job.max_length if job.max_source_length is None else job.max_source_length
    sources = [job.prefix + source for source, _ in pairs]
    targets = [target for _, target in pairs]
    inputs = tokenizer(sources, truncation=True, max_length=limit)["input_ids"]
    labels = tokenizer(text_target=targets, truncation=True, max_length=job.max_length)["input_ids"]
    lengths = [len(i) + len(t) for i, t in zip(inputs, labels, strict=True)]
    return Dataset.from_dict({"input_ids": inputs, "labels": labels}), lengths


def training_set(job: TrainingJob, tokenizer: PreTrainedTokenizerBase) -> tuple[int, Dataset]:
    """(lines of one pass, all lines of the training in its order).

    The lines of each batch are of similar lengths.
    """
    preset = job.preset
    batch = preset.batch_size * preset.accumulation
    examples = batch * preset.max_steps
    pairs = [(e.source, e.target) for e in job.train.examples]
    order: list[int] = []
    passes = 0
    if preset.concatenate:
        lines: list[Pair] = []
        while len(lines) < examples:
            lines += concatenate(pairs, seed=job.seed + passes)
            passes += 1
        tokens, lengths = tokenize_pairs(lines[:examples], tokenizer, job)
        order = list(range(examples))
        one_pass = len(lines) // passes
    else:
        tokens, lengths = tokenize_pairs(pairs, tokenizer, job)
        while len(order) < examples:
            shuffled = list(range(len(pairs)))
            random.Random(job.seed + passes).shuffle(shuffled)
            order += shuffled
            passes += 1
        del order[examples:]
        one_pass = len(pairs)
    generator = torch.Generator().manual_seed(job.seed)
    grouped = get_length_grouped_indices([lengths[i] for i in order], batch, generator=generator)
    return one_pass, tokens.select([order[i] for i in grouped])


def validation_set(
    job: TrainingJob, tokenizer: PreTrainedTokenizerBase
) -> tuple[Dataset, list[str]]:
    """(lines, longest first, so that batches are of similar lengths; their references)."""
    pairs = [(e.source, e.target) for e in job.validation.examples]
    if job.preset.concatenate:
        pairs = concatenate(pairs, seed=job.seed)
    tokens, lengths = tokenize_pairs(pairs, tokenizer, job)
    order = sorted(range(len(pairs)), key=lengths.__getitem__, reverse=True)
    return tokens.select(order), [pairs[i][1] for i in order]

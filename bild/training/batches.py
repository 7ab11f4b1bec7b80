"""What a training reads: its whole training set in the order of training, and its validation set.

The order depends on the seed alone, so that a training that goes on, or is shared by more
processes, sees the same batches.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from transformers import PreTrainedTokenizerBase
from transformers.trainer_pt_utils import get_length_grouped_indices

from bild.training.config import TrainingJob
from bild.training.corpus import Pair, concatenate

BLOCK = 1000  # pairs tokenized at a time: tokens in Python's lists take ten times their room
TOKENS = Features({name: List(Value("int32")) for name in ("input_ids", "labels")})


def tokenize_pairs(
    pairs: Iterable[Pair], tokenizer: PreTrainedTokenizerBase, job: TrainingJob
) -> tuple[Dataset, list[int]]:
    """A data set of input_ids and labels, and each pair's length (source + target tokens)."""
    limit = job.max_length if job.max_source_length is None else job.max_source_length
    blocks: list[Dataset] = []
    lengths: list[int] = []
    left = iter(pairs)
    while block := list(islice(left, BLOCK)):
        sources = [job.prefix + source for source, _ in block]
        targets = [target for _, target in block]
        inputs = tokenizer(sources, truncation=True, max_length=limit)["input_ids"]
        labels = tokenizer(text_target=targets, truncation=True, max_length=job.max_length)
        tokens = {"input_ids": inputs, "labels": labels["input_ids"]}
        blocks.append(Dataset.from_dict(tokens, features=TOKENS))
        lengths += (len(i) + len(t) for i, t in zip(*tokens.values(), strict=True))
    return concatenate_datasets(blocks), lengths


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
        sizes: list[int] = []  # lines of each pass
        lines = _concatenated(pairs, examples, job.seed, sizes)
        tokens, lengths = tokenize_pairs(lines, tokenizer, job)
        order = list(range(examples))
        one_pass = sum(sizes) // len(sizes)
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


def _concatenated(pairs: list[Pair], count: int, seed: int, sizes: list[int]) -> Iterator[Pair]:
    """So many lines, of one pass after the other; `sizes` is told how many each would have."""
    while sum(sizes) < count:
        lines = concatenate(pairs, seed=seed + len(sizes))
        left = count - sum(sizes)
        sizes.append(len(lines))
        yield from lines[:left]


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

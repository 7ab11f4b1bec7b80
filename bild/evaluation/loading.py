"""What every kind of run loads: the models on their engines, the tokenizer, a source's tokens."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from bild.checkpoints.loading import find_device, load_model, load_tokenizer
from bild.config import EvalConfig
from bild.generation.pair import BiLDModel
from bild.generation.single import SingleModel
from bild.tasks.sources import Models


def load_runner(
    config: EvalConfig, found: Models
) -> tuple[BiLDModel | SingleModel, PreTrainedTokenizerBase]:
    """The pair on its engine, or the large model alone, and the tokenizer that fits.

    Raises:
        BildError: whatever cannot be loaded or does not fit, by name and value.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device, dtype = find_device(config.device), getattr(torch, config.dtype)
    tokenizer = load_tokenizer(found.large, found.small, found.tokenizer)
    large = load_model(found.large, dtype, device)
    options: Any = {n: getattr(config, n) for n in ("engine", "precision", "compile")}
    if found.small is None:
        return SingleModel(large, tokenizer=tokenizer, **options), tokenizer
    small = load_model(found.small, dtype, device)
    options["small_precision"] = config.small_precision
    return BiLDModel(large, small, tokenizer=tokenizer, **options), tokenizer


def source_tokens(
    tokenizer: PreTrainedTokenizerBase, text: str, limit: int
) -> tuple[torch.Tensor, int]:
    """The tokens of a source that are read, (1, S) with S at most `limit`, and how many it has."""
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    length = ids.shape[1]
    if length > limit:
        cut = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")
        ids = cut["input_ids"]
    return ids, length

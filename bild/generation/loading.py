"""What every kind of run loads: the models on their engines, the tokenizer, a source's tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bild.checkpoints.early_exit import load_small
from bild.checkpoints.loading import find_device, load_model, load_tokenizer
from bild.config import EvalConfig
from bild.errors import BildError
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
    small = None if found.small is None else load_small(found.small, large, dtype, device)
    if config.forced_bos is not None:
        force_first_token((large, small), tokenizer, config.forced_bos)
    options: Any = {n: getattr(config, n) for n in ("engine", "precision", "compile")}
    if small is None:
        return SingleModel(large, tokenizer=tokenizer, **options), tokenizer
    options["small_precision"] = config.small_precision
    return BiLDModel(large, small, tokenizer=tokenizer, **options), tokenizer


def force_first_token(
    models: Iterable[PreTrainedModel | None], tokenizer: PreTrainedTokenizerBase, token: str
) -> None:
    """Let every output begin with a token, as with the target language of NLLB and mBART.

    Args:
        models: whose settings are changed.
        tokenizer: knows the token.
        token: as the tokenizer writes it.

    Raises:
        BildError: no token of the tokenizer.
    """
    number = tokenizer.convert_tokens_to_ids(token)
    if number is None or number == tokenizer.unk_token_id:
        raise BildError(
            f"forced_bos {token!r} is no token of the tokenizer; languages are written as in its "
            "additional special tokens"
        )
    for model in models:
        if model is not None and model.generation_config is not None:
            model.generation_config.forced_bos_token_id = number


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

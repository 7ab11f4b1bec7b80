"""Whether two models speak of the same tokens."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bild.checkpoints.drafter import BiLDDrafter, check_large
from bild.errors import BildError

# Embeddings are padded to a multiple of this (mT5: 250,112 rows for 250,100 tokens).
PADDING_MULTIPLE = 128

SPECIAL_TOKENS = ("decoder_start_token_id", "eos_token_id", "pad_token_id")


def shared_vocab_size(large: PreTrainedModel, small: PreTrainedModel) -> int:
    """The number of token ids both models score, after checking that they can be a pair.

    Rows that only pad an embedding may differ: then both models score the ids they share, and a
    warning says so, for nothing in a model tells padding from tokens added to it.

    Raises:
        BildError: not encoder-decoder models, on different devices, or different vocabularies
            or special tokens; both values are named.
    """
    for name, model in (("large", large), ("small", small)):
        if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            kind = type(model).__name__
            raise BildError(f"the {name} model must be an encoder-decoder model, got {kind}")
    if isinstance(small, BiLDDrafter):
        check_large(small, large)
    devices = input_device(large), input_device(small)
    if devices[0] != devices[1]:
        raise BildError(
            f"both models must be on one device, got {devices[0]} (large) and {devices[1]} "
            "(small); move one with .to()"
        )
    rows = [output_rows(m) for m in (large, small)]
    if abs(rows[0] - rows[1]) >= PADDING_MULTIPLE:
        raise BildError(
            f"the models' vocabularies differ: {rows[0]} tokens (large) and {rows[1]} (small); "
            "a pair must share one tokenizer"
        )
    if rows[0] != rows[1]:
        more, other = ("large", "small") if rows[0] > rows[1] else ("small", "large")
        warnings.warn(
            f"the {more} model has {max(rows)} token ids and the {other} one {min(rows)}: ids from "
            f"{min(rows)} on are never written, which is right only where they are padding; tokens "
            "that were added to one model belong into both",
            stacklevel=2,
        )
    for name in SPECIAL_TOKENS:
        ids = [_special_token(m, name) for m in (large, small)]
        if ids[0] != ids[1]:
            raise BildError(
                f"the models' {name} differ: {ids[0]} (large) and {ids[1]} (small); "
                "a pair must share one tokenizer"
            )
    return min(rows)


def output_rows(model: PreTrainedModel) -> int:
    """The number of token ids a model scores, padding rows included.

    Raises:
        BildError: it scores none.
    """
    if isinstance(model, BiLDDrafter):
        return int(model.config.vocab_size)
    weight = getattr(model.get_output_embeddings(), "weight", None)
    if callable(weight):  # of torch's own quantized layers
        weight = weight()
    if weight is None:
        raise BildError(
            f"a {type(model).__name__} has no head that scores tokens, so that it cannot generate; "
            "load it with AutoModelForSeq2SeqLM"
        )
    return int(weight.shape[0])


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model takes its inputs: where its weights are, or, of weights that accelerate keeps
    elsewhere until they are needed, where it computes.

    Raises:
        BildError: the weights are not loaded.
    """
    for parameter in model.parameters():
        if parameter.device.type != "meta":
            return parameter.device
    for module in model.modules():
        device = getattr(vars(module).get("_hf_hook"), "execution_device", None)
        if device is not None:
            return torch.device(device)
    raise BildError(
        f"the weights of this {type(model).__name__} are on the meta device: they were not loaded"
    )


def check_tokenizers(large: PreTrainedTokenizerBase, small: PreTrainedTokenizerBase) -> None:
    """Refuse two tokenizers that give one id to different tokens."""
    names = [{i: t for t, i in tok.get_vocab().items()} for tok in (large, small)]
    if len(names[0]) != len(names[1]):
        raise BildError(
            f"the models' tokenizers differ: {len(names[0])} tokens (large) and "
            f"{len(names[1])} (small); a pair must share one tokenizer"
        )
    for i, token in names[0].items():
        if names[1].get(i) != token:
            raise BildError(
                f"the models' tokenizers differ: id {i} is {token!r} (large) and "
                f"{names[1].get(i)!r} (small); a pair must share one tokenizer"
            )


def check_tokenizer_size(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Refuse a tokenizer that has more tokens than a model or a pair knows (`rows`)."""
    if len(tokenizer) > rows:
        raise BildError(
            f"the tokenizer has {len(tokenizer)} tokens of which only {rows} are known to the "
            "model; name the tokenizer of its training by --tokenizer"
        )


def _special_token(model: PreTrainedModel, name: str) -> Any:
    value = getattr(model.generation_config, name, None)
    return getattr(model.config, name, None) if value is None else value

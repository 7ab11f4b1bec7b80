"""Whether two models speak of the same tokens."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bild.errors import BildError

# Embeddings are padded to a multiple of this (mT5: 250,112 rows for 250,100 tokens).
PADDING_MULTIPLE = 128

SPECIAL_TOKENS = ("decoder_start_token_id", "eos_token_id", "pad_token_id")


def shared_vocab_size(large: PreTrainedModel, small: PreTrainedModel) -> int:
    """The number of token ids both models score, after checking that they can be a pair.

    Rows that only pad an embedding may differ: then both models score the ids they share.

    Raises:
        BildError: not encoder-decoder models, on different devices, or different vocabularies
            or special tokens; both values are named.
    """
    for name, model in (("large", large), ("small", small)):
        if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            kind = type(model).__name__
            raise BildError(f"the {name} model must be an encoder-decoder model, got {kind}")
    if large.device != small.device:
        raise BildError(
            f"both models must be on one device, got {large.device} (large) and {small.device} "
            "(small); move one with .to()"
        )
    rows = [m.get_output_embeddings().weight.shape[0] for m in (large, small)]
    if abs(rows[0] - rows[1]) >= PADDING_MULTIPLE:
        raise BildError(
            f"the models' vocabularies differ: {rows[0]} tokens (large) and {rows[1]} (small); "
            "a pair must share one tokenizer"
        )
    for name in SPECIAL_TOKENS:
        ids = [_special_token(m, name) for m in (large, small)]
        if ids[0] != ids[1]:
            raise BildError(
                f"the models' {name} differ: {ids[0]} (large) and {ids[1]} (small); "
                "a pair must share one tokenizer"
            )
    return min(rows)


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

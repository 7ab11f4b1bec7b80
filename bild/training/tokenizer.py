"""A tokenizer for a pair that starts from nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from transformers import PreTrainedTokenizerBase, T5Tokenizer

from bild.errors import BildError


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> PreTrainedTokenizerBase:
    """Train a SentencePiece unigram model and save it as a T5 tokenizer in `folder`.

    Ids follow T5: 0 pad, 1 end of sequence, 2 unknown; no sentinel tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prefix = folder / "spiece"
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_prefix=str(prefix),
            vocab_size=vocab_size,
            model_type="unigram",
            character_coverage=0.9998,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise BildError(f"cannot train a tokenizer of {vocab_size} tokens: {error}") from error
    prefix.with_suffix(".vocab").unlink()
    tokenizer = T5Tokenizer.from_pretrained(folder, extra_ids=0)
    prefix.with_suffix(".model").unlink()
    tokenizer.save_pretrained(folder)
    return tokenizer

"""A tokenizer for a pair that starts from nothing."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from transformers import PreTrainedTokenizerBase, T5Tokenizer

from bild.errors import BildError
from bild.files import check_writable, moved_when_done


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> PreTrainedTokenizerBase:
    """Train a SentencePiece unigram model and save it as a T5 tokenizer in `folder`.

    Ids follow T5: 0 pad, 1 end of sequence, 2 unknown; no sentinel tokens.

    Raises:
        BildError: the texts are too few, or too many, for so many tokens; or a folder that cannot
            be written.
    """
    check_writable(folder)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
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
    with moved_when_done(folder) as scratch:
        spiece = scratch / "spiece.model"
        spiece.write_bytes(model.getvalue())
        tokenizer = T5Tokenizer.from_pretrained(scratch, extra_ids=0)
        spiece.unlink()
        tokenizer.save_pretrained(scratch)
    return tokenizer

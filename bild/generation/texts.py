"""Text in, text out: a tokenizer, loaded when it is needed, and how long an output may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bild.checkpoints.loading import load_tokenizer
from bild.checkpoints.names import CheckpointName
from bild.checkpoints.vocabulary import check_tokenizer_size
from bild.errors import BildError

NEW_TOKENS = 128  # where nobody has said how long the output of a text may be
LIMITS = ("max_new_tokens", "max_length", "generation_config")


class TokenizerHolder:
    """The tokenizer of a model or a pair, if it has one.

    Args:
        rows: token ids that the models know.
        tokenizer: to begin with.
        checkpoints: where there is one; it is loaded when it is first asked for.
    """

    def __init__(
        self,
        rows: int,
        tokenizer: PreTrainedTokenizerBase | None = None,
        checkpoints: tuple[CheckpointName, ...] = (),
    ) -> None:
        self.rows, self.checkpoints = rows, checkpoints
        self._tokenizer: PreTrainedTokenizerBase | None = None
        if tokenizer is not None:
            self.put(tokenizer)

    def put(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take a tokenizer.

        Raises:
            BildError: it is none, or has more tokens than the models know.
        """
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            kind = type(tokenizer).__name__
            raise BildError(f"tokenizer must be one of transformers' tokenizers, got a {kind}")
        check_tokenizer_size(tokenizer, self.rows)
        self._tokenizer = tokenizer

    def find(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer, loaded if it has to be; None where none is known of.

        Raises:
            BildError: it cannot be loaded, or is not that of the models.
        """
        if self._tokenizer is None and self.checkpoints:
            self.put(load_tokenizer(*self.checkpoints))
        return self._tokenizer


def check_texts(given: Any) -> list[str]:
    """A text, or several in a list or a tuple; several are returned.

    Raises:
        BildError: anything else.
    """
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list | tuple):
        raise BildError(f"a pair is called with a text or a list of texts, got {given!r}")
    for text in texts:
        if not isinstance(text, str):
            raise BildError(f"a pair is called with texts, and got {text!r} in its list")
    return list(texts)


def written_texts(tokenizer: PreTrainedTokenizerBase, output: Any) -> Any:
    """The text of an output of one source; a list of texts where several were sampled."""
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in output.sequences]
    return texts[0] if len(texts) == 1 else texts


def default_limit(model: PreTrainedModel, given: Mapping[str, Any]) -> dict[str, int]:
    """`NEW_TOKENS`, if neither a call nor its model has a limit: transformers' is 20 tokens."""
    own = model.generation_config
    limits = (*(given.get(name) for name in LIMITS), own.max_new_tokens, own.max_length)
    return {"max_new_tokens": NEW_TOKENS} if all(limit is None for limit in limits) else {}


def describe(model: PreTrainedModel) -> str:
    """A model's class and size, for people."""
    parameters = sum(p.numel() for p in model.parameters())
    size = f"{parameters / 1e6:.1f} M" if parameters >= 100_000 else str(parameters)
    return f"{type(model).__name__} of {size} parameters"

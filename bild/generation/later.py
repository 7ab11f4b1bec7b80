"""A decoder of a model that may have nothing to do: neither lent nor read for until it is needed.

Where drafting rests, the small model does not come into most outputs, and asking its engine for a
session takes time too: it looks whether the weights are still the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from bild.engines import Decoder, Draft, Verdict
from bild.policy import FallbackRule

COUNTS = ("length", "forwards", "tokens_fed")


class LaterDecoder(Decoder):
    """Stands for a decoder that `ready` asks for.

    What is not here, as an engine's own attributes, is the other's.

    Args:
        lend: gives the decoder, which has read the source.
        name, vocab_size: of the decoder.
    """

    def __init__(self, lend: Callable[[], Decoder], name: str, vocab_size: int) -> None:
        self._lend = lend
        self._lent: Decoder | None = None
        self.name, self.vocab_size = name, vocab_size

    def __getattr__(self, name: str) -> Any:
        lent: Decoder | None = vars(self).get("_lent")
        if lent is not None:
            return getattr(lent, name)
        if name in COUNTS:
            return 0
        raise AttributeError(f"{name} of a decoder that is not ready")

    def ready(self) -> None:
        if self._lent is None:
            self._lent = lent = self._lend()
            self.encoder_seconds, self.encoder_outputs = lent.encoder_seconds, lent.encoder_outputs

    @property
    def _own(self) -> Decoder:
        self.ready()
        assert self._lent is not None
        return self._lent

    @property
    def device(self) -> torch.device:
        return self._own.device

    @property
    def company(self) -> Any:
        return None if self._lent is None else self._lent.company

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None, **inputs: Any) -> Any:
        return self._own.encode(input_ids, attention_mask, **inputs)

    def begin(self, encoder_outputs: Any, attention_mask: Tensor | None) -> None:
        self._own.begin(encoder_outputs, attention_mask)

    def feed(self, tokens: Sequence[int]) -> Tensor:
        return self._own.feed(tokens)

    def draft(
        self,
        pending: Sequence[int],
        limit: int,
        rule: FallbackRule,
        eos_token_ids: Collection[int] = (),
    ) -> Draft:
        return self._own.draft(pending, limit, rule, eos_token_ids)

    def verify(
        self,
        pending: Sequence[int],
        drafted: Sequence[int],
        first_row: int = 0,
        needs: Collection[str] = (),
    ) -> Verdict:
        return self._own.verify(pending, drafted, first_row, needs)

    def rollback_to(self, length: int) -> None:
        if self._lent is not None:
            self._lent.rollback_to(length)

    def release(self) -> None:
        if self._lent is not None:
            self._lent.release()

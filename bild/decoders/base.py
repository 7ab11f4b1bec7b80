"""What the decoding loop asks of a model: feed, roll back, and nothing about its cache.

Letters used for shapes: S source tokens, T fed tokens, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Decoder(ABC):
    """An encoder-decoder model with the KV cache of ONE sequence.

    The cache is addressed by lengths alone: `feed` appends to it, `rollback_to` cuts it.

    Attributes:
        name: "large" or "small", for messages.
        vocab_size: V, the number of token ids this decoder scores.
        length: decoder tokens whose keys and values are cached.
        forwards: calls of `feed` since `begin`.
        tokens_fed: tokens fed since `begin`.
    """

    name: str
    vocab_size: int
    length: int
    forwards: int
    tokens_fed: int

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the logits lie."""

    @abstractmethod
    def encode(self, input_ids: Tensor, attention_mask: Tensor | None) -> Any:
        """Run the encoder over a source of shape (1, S); the result is for `begin`."""

    @abstractmethod
    def begin(self, encoder_outputs: Any, attention_mask: Tensor | None) -> None:
        """Start a new sequence: an empty cache, counters at zero."""

    @abstractmethod
    def feed(self, tokens: Sequence[int]) -> Tensor:
        """Feed T >= 1 tokens after those cached and return their logits, (T, V).

        Row i scores the token that follows `tokens[i]`.
        """

    @abstractmethod
    def rollback_to(self, length: int) -> None:
        """Forget every cached token after the first `length`; no-op when not longer."""

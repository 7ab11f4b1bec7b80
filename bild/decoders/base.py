"""What the decoding loop asks of a model: feed, roll back, and nothing about its cache.

Letters used for shapes: S source tokens, T fed tokens, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bild import policy


class Verdict(NamedTuple):
    """What the large model says of T drafted tokens.

    Attributes:
        tokens: its own choice at each drafted position, and at the one after them if that was
            scored.
        scores: the scores of those choices; NaN where the model is damaged.
        distances: T values, its distance from each drafted token in nats (`policy.distances`).
    """

    tokens: list[int]
    scores: list[float]
    distances: list[float]


class Decoder(ABC):
    """An encoder-decoder model with the KV cache of ONE sequence.

    The cache is addressed by lengths alone: `feed` appends to it, `rollback_to` cuts it. `draft`
    and `verify` are the two uses of `feed` that BiLD makes; an engine that can do without the
    logits in Python overrides them.

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

    def draft(
        self,
        pending: Sequence[int],
        limit: int,
        threshold: float,
        eos_token_ids: Collection[int] = (),
    ) -> tuple[list[int], list[float]]:
        """Feed `pending`, then write greedily until unsure, at the end, or at the limit.

        Args:
            pending: the tokens after those cached, at least one.
            limit: tokens to write at most.
            threshold: a token whose probability is below it is not written, and writing ends.
            eos_token_ids: writing ends with one of these.

        Returns:
            The tokens written (not all fed: the last one is not), and the probabilities: one for
            each, and one more of the token that was not written where there is such a token.
            Writing also ends at a probability that is NaN.
        """
        tokens: list[int] = []
        probabilities: list[float] = []
        while len(tokens) < limit:
            token, probability = policy.top_token(self.feed(pending)[-1])
            probabilities.append(probability)
            if policy.should_fall_back(probability, threshold) or probability != probability:
                break
            tokens.append(token)
            if token in eos_token_ids:
                break
            pending = [token]
        return tokens, probabilities

    def verify(self, pending: Sequence[int], drafted: Sequence[int], first_row: int = 0) -> Verdict:
        """Feed `pending` in ONE forward and judge the drafted tokens by its logits.

        Args:
            pending: the tokens after those cached, at least one.
            drafted: T >= 0 tokens.
            first_row: the row of the logits that scores the first drafted token; as many rows
                as there are drafted tokens start there, or one more.
        """
        rows = self.feed(pending)[first_row:]  # (T or T + 1, V)
        return judge(rows, rows, drafted)


def judge(scores: Tensor, raw: Tensor, drafted: Sequence[int]) -> Verdict:
    """The verdict on T drafted tokens, from the scores (T or T + 1, V) and their raw logits."""
    best = scores.max(-1)
    asked = torch.tensor(drafted, dtype=torch.long, device=raw.device)
    distances = policy.distances(raw[: len(drafted)], asked)
    # One transfer for all three: float64 holds a token id exactly.
    n = len(scores)
    parts = (best.indices.double(), best.values.double(), distances.double())
    values = torch.cat(parts).tolist()
    return Verdict([int(v) for v in values[:n]], values[n : 2 * n], values[2 * n :])

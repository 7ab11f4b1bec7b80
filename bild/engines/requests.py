"""What the decoding loop asks of a decoder, as values: of one alone, or of several together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, TypeAlias

from torch import Tensor

from bild.engines.base import Decoder, Draft, Verdict
from bild.policy import FallbackRule


class FeedRequest(NamedTuple):
    """`Decoder.feed`."""

    decoder: Decoder
    tokens: Sequence[int]

    def alone(self) -> Tensor:
        return self.decoder.feed(self.tokens)


class DraftRequest(NamedTuple):
    """`Decoder.draft`."""

    decoder: Decoder
    pending: Sequence[int]
    limit: int
    rule: FallbackRule
    eos_token_ids: Collection[int]

    def alone(self) -> Draft:
        return self.decoder.draft(self.pending, self.limit, self.rule, self.eos_token_ids)


class VerifyRequest(NamedTuple):
    """`Decoder.verify`."""

    decoder: Decoder
    pending: Sequence[int]
    drafted: Sequence[int]
    first_row: int

    def alone(self) -> Verdict:
        return self.decoder.verify(self.pending, self.drafted, self.first_row)


Request: TypeAlias = FeedRequest | DraftRequest | VerifyRequest

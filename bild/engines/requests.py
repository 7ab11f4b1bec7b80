"""What the decoding loop asks of a decoder, as values: of one alone, or of several together.

Decoders that have a `Company` in common are asked together: one forward feeds the tokens of all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Collection, Generator, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from bild.engines.base import Decoder, Draft, Verdict, check_ids, drafting, judge
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
    needs: Collection[str] = ()

    def alone(self) -> Verdict:
        return self.decoder.verify(self.pending, self.drafted, self.first_row, self.needs)


class RoundsRequest(NamedTuple):
    """`NativeRounds.run`: whole rounds of one output, by a pair that can make them in one call."""

    rounds: Any
    at_least: int
    least_chance: float

    @property
    def decoder(self) -> Decoder:
        large: Decoder = self.rounds.large
        return large

    def alone(self) -> list[int]:
        written: list[int] = self.rounds.run(self.at_least, self.least_chance)
        return written


Request: TypeAlias = FeedRequest | DraftRequest | VerifyRequest | RoundsRequest


LATER = object()  # in the place of an answer: it goes on when it is asked again


class Company(ABC):
    """Decoders of one model that one forward can serve, each with its own source and cache.

    Whatever it answers a decoder is what that decoder would have answered alone.
    """

    @abstractmethod
    def feed(self, asked: Sequence[FeedRequest]) -> list[Tensor]:
        """`Decoder.feed` of each."""

    def rounds(self, asked: Sequence[RoundsRequest]) -> list[Any]:
        """What each request's `alone` returns; `LATER` for those that have not been given all they
        ask for, and are to be asked again. At least one has."""
        raise NotImplementedError  # who makes rounds alone makes them together

    def draft(self, asked: Sequence[DraftRequest]) -> list[Draft]:
        """`Decoder.draft` of each: they step together, and one that stops leaves."""
        drafts: dict[int, Draft] = {}
        writing = {i: _drafting(request) for i, request in enumerate(asked)}
        logits: dict[int, Any] = dict.fromkeys(writing)  # what each is sent; None to begin with
        while writing:
            feeds: dict[int, FeedRequest] = {}
            for i in list(writing):
                try:
                    feeds[i] = FeedRequest(asked[i].decoder, writing[i].send(logits[i]))
                except StopIteration as end:
                    drafts[i] = end.value
                    del writing[i]
            logits = dict(zip(feeds, self.feed(list(feeds.values())), strict=True)) if feeds else {}
        return [drafts[i] for i in range(len(asked))]

    def verify(self, asked: Sequence[VerifyRequest]) -> list[Verdict]:
        """`Decoder.verify` of each."""
        for request in asked:
            check_ids(request.drafted, request.decoder.vocab_size, "scored tokens")
        fed = self.feed([FeedRequest(request.decoder, request.pending) for request in asked])
        rows = [logits[r.first_row :] for r, logits in zip(asked, fed, strict=True)]
        return [judge(own, own, r.drafted, r.needs) for r, own in zip(asked, rows, strict=True)]


def _drafting(asked: DraftRequest) -> Generator[Sequence[int], Tensor, Draft]:
    ends = asked.eos_token_ids
    return drafting(asked.pending, asked.limit, asked.rule, ends=lambda token: token in ends)


class Effort:
    """Forwards that requests take, from here on.

    Args:
        asked: the requests, of which each decoder makes one.
    """

    def __init__(self, asked: Sequence[Request]) -> None:
        self._before = [(r.decoder, r.decoder.forwards, r.decoder.tokens_fed) for r in asked]

    def so_far(self) -> tuple[int, int]:
        """Forwards, each once however many decoders it served, and tokens fed, of all."""
        made: defaultdict[Any, int] = defaultdict(int)
        tokens = 0
        for i, (decoder, forwards, fed) in enumerate(self._before):
            company = decoder.company
            # Those of one company step together: as many forwards as who needs most.
            key = i if company is None else company
            made[key] = max(made[key], decoder.forwards - forwards)
            tokens += decoder.tokens_fed - fed
        return sum(made.values()), tokens


def answer(asked: Sequence[Request]) -> list[Any]:
    """What each request's `alone` returns, from as few forwards as the decoders allow.

    Of requests for rounds some may not be answered yet, which `LATER` says.
    """
    groups: defaultdict[Any, list[int]] = defaultdict(list)
    for i, request in enumerate(asked):
        company = request.decoder.company
        beside = request.rounds.small.company if isinstance(request, RoundsRequest) else None
        groups[(type(request), i if company is None else company, beside)].append(i)
    answers: list[Any] = [None] * len(asked)
    for (kind, company, _), places in groups.items():
        found = _together(kind, company, [asked[i] for i in places])
        for i, reply in zip(places, found, strict=True):
            answers[i] = reply
    return answers


def _together(kind: type, company: Any, asked: Sequence[Any]) -> Sequence[Any]:
    if kind is RoundsRequest and (len(asked) > 1 or asked[0].rounds.is_under_way):
        rounds: Sequence[Any] = company.rounds(asked)
        return rounds
    if len(asked) == 1:  # it need not be put together
        return [asked[0].alone()]
    assert isinstance(company, Company)
    if kind is FeedRequest:
        return company.feed(asked)
    return company.draft(asked) if kind is DraftRequest else company.verify(asked)

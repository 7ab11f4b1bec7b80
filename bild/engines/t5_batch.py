"""Several sequences of one T5 in one forward, in torch and in machine code.

Products with weights are made of the tokens of all, one behind the other, so that weights are read
once; attention is each sequence's own, over its own cache. No sequence is padded.

Letters used for shapes: T fed tokens, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from bild.checkpoints.drafter import spread
from bild.engines.base import Draft, Verdict, check_ids
from bild.engines.requests import (
    LATER,
    Company,
    DraftRequest,
    FeedRequest,
    RoundsRequest,
    VerifyRequest,
)
from bild.engines.t5_native import NativeStack, Room, buffer, dear_measures, ints, padded
from bild.engines.t5_rules import native_fallback
from bild.engines.t5_structs import CAsk, CRounds, CTogether, Double, Int
from bild.engines.t5_torch import feed_together

FORWARD = 512  # tokens of a forward of rounds that outputs share, if not one of them alone has more


class TorchCompany(Company):
    """Decoders on sessions of one decoder stack in torch."""

    def feed(self, asked: Sequence[FeedRequest]) -> list[Tensor]:
        decoders: list[Any] = [request.decoder for request in asked]
        tokens = [request.tokens for request in asked]
        fed = feed_together([d.session for d in decoders], [d.length for d in decoders], tokens)
        for decoder, own in zip(decoders, tokens, strict=True):
            decoder.count(len(own))
        return fed


class NativeCompany(Company):
    """Decoders on sessions of one decoder stack in machine code.

    Args:
        stack: the weights.
        vocab_size: V, of all decoders.
    """

    def __init__(self, stack: NativeStack, vocab_size: int) -> None:
        self._library = stack.library
        self._vocab_size, self._shortlist = vocab_size, stack.weights.shortlist
        self._rows = stack.weights.rows(vocab_size)  # of the head
        self._stride = padded(self._rows)  # of rows of logits
        self._all = CTogether()
        self._scratch, self._logits = Room(), Room()
        self._lock = Lock()  # one forward at a time has the memory

    def feed(self, asked: Sequence[FeedRequest]) -> list[Tensor]:
        asks = self._asks([r.decoder for r in asked], [r.tokens for r in asked])
        counts = [len(r.tokens) for r in asked]
        logits = buffer(sum(counts), self._stride)
        with self._lock:
            self._make_room(asked, asks, rows=0)
            self._all.logits = logits.data_ptr()
            self._library.bild_t5_feed_together(self._all, asks, len(asks))
        for request, count in zip(asked, counts, strict=True):
            decoder: Any = request.decoder
            decoder.count(count)
        scores = logits[:, : self._rows]
        if self._shortlist is not None:
            scores = spread(scores, self._shortlist[: self._rows], self._vocab_size)
        return list(torch.split(scores, counts))

    def draft(self, asked: Sequence[DraftRequest]) -> list[Draft]:
        rules = [native_fallback(request.rule) for request in asked]
        if any(rule is None for rule in rules):
            return super().draft(asked)
        asks = self._asks(
            [r.decoder for r in asked], [r.pending for r in asked], [r.limit for r in asked]
        )
        for ask, request, rule in zip(asks, asked, rules, strict=True):
            ask.limit, ask.fallback = request.limit, rule
            ask.eos, ask.eos_count = ints(request.eos_token_ids), len(request.eos_token_ids)
            ask.tokens, ask.probabilities = (Int * request.limit)(), (Double * request.limit)()
        with self._lock:
            self._make_room(asked, asks, rows=len(asks))
            self._library.bild_t5_draft_together(self._all, asks, len(asks))
        return [_draft_of(r, ask) for r, ask in zip(asked, asks, strict=True)]

    def verify(self, asked: Sequence[VerifyRequest]) -> list[Verdict]:
        if self._shortlist is not None:  # t5.cpp verifies with whole heads alone
            return super().verify(asked)
        for request in asked:
            check_ids(request.drafted, self._vocab_size, "scored tokens")
        asks = self._asks([r.decoder for r in asked], [r.pending for r in asked])
        for ask, request in zip(asks, asked, strict=True):
            rows = ask.count - request.first_row
            ask.first_row = request.first_row
            ask.drafted, ask.drafted_count = ints(request.drafted), len(request.drafted)
            ask.tokens, ask.probabilities = (Int * rows)(), (Double * rows)()
            ask.distances = (Double * len(request.drafted))()
            entropies, ranks = dear_measures(request.needs, len(request.drafted))
            if entropies:
                ask.entropies = entropies
            if ranks:
                ask.ranks = ranks
        with self._lock:
            self._make_room(asked, asks, rows=sum(a.count - a.first_row for a in asks))
            self._library.bild_t5_verify_together(self._all, asks, len(asks))
        return [_verdict_of(r, ask) for r, ask in zip(asked, asks, strict=True)]

    def rounds(self, asked: Sequence[RoundsRequest]) -> list[Any]:
        made = [request.rounds for request in asked]
        for rounds, request in zip(made, asked, strict=True):
            if not rounds.is_under_way:
                rounds.begin(request.at_least, request.least_chance)
        structs = (ctypes.POINTER(CRounds) * len(made))(*(ctypes.pointer(m.struct) for m in made))
        small: NativeCompany = made[0].small.company
        widths = [rounds.widest for rounds in made]
        tokens = max(*widths, min(FORWARD, sum(widths)))
        # Nobody takes them in another order: a model's company is that of large or of small ones.
        with self._lock, small._lock:
            for company, sessions in (
                (self, [rounds.large.session for rounds in made]),
                (small, [rounds.small.session for rounds in made]),
            ):
                positions = max(session.positions for session in sessions)
                company._take_room(sessions[0].struct, tokens, positions, rows=tokens)
            self._library.bild_t5_rounds_together(self._all, small._all, structs, len(made))
        return [rounds.end() if rounds.is_done else LATER for rounds in made]

    def _asks(
        self, decoders: Sequence[Any], pending: Sequence[Sequence[int]], more: Sequence[int] = ()
    ) -> Any:
        """An array of what each decoder is to be fed, with room for `more` tokens after that."""
        asks = (CAsk * len(decoders))()
        for i, (decoder, own) in enumerate(zip(decoders, pending, strict=True)):
            asks[i] = decoder.session.ask(decoder.length, own, more[i] if more else 0)
        return asks

    def _make_room(self, asked: Sequence[Any], asks: Any, rows: int) -> None:
        """Memory for a forward of all tokens, and for `rows` of logits."""
        tokens = sum(ask.count for ask in asks)
        positions = max(request.decoder.session.positions for request in asked)
        self._take_room(asks[0].model, tokens, positions, rows)

    def _take_room(self, model: Any, tokens: int, positions: int, rows: int) -> None:
        """Memory for a forward of so many tokens of a model, and for `rows` of logits."""
        self._all.tokens, self._all.positions = tokens, positions
        floats = self._library.bild_t5_together_floats(model, tokens, positions)
        self._all.scratch = self._scratch.address(floats)
        self._all.logits = self._logits.address(rows * self._stride)


def _draft_of(request: DraftRequest, ask: CAsk) -> Draft:
    """What was drafted, once it is counted as the decoder's."""
    kept, forwards = ask.written_count, ask.forwards
    if forwards:
        decoder: Any = request.decoder
        decoder.count(ask.count + forwards - 1, forwards)
    unsure = ask.tokens[kept] if forwards > kept else None
    return Draft(ask.tokens[:kept], ask.probabilities[:forwards], unsure)


def _verdict_of(request: VerifyRequest, ask: CAsk) -> Verdict:
    """The verdict, once its forward is counted as the decoder's."""
    decoder: Any = request.decoder
    decoder.count(ask.count)
    rows = ask.count - ask.first_row
    drafts = len(request.drafted)
    return Verdict(
        *(ask.tokens[:rows], ask.probabilities[:rows], ask.distances[:drafts], None),
        ask.entropies[:drafts] if "entropies" in request.needs and drafts else (),
        ask.ranks[:drafts] if "ranks" in request.needs and drafts else (),
    )

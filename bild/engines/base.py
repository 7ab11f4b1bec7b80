"""What the decoding loop asks of a model: feed, roll back, and nothing about its cache.

Letters used for shapes: S source tokens, T fed tokens, V vocabulary.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from bild.engines.measures import distances_from, entropies, spread, top_token
from bild.errors import BildError
from bild.policy import FallbackRule, Step, Window

Q = TypeVar("Q")
A = TypeVar("A")
R = TypeVar("R")


class Draft(NamedTuple):
    """What one model wrote on its own.

    Attributes:
        tokens: the tokens written (not all fed: the last one is not).
        probabilities: one for each of them, and one more for `unsure`.
        unsure: the token at which writing ended and that was not written, because its
            probability does not satisfy the rule, or is NaN; None where there is no such token.
    """

    tokens: list[int]
    probabilities: list[float]
    unsure: int | None


class Verdict(NamedTuple):
    """What the large model says of T drafted tokens.

    Attributes:
        tokens: its own choice at each drafted position, and at the one after them if that was
            scored.
        probabilities: those of its choices; NaN where the model is damaged.
        distances: T values, its distance from each drafted token in nats (`distances_from`).
        own: T values, its distance from its own choices, likewise, where logits processors changed
            its scores; None where it is that of `probabilities`.
        entropies, ranks: as of `bild.policy.Window`; empty unless asked for (`judge`).
    """

    tokens: list[int]
    probabilities: list[float]
    distances: list[float]
    own: list[float] | None = None
    entropies: Sequence[float] = ()
    ranks: Sequence[int] = ()

    def window(
        self, drafted: Sequence[int], confidences: Sequence[float], spent: float = 0.0
    ) -> Window:
        """What a rule is told of the drafted tokens; arguments as of `bild.policy.Window`."""
        own = self.own
        if own is None:
            own = [-math.log(p) if p else math.inf for p in self.probabilities[: len(drafted)]]
        return Window(
            *(drafted, self.tokens, self.distances, own, confidences, spent),
            *(self.entropies, self.ranks),
        )


class Decoder(ABC):
    """An encoder-decoder model with the KV cache of ONE sequence.

    A source goes in by `read`. The cache is addressed by lengths alone: `feed` appends to it,
    `rollback_to` cuts it. `draft` and `verify` are the two uses of `feed` that BiLD makes; an
    engine that can do without the logits in Python overrides them.

    Attributes:
        name: "large" or "small", for messages.
        vocab_size: V, the number of token ids this decoder scores.
        length: decoder tokens whose keys and values are cached.
        forwards: calls of `feed` since `begin`.
        tokens_fed: tokens fed since `begin`.
        encoder_seconds: wall-clock seconds of the last `read`: the encoder, where it had to run,
            and whatever is prepared of its states.
        encoder_outputs: what the last `read` had of the encoder.
        has_encoder: whether it can `encode`; a drafter cannot, and reads what a large model's
            encoder makes of the source.
    """

    name: str
    vocab_size: int
    length: int
    forwards: int
    tokens_fed: int
    encoder_seconds: float = 0.0
    encoder_outputs: Any = None
    has_encoder: bool = True
    _unread: Callable[[], None] | None = None

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the logits lie."""

    def read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        **inputs: Any,
    ) -> None:
        """Start a new sequence over a source: `encode`, then `begin`.

        Args:
            input_ids: source tokens, (1, S).
            attention_mask: (1, S), 0 for padding and anything else for tokens; None for no
                padding.
            encoder_outputs: of this source, where they are there already; None to run the encoder.
            **inputs: what else the encoder reads, by its own keywords.

        Raises:
            BildError: a mask of another shape, or one that keeps no token.
        """
        if attention_mask is not None:
            check_mask(attention_mask, input_ids)
        start = self._now()
        if encoder_outputs is None:
            encoder_outputs = self.encode(input_ids, attention_mask, **inputs)
        self.encoder_outputs = encoder_outputs
        self.begin(encoder_outputs, attention_mask)
        self.encoder_seconds = self._now() - start

    def read_later(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        **inputs: Any,
    ) -> None:
        """`read` when somebody asks for it by `ready`, which may be never."""
        self._unread = partial(self.read, input_ids, attention_mask, encoder_outputs, **inputs)
        self.length = self.forwards = self.tokens_fed = 0
        self.encoder_seconds = 0.0

    def ready(self) -> None:
        """Read the source that waits to be read, if one does."""
        unread, self._unread = self._unread, None
        if unread is not None:
            unread()

    def _now(self) -> float:
        """Wall-clock seconds, once a GPU has done what it was given."""
        if self.device.type == "cuda":
            # Not the whole device: another thread may be recording a graph on it.
            torch.cuda.current_stream(self.device).synchronize()
        return time.perf_counter()

    @property
    def company(self) -> Any:
        """What this decoder shares with those that can be asked in one forward with it
        (`bild.engines.requests.Company`); None where each has a forward of its own."""
        return None

    def release(self) -> None:  # noqa: B027 (most have borrowed nothing)
        """Give back what the engine lent for this decoder, which must not be used afterwards."""

    @abstractmethod
    def encode(self, input_ids: Tensor, attention_mask: Tensor | None, **inputs: Any) -> Any:
        """Run the encoder over a source of shape (1, S); the result is for `begin`.

        Args:
            input_ids, attention_mask, **inputs: as `read`'s.
        """

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
        rule: FallbackRule,
        eos_token_ids: Collection[int] = (),
    ) -> Draft:
        """Feed `pending`, then write greedily until unsure, at the end, or at the limit.

        Args:
            pending: the tokens after those cached, at least one.
            limit: tokens to write at most.
            rule: says whether a token is written or ends the draft. An engine may have a faster
                way for the rules that it knows.
            eos_token_ids: writing ends with one of these.
        """
        return draft_tokens(
            self.feed, pending, limit, rule, ends=lambda token: token in eos_token_ids
        )

    def verify(
        self,
        pending: Sequence[int],
        drafted: Sequence[int],
        first_row: int = 0,
        needs: Collection[str] = (),
    ) -> Verdict:
        """Feed `pending` in ONE forward and judge the drafted tokens by its logits.

        Args:
            pending: the tokens after those cached, at least one.
            drafted: T >= 0 tokens.
            first_row: the row of the logits that scores the first drafted token; as many rows
                as there are drafted tokens start there, or one more.
            needs: what else is to be told, of `bild.policy.DEAR_MEASURES`.
        """
        check_ids(drafted, self.vocab_size, "scored tokens")
        rows = self.feed(pending)[first_row:]  # (T or T + 1, V)
        return judge(rows, rows, drafted, needs)


def states_for(small: Decoder, large: Decoder, own: Any = None, *, shared: bool = False) -> Any:
    """What a small model is given of a source that a large one has read; None: it encodes it.

    Args:
        small, large: the pair.
        own: what the small model's encoder has made of the source already, if it has one.
        shared: whether both have one encoder, as in early exit.
    """
    if not small.has_encoder or (shared and own is None):
        return large.encoder_outputs
    return own


def draft_tokens(
    feed: Callable[[Sequence[int]], Tensor],
    pending: Sequence[int],
    limit: int,
    rule: FallbackRule,
    ends: Callable[[int], bool],
    process: Callable[[Tensor], Tensor] | None = None,
) -> Draft:
    """`drafting` with `feed`, a decoder's."""
    return drive(drafting(pending, limit, rule, ends, process), feed)


def drafting(
    pending: Sequence[int],
    limit: int,
    rule: FallbackRule,
    ends: Callable[[int], bool],
    process: Callable[[Tensor], Tensor] | None = None,
) -> Generator[Sequence[int], Tensor, Draft]:
    """The drafting loop (paper, Algorithm 1, lines 4 to 8); see `Decoder.draft`.

    It yields the tokens to feed, and is sent their logits (T, V).

    Args:
        pending, limit, rule: as `Decoder.draft`'s.
        ends: told of each token that is written; whether writing ends with it.
        process: makes of the raw logits (V,) after all tokens so far the scores that are read.
    """
    tokens: list[int] = []
    probabilities: list[float] = []
    product = 1.0
    while len(tokens) < limit:
        raw = (yield pending)[-1]
        scores = raw if process is None else process(raw)
        token, probability = top_token(scores)
        probabilities.append(probability)
        product *= probability
        step = Step(probability, product)
        if rule.needs:
            step = step._replace(**dict(zip(("entropy", "margin"), spread(scores), strict=True)))
        if rule.should_stop(step) or math.isnan(probability):
            return Draft(tokens, probabilities, unsure=token)
        tokens.append(token)
        if ends(token):
            break
        pending = [token]
    return Draft(tokens, probabilities, unsure=None)


def drive(steps: Generator[Q, A, R], answer: Callable[[Q], A]) -> R:
    """Answer all that `steps` asks, one question after the other; what it comes to."""
    reply: Any = None  # the first thing that a generator is sent
    while True:
        try:
            question = steps.send(reply)
        except StopIteration as end:
            result: R = end.value
            return result
        reply = answer(question)


def check_mask(mask: Tensor, input_ids: Tensor) -> None:
    """Refuse an attention mask that does not fit its source, or that hides all of it."""
    if mask.shape != input_ids.shape:
        raise BildError(
            f"attention_mask must have the shape of input_ids, {tuple(input_ids.shape)}, "
            f"got {tuple(mask.shape)}"
        )
    if not bool((mask != 0).any()):
        raise BildError(
            "attention_mask hides every token of the source; give at least one token, "
            "if only the end-of-sequence token"
        )


def check_ids(tokens: Sequence[int], known: int, what: str) -> None:
    """Refuse token ids that are not among the `known` first ones; `what` those are, in words."""
    for token in tokens:
        if not 0 <= token < known:
            raise BildError(f"token id {token} is not one of the model's {known} {what}")


def judge(
    scores: Tensor, raw: Tensor, drafted: Sequence[int], needs: Collection[str] = ()
) -> Verdict:
    """The verdict on T drafted tokens, from the scores (T or T + 1, V) and their raw logits.

    Args:
        scores: after the logits processors: what the large model chooses by.
        raw: before; distances, entropies and ranks are theirs.
        drafted: the tokens.
        needs: what else is to be told, of `bild.policy.DEAR_MEASURES`.
    """
    drafts = len(drafted)
    floats = scores.float()
    best, normalizers = floats.max(-1), floats.logsumexp(-1)
    asked = torch.tensor(drafted, dtype=torch.long, device=raw.device)
    same = raw is scores
    known = normalizers[:drafts] if same else None
    distances = distances_from(raw[:drafts], asked, known)
    # One transfer for all: float64 holds a token id exactly.
    parts = [best.indices.double(), (normalizers - best.values).double(), distances.double()]
    if not same:
        parts.append(distances_from(raw[:drafts], best.indices[:drafts]).double())
    if needs:
        logits = raw[:drafts].float()
        parts.append(entropies(logits.log_softmax(-1)).double())
        parts.append((logits > logits.gather(-1, asked[:, None])).sum(-1).double())
    values, ends = torch.cat(parts).tolist(), accumulate(len(part) for part in parts)
    tokens, gaps, *rest = (values[e - len(p) : e] for e, p in zip(ends, parts, strict=True))
    verdict = Verdict([int(v) for v in tokens], [math.exp(-v) for v in gaps], rest[0])
    if not same:
        verdict = verdict._replace(own=rest[1])
    if needs:
        verdict = verdict._replace(entropies=rest[-2], ranks=[int(v) for v in rest[-1]])
    return verdict

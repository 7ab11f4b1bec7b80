"""Who wrote which token: what `generate(..., output_trace=True)` returns, and how it is recorded.

The decoding loop tells a `Recorder` of every draft and every verdict. `SILENT` keeps nothing;
`TraceRecorder` makes a `Trace` of what it hears.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any, Literal, get_args

from bild.engines import Decoder, Draft, Verdict
from bild.errors import BildError

Fate = Literal["kept", "rolled back", "unsure"]


@dataclass(frozen=True)
class TracedToken:
    """A token that a model proposed, and what became of it.

    Attributes:
        token: its id.
        position: its place in the output, 0 for the first generated token.
        writer: the model that proposed it, "large" or "small".
        confidence: that model's own probability of it, after the logits processors.
        forward: the place in `Trace.forwards` of the forward that proposed it.
        fate: "kept" in the output; "rolled back" with the draft by the large model; or "unsure",
            thrown away at once because its probability was below the fallback threshold.
        distance: the large model's distance from a drafted token, in nats, `-log p_L`, of its
            raw logits; None where the large model did not look at it.
        replaced_by: where the token is not kept, the place in `Trace.tokens` of the large
            model's token that came instead.
    """

    token: int
    position: int
    writer: str
    confidence: float
    forward: int
    fate: Fate = "kept"
    distance: float | None = None
    replaced_by: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.confidence <= 1:
            raise BildError(f"confidence must be a probability, got {self.confidence!r}")
        if self.fate not in get_args(Fate):
            raise BildError(f"fate must be one of {', '.join(get_args(Fate))}, got {self.fate!r}")


@dataclass(frozen=True)
class Forward:
    """One decoder forward.

    Attributes:
        model: the model, "large" or "small".
        tokens_fed: tokens it was fed.
        seconds: wall clock, up to the token or the verdict being known. The forwards of one
            draft share its time evenly, for an engine may make them in one go. No part of
            equality.
    """

    model: str
    tokens_fed: int
    seconds: float = field(compare=False)


@dataclass(frozen=True)
class Rollback:
    """Drafted tokens that the large model took back, and its token that stands there instead."""

    removed: tuple[TracedToken, ...]
    replacement: TracedToken


@dataclass(frozen=True)
class Trace:
    """How one output came to be.

    Attributes:
        tokens: every token that was proposed, in the order of proposal.
        forwards: every decoder forward, in order.
    """

    tokens: tuple[TracedToken, ...]
    forwards: tuple[Forward, ...]

    @property
    def kept(self) -> tuple[TracedToken, ...]:
        """The tokens of the output, in order, the prompt excluded."""
        return tuple(t for t in self.tokens if t.fate == "kept")

    @property
    def rollbacks(self) -> tuple[Rollback, ...]:
        """What was rolled back, in order."""
        groups: dict[int, list[TracedToken]] = {}
        for token in self.tokens:
            if token.fate == "rolled back":
                assert token.replaced_by is not None
                groups.setdefault(token.replaced_by, []).append(token)
        return tuple(Rollback(tuple(group), self.tokens[i]) for i, group in groups.items())

    def seconds(self, model: str | None = None) -> float:
        """Seconds in the decoder forwards of one model, or of all."""
        return sum(f.seconds for f in self.forwards if model is None or f.model == model)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; an infinite distance becomes the string "inf"."""
        fields = asdict(self)
        for token in fields["tokens"]:
            token["distance"] = "inf" if token["distance"] == math.inf else token["distance"]
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Trace:
        """The inverse of `to_dict`.

        Raises:
            BildError: an unknown or missing field, or a value outside its range.
        """
        try:
            tokens = [dict(t) for t in fields["tokens"]]
            for token in tokens:
                token["distance"] = math.inf if token["distance"] == "inf" else token["distance"]
            return cls(
                tuple(TracedToken(**t) for t in tokens),
                tuple(Forward(**f) for f in fields["forwards"]),
            )
        except (KeyError, TypeError) as error:
            raise BildError(f"not a trace: {error}") from None


class Recorder:
    """What the decoding loop tells, in the order in which it happens. This one keeps nothing."""

    def starts(self, decoder: Decoder) -> None:
        """A model is about to draft or to verify."""

    def drafted(self, draft: Draft) -> None:
        """It has drafted."""

    def verified(self, verdict: Verdict, cut: int | None, commits: bool) -> None:
        """It has looked at all that was drafted since the last verdict.

        Args:
            verdict: what it said.
            cut: the drafted token at which the output is cut, if it is.
            commits: whether the large model's own token follows, at the cut or after the draft.
        """

    def latest(self, count: int) -> list[TracedToken]:
        """The last `count` tokens of the output so far; none where nothing is kept."""
        return []

    def trace(self) -> Trace | None:
        """What was recorded."""
        return None


SILENT = Recorder()


class TraceRecorder(Recorder):
    """Makes a `Trace` of what one call of `decode` or `decode_greedy` tells it."""

    def __init__(self) -> None:
        self._tokens: list[TracedToken] = []
        self._forwards: list[Forward] = []
        self._position = 0  # of the next token of the output
        self._unseen: list[int] = []  # places of drafted tokens that await the large model
        self._unsure: int | None = None  # place of a proposal that awaits its replacement

    def starts(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._before = decoder.forwards, decoder.tokens_fed
        self._start = time.perf_counter()

    def drafted(self, draft: Draft) -> None:
        first = len(self._forwards)
        self._add_forwards()
        written = len(draft.tokens)
        proposed = draft.tokens if draft.unsure is None else [*draft.tokens, draft.unsure]
        for i, (token, probability) in enumerate(zip(proposed, draft.probabilities, strict=True)):
            if i < written and self._decoder.name == "small":
                self._unseen.append(len(self._tokens))
            if i == written:
                self._unsure = len(self._tokens)
            self._add(token, probability, first + i, "kept" if i < written else "unsure")

    def verified(self, verdict: Verdict, cut: int | None, commits: bool) -> None:
        self._add_forwards()
        replaced_by = len(self._tokens)
        kept = len(self._unseen) if cut is None else cut
        for i, (place, distance) in enumerate(zip(self._unseen, verdict.distances, strict=True)):
            token = replace(self._tokens[place], distance=distance)
            if i >= kept:
                token = replace(token, fate="rolled back", replaced_by=replaced_by)
            self._tokens[place] = token
        if self._unsure is not None:
            token = self._tokens[self._unsure]
            self._tokens[self._unsure] = replace(token, replaced_by=replaced_by)
        self._position -= len(self._unseen) - kept
        self._unseen, self._unsure = [], None
        if commits:
            last = len(self._forwards) - 1
            self._add(verdict.tokens[kept], verdict.probabilities[kept], last, "kept")

    def latest(self, count: int) -> list[TracedToken]:
        kept = (token for token in reversed(self._tokens) if token.fate == "kept")
        return [*islice(kept, count)][::-1]

    def trace(self) -> Trace:
        return Trace(tuple(self._tokens), tuple(self._forwards))

    def _add(self, token: int, probability: float, forward: int, fate: Fate) -> None:
        # A probability is the exponential of a rounded logarithm: at most 1 but for that.
        confidence = min(probability, 1.0)
        self._tokens.append(
            TracedToken(token, self._position, self._decoder.name, confidence, forward, fate)
        )
        self._position += fate == "kept"

    def _add_forwards(self) -> None:
        """Those since `starts`: the first was fed all that was pending, each other one token."""
        seconds = time.perf_counter() - self._start
        count = self._decoder.forwards - self._before[0]
        fed = self._decoder.tokens_fed - self._before[1]
        for i in range(count):
            size = fed - (count - 1) if i == 0 else 1
            self._forwards.append(Forward(self._decoder.name, size, seconds / count))

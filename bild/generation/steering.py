"""Drafting that adapts in a batch: rows take their turns together, and share what forwards take.

A forward serves all rows at once, so what it costs is no row's own. `Steering` decides for all of
them: in a round each row drafts, then one large forward looks at every draft; or drafting does not
pay for so many rows at this price, and the large model writes alone for all of them for a while.
`bild.generation.batching` tells it what the forwards took.

Letters used for shapes: B rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from bild.config import BiLDConfig
from bild.engines import Decoder, Draft
from bild.fallback import Adaptive
from bild.generation.pace import (
    FIRST_REST,
    AdaptivePace,
    Experience,
    Pace,
    SteeredPace,
    TurnRequest,
)
from bild.generation.prices import Line, Prices

TOKENS_AT_A_TIME = 4  # that a row of one model writes before others may begin
REST_STEP = 16  # tokens of a rest after which it is seen how many rows there are
PROBE = 32  # rounds of drafts after which the large model writes a token alone: what that costs
NOTHING = Draft([], [], unsure=None)


@dataclass
class BatchExperience:
    """What a pair has learned of drafting in batches; it outlives them.

    Whether drafting pays depends on how many rows there are, which prices do not: they are those of
    a forward's tokens, whosever these are.

    Attributes:
        prices: of a row's forwards, for guesses (`bild.generation.lookahead`).
        large, small: what forwards take, by the tokens of all rows in them.
        by_rows: rests, balance and lengths, by the power of two that the number of rows fills.
        together: whether a forward of the small model serves all rows, as when it last read.
        rounds: of drafts since the large model has last written a token alone.
        read, written: seconds in which the small model has read the sources of outputs, and tokens
            of these; the latest count most.
        clock: seconds.
    """

    prices: Prices = field(default_factory=Prices)
    large: Line = field(default_factory=Line)
    small: Line = field(default_factory=Line)
    by_rows: dict[int, Experience] = field(default_factory=dict)
    together: bool = True
    rounds: int = 0
    read: float = 0.0
    written: float = 0.0
    clock: Callable[[], float] = time.perf_counter

    def of(self, rows: int) -> Experience:
        """Of about so many rows. What is new begins as the nearest number of rows that is known,
        but for a long rest."""
        size = (rows - 1).bit_length()
        if size not in self.by_rows:
            nearest = min(self.by_rows, key=lambda known: abs(known - size), default=None)
            known = Experience() if nearest is None else self.by_rows[nearest]
            left = min(known.left, FIRST_REST)
            new = replace(known, left=left, next_rest=FIRST_REST, balance=0.0, lost=0.0, windows=0)
            new.rested = 0
            self.by_rows[size] = new
        return self.by_rows[size]

    def reading(self) -> float:
        """Seconds a token in which the small model reads sources."""
        return self.read / self.written if self.written else 0.0

    def ended(self, read: float, tokens: int) -> None:
        """The small model took so long for the source of an output of so many tokens."""
        self.read = 0.95 * self.read + read
        self.written = 0.95 * self.written + tokens


class Steering:
    """Steers the rows that are decoded together.

    Args:
        known: of the pair; it is added to.

    Attributes:
        prices: as of `BatchExperience`.
    """

    def __init__(self, known: BatchExperience) -> None:
        self.known, self.prices, self.clock = known, known.prices, known.clock
        self._paces: list[RowPace] = []  # of the rows in this round
        self._own = Experience()  # of about so many rows
        self._rest = 0
        self._seconds = 0.0  # of this round's forwards

    @property
    def may_join(self) -> bool:
        return self._rest > self._written

    @property
    def _written(self) -> int:
        """Tokens that a row has written alone in this round."""
        return max((pace.wrote for pace in self._paces), default=0)

    def begin(self, paces: Sequence[SteeredPace]) -> None:
        """As of `Steers`; (B,) rows."""
        self._learn()
        self._paces = [pace for pace in paces if isinstance(pace, RowPace)]
        self._own, self._seconds = self.known.of(len(paces)), 0.0
        self._own.prices = self._prices(len(paces))
        # Before a trial the small model has to catch up with the text of all rows.
        missed = sum(pace.large.length - pace.small.length for pace in self._paces)
        self._own.put_off(self.known.small.further * missed)
        self._rest = min(self._own.left, REST_STEP)
        if not self._rest and self.known.rounds >= PROBE:
            self._rest, self.known.rounds = 1, 0
        self.known.rounds += not self._rest
        for pace in self._paces:
            pace.begin(self._own, self._rest)

    def join(self, pace: SteeredPace) -> None:
        assert isinstance(pace, RowPace)
        written = self._written
        pace.begin(self._own, self._rest - written, written)
        self._paces.append(pace)

    def forwards_made(self, name: str, seconds: float, forwards: int, tokens: int) -> None:
        """As of `Steers`."""
        self._seconds += seconds
        # A trial's first drafts catch up with the text, which has a price of its own.
        if forwards and (name == "large" or self._own.windows or not self.known.small.first):
            line = self.known.large if name == "large" else self.known.small
            line.add(seconds, forwards, tokens)
        if all(pace.is_over for pace in self._paces):  # no other round will follow
            self._learn()
            self._paces, self._rest = [], 0

    def has_read(self, seconds: float, *, together: bool) -> None:
        """The small model took so long to read a source, for this round.

        Args:
            seconds: as said.
            together: whether a forward of it serves all rows.
        """
        self._own.lost += seconds
        self.known.together = together

    def _learn(self) -> None:
        """What the round that is over has brought."""
        if self._rest:
            self._own.wrote_alone(self._written)
            return
        looked = [pace for pace in self._paces if pace.kept is not None]
        drafts = [(pace.draft, pace.kept) for pace in looked if pace.kept is not None]
        if not any(draft.probabilities for draft, _ in drafts):
            return  # nobody has asked the small model
        limit = max(int(pace.limit) for pace in looked)
        last = self._last_token(sum(len(draft.tokens) >= limit for draft, _ in drafts))
        tokens = sum(kept + 1 for _, kept in drafts)
        reading = tokens * self.known.reading()
        self._own.saw(drafts, limit, self._seconds, last, reading)

    def _prices(self, rows: int) -> Prices:
        """Of forwards for so many rows (`Experience`)."""
        large, small = self.known.large, self.known.small
        return Prices(
            small=small.step(rows, shared=self.known.together),
            large=large.step(rows, shared=self._paces[0].large.company is not None),
            token=rows * large.further,
        )

    def _last_token(self, rows: int) -> float:
        """Seconds of one drafted token more in so many rows, and of the look at it."""
        small = self.known.small.step(rows, shared=self.known.together) if rows else 0.0
        return small + rows * self.known.large.further


class RowPace(SteeredPace):
    """As long as it pays for all rows; one row's.

    Args:
        config: as of `SteeredPace`.
        steering: of the rows.
        large, small: the row's decoders.

    Attributes:
        draft: of this round.
        kept: its tokens that stand; None before the large model has looked at it.
        wrote: tokens of a rest that are written, by this row or by others before it came.
        is_over: the output is whole.
    """

    def __init__(
        self, config: BiLDConfig, steering: Steering, large: Decoder, small: Decoder
    ) -> None:
        super().__init__(config)
        self.large, self.small, self._steering = large, small, steering
        self._turn = TurnRequest(steering, self)
        self.draft: Draft = NOTHING
        self.kept: int | None = None
        self.wrote = 0
        self.is_over = False
        self._read = 0.0

    def turn(self) -> TurnRequest | None:
        return None if self.left else self._turn

    def begin(self, known: Experience, rest: int, wrote: int = 0) -> None:
        """A round begins.

        Args:
            known: of about so many rows as there are.
            rest: tokens that the large model is to write alone in it.
            wrote: that it has written in it for others.
        """
        self.draft, self.kept, self.wrote = NOTHING, None, wrote
        self.left = rest
        if not rest:
            self.follow(known)

    def rests(self) -> int:
        if not self.left:
            before = self.small.encoder_seconds
            self.small.ready()
            read = self.small.encoder_seconds - before
            self._read += read
            self._steering.has_read(read, together=self.small.company is not None)
        return min(self.left, TOKENS_AT_A_TIME)

    def rested(self, tokens: int) -> None:
        self.wrote += tokens
        self.left -= tokens

    def drafted(self, draft: Draft) -> None:
        self.draft = draft

    def verified(self, kept: int) -> None:
        self.kept = kept

    def ended(self, tokens: int) -> None:
        self.is_over = True
        if self._read:
            self._steering.known.ended(self._read, tokens)


def make_pace(
    config: BiLDConfig,
    large: Decoder,
    small: Decoder,
    experience: Experience | Steering | None,
) -> Pace:
    """The pace that a configuration asks for; what nobody has experience of is learned anew."""
    if not isinstance(config.fallback_rule, Adaptive):
        return Pace(config)
    if isinstance(experience, Steering):
        return RowPace(config, experience, large, small)
    known = Experience() if experience is None else experience
    return AdaptivePace(config, known, large, small)


def may_rest(config: BiLDConfig | None) -> bool:
    """Whether the small model may have nothing to do with an output."""
    if not isinstance(config, BiLDConfig):
        return False
    return config.copying != "no" or isinstance(config.fallback_rule, Adaptive)

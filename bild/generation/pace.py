"""How long the small model writes in a row, and whether it writes at all.

`Pace` is what the configuration says. `AdaptivePace` measures what drafting brings on this machine
with this pair and this text, by the clock, and steers by that: the draft's length, how sure the
small model must be, and a rest, in which the large model writes alone, where drafting does not pay.
After a rest the small model is tried again; each trial that fails makes the next rest longer.

Rows of a batch are steered together (`bild.generation.steering`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from bild.config import BiLDConfig
from bild.engines import Decoder, Draft
from bild.fallback import Adaptive
from bild.generation.prices import Prices
from bild.policy import FallbackRule, MaxProbability

FIRST_REST, LONGEST_REST = 32, 2048  # tokens
LOSS = 0.04  # of the time of a rest, which the trial before it may have lost
TRIAL = (
    3  # windows that a trial has at least; the first catches up with the text, and is not priced
)
FIRST_LIMIT = 3.0  # tokens of the first draft of a trial
REMEMBERED = 0.8  # of the balance, from window to window
AT_A_TIME = 16  # tokens of a rest, so that the process can be interrupted
STRIDE = 3.0  # tokens by which a draft becomes longer where its last token cost nothing and stood


class Steers(Protocol):
    """Whoever steers rows together.

    Attributes:
        clock: seconds.
        may_join: whether a row may begin now, though others are within their turns.
    """

    clock: Callable[[], float]

    @property
    def may_join(self) -> bool: ...

    def forwards_made(self, name: str, seconds: float, forwards: int, tokens: int) -> None:
        """Forwards of the model of this name were made for the rows.

        Args:
            name: "large" or "small".
            seconds: of all of them.
            forwards: each once, however many rows it serves.
            tokens: fed in them, of all rows.
        """

    def begin(self, paces: Sequence[SteeredPace]) -> None:
        """All rows begin a round: tell each what to do in it."""

    def join(self, pace: SteeredPace) -> None:
        """A row begins in the middle of a round."""


class TurnRequest(NamedTuple):
    """A row of several that are steered together has come to its next turn; it waits for them."""

    steering: Steers
    pace: SteeredPace

    def alone(self) -> None:
        self.steering.begin([self.pace])


class Pace:
    """As long as the configuration says; one output's.

    Attributes:
        limit: tokens to draft at most.
        rule: when the small model is too unsure.
        left: tokens that the large model is to write alone, before the small one is tried again.
    """

    limit: float
    rule: FallbackRule
    left: int = 0

    def __init__(self, config: BiLDConfig) -> None:
        self.limit, self.rule = config.num_small_iters, config.fallback_rule

    def turn(self) -> TurnRequest | None:
        """What a row asks before its next turn, where several are steered together."""
        return None

    def rests(self) -> int:
        """A turn begins: how many tokens the large model is to write alone in it, for drafting does
        not pay; 0 where it is the small model's."""
        return 0

    def rested(self, tokens: int) -> None:
        """The large model has written so many tokens alone."""

    def drafted(self, draft: Draft) -> None:
        """The small model has written."""

    def verified(self, kept: int) -> None:
        """The large model has looked at the draft, and so many tokens of it stand."""

    def ended(self, tokens: int) -> None:
        """The output is whole, and has so many tokens."""


@dataclass
class Experience:
    """What a pair has learned of drafting; it outlives an output.

    Of several rows at a time all is a row's on average, but for seconds, which are those of all.

    Attributes:
        prices: of the pair's forwards; of rows, of a forward that feeds each of them one token, and
            of a further token of each.
        limit: tokens to draft at most.
        accepted, hoped: tokens that stood, and as many as the small model's probabilities promise;
            the latest count most.
        balance: seconds that the latest windows saved against the large model alone.
        lost: seconds that this trial took more than the large model alone.
        windows: of this trial.
        left: tokens of the present rest that are still to be written.
        next_rest: length of the next.
        rested: tokens written alone since the latest trial.
        clock: seconds.
    """

    prices: Prices = field(default_factory=Prices)
    limit: float = FIRST_LIMIT
    accepted: float = 1.0
    hoped: float = 1.0
    balance: float = 0.0
    lost: float = 0.0
    windows: int = 0
    left: int = 0
    next_rest: int = FIRST_REST
    rested: int = 0
    clock: Callable[[], float] = time.perf_counter

    @property
    def trust(self) -> float:
        """How far the small model's probabilities have held."""
        return min(1.0, self.accepted / self.hoped)

    def least(self) -> float:
        """The probability below which a further drafted token costs more than it may save."""
        saved = self.prices.large * self.trust
        return min(1.0, (self.prices.small + self.prices.token) / saved) if saved else 0.0

    def saw(
        self,
        drafts: Sequence[tuple[Draft, int]],
        limit: int,
        seconds: float,
        last: float | None = None,
        reading: float = 0.0,
    ) -> None:
        """A window took so long.

        Args:
            drafts: of each row, and how many of its tokens stand; the large model has added one.
            limit: of the drafts.
            seconds: of the window.
            last: what the last token that the limit allows has cost, of all rows that came so far;
                without it, as much as of one row.
            reading: this window's share of what it takes the small model to read sources.
        """
        rows, prices = len(drafts), self.prices
        hopes = [max(_hope(draft), kept) for draft, kept in drafts]
        kept = sum(kept for _, kept in drafts) / rows
        self.accepted = 0.9 * self.accepted + kept
        self.hoped = 0.9 * self.hoped + sum(hopes) / rows
        last = prices.small + prices.token if last is None else last
        self._steer_limit(drafts, limit, last)
        self.windows += 1
        self.rested = 0
        if not prices.large:
            return
        gain = (kept + 1) * prices.large - seconds
        self.lost -= gain
        if self.windows == 1:
            return
        self.balance = REMEMBERED * self.balance + gain - reading
        if self.balance >= 0 and self.windows >= 4 * TRIAL:
            self.next_rest, self.lost = FIRST_REST, 0.0
        elif self.balance < 0 and self.windows >= TRIAL:
            self._begin_rest()

    def _steer_limit(self, drafts: Sequence[tuple[Draft, int]], limit: int, last: float) -> None:
        """Drafts become longer or shorter by what the last token that was allowed brought.

        Where it costs a third of what it saves if it stands, this is the schedule of transformers'
        assisted generation: two more if it stood, one less if not.
        """
        if not any(len(draft.tokens) >= limit > 0 for draft, _ in drafts):
            return
        stood = sum(kept >= limit for _, kept in drafts) / len(drafts)
        paid = stood - min(1.0, last / self.prices.large if self.prices.large else 1 / STRIDE)
        self.limit = max(1.0, min(self.limit, limit + 1) + STRIDE * paid)

    def _begin_rest(self) -> None:
        """So long a rest that what the trial lost is little beside it."""
        needed = self.lost / (LOSS * self.prices.large)
        self.left = min(LONGEST_REST, max(self.next_rest, int(needed)))
        self.next_rest = min(2 * self.left, LONGEST_REST)
        self.balance, self.lost, self.windows, self.limit = 0.0, 0.0, 0, FIRST_LIMIT
        self.accepted = self.hoped = 1.0

    def wrote_alone(self, tokens: int) -> None:
        """So many tokens of the present rest are written."""
        self.left = max(0, self.left - tokens)
        self.rested += tokens

    def put_off(self, cost: float) -> None:
        """Where a trial that would begin now costs so many seconds, rest until that is little."""
        if self.left or self.windows or not self.prices.large:
            return
        longest = min(4 * self.next_rest, LONGEST_REST)  # the longer it rests the dearer it becomes
        needed = min(longest, int(cost / (LOSS * self.prices.large)))
        self.left = max(0, needed - self.rested)


def _hope(draft: Draft) -> float:
    """How many of a draft's tokens stand, by the small model's probabilities."""
    chance, hope = 1.0, 0.0
    for probability in draft.probabilities[: len(draft.tokens)]:
        chance *= probability
        hope += chance
    return hope


class SteeredPace(Pace):
    """As long as it pays, by what is known of that.

    Args:
        config: with an `Adaptive` fallback rule; its `num_small_iters` bounds every draft.
    """

    def __init__(self, config: BiLDConfig) -> None:
        super().__init__(config)
        assert isinstance(self.rule, Adaptive)
        self._most, self._floor = config.num_small_iters, self.rule.threshold

    def follow(self, known: Experience) -> None:
        """Draft in the turn that begins as it pays by now."""
        self.limit = min(self._most, known.limit)
        self.rule = MaxProbability(max(self._floor, known.least()))


class AdaptivePace(SteeredPace):
    """As long as it pays by the clock, of one output that is decoded alone.

    Args:
        config: as of `SteeredPace`.
        experience: of the pair; it is added to.
        large, small: the pair, whose forwards are counted.
    """

    def __init__(
        self,
        config: BiLDConfig,
        experience: Experience,
        large: Decoder,
        small: Decoder,
    ) -> None:
        super().__init__(config)
        self._known, self._large, self._small = experience, large, small
        self._clock = experience.clock
        self.rests()

    def rests(self) -> int:
        self.left = self._known.left
        if not self.left:
            self._small.ready()  # its encoder is no part of what a token costs
        self._draft = Draft([], [], unsure=None)
        self._began = self._then = self._clock()
        self._fed, self._forwards = self._large.tokens_fed, self._small.forwards
        self.follow(self._known)
        return min(self.left, AT_A_TIME)

    def rested(self, tokens: int) -> None:
        seconds = (self._clock() - self._began) / tokens
        for _ in range(min(tokens, 4)):
            self._known.prices.verified(seconds, 1)
        self._known.wrote_alone(tokens)

    def drafted(self, draft: Draft) -> None:
        self._draft, now = draft, self._clock()
        if self._known.windows or not self._known.prices.small:
            self._known.prices.drafted(now - self._then, self._small.forwards - self._forwards)
        self._then = now

    def verified(self, kept: int) -> None:
        now = self._clock()
        self._known.prices.verified(now - self._then, self._large.tokens_fed - self._fed)
        if self._draft.probabilities:
            self._known.saw([(self._draft, kept)], int(self.limit), now - self._began)

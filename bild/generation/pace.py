"""How long the small model writes in a row, and whether it writes at all.

`Pace` is what the configuration says. `AdaptivePace` measures what drafting brings on this machine
with this pair and this text, by the clock, and steers by that: the draft's length, how sure the
small model must be, and a rest, in which the large model writes alone, where drafting does not pay.
After a rest the small model is tried again; each trial that fails makes the next rest longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bild.config import BiLDConfig
from bild.engines import Decoder, Draft
from bild.fallback import Adaptive
from bild.generation.prices import Prices
from bild.policy import FallbackRule, MaxProbability

FIRST_REST, LONGEST_REST = 32, 2048  # tokens
TRIAL = (
    3  # windows that a trial has at least; the first catches up with the text, and is not priced
)
FIRST_LIMIT = 3.0  # tokens of the first draft of a trial
REMEMBERED = 0.8  # of the balance, from window to window


class Pace:
    """As long as the configuration says; one output's.

    Attributes:
        limit: tokens to draft at most.
        rule: when the small model is too unsure.
        left: tokens that the large model is to write alone now.
    """

    limit: float
    rule: FallbackRule
    left: int = 0

    def __init__(self, config: BiLDConfig) -> None:
        self.limit, self.rule = config.num_small_iters, config.fallback_rule

    def rests(self) -> bool:
        """A turn begins: whether it is not the small model's, for drafting does not pay."""
        return False

    def rested(self, tokens: int) -> None:
        """The large model has written so many tokens alone."""

    def drafted(self, draft: Draft) -> None:
        """The small model has written."""

    def verified(self, kept: int) -> None:
        """The large model has looked at the draft, and so many tokens of it stand."""


@dataclass
class Experience:
    """What a pair has learned of drafting; it outlives an output.

    Attributes:
        prices: of the pair's forwards.
        limit: tokens to draft at most.
        accepted, hoped: tokens that stood, and as many as the small model's probabilities promise;
            the latest count most.
        balance: seconds that the latest windows saved against the large model alone.
        windows: of this trial.
        left: tokens of the present rest that are still to be written.
        next_rest: length of the next.
        clock: seconds.
    """

    prices: Prices = field(default_factory=Prices)
    limit: float = FIRST_LIMIT
    accepted: float = 1.0
    hoped: float = 1.0
    balance: float = 0.0
    windows: int = 0
    left: int = 0
    next_rest: int = FIRST_REST
    clock: Callable[[], float] = time.perf_counter

    @property
    def trust(self) -> float:
        """How far the small model's probabilities have held."""
        return min(1.0, self.accepted / self.hoped)

    def least(self) -> float:
        """The probability below which a further drafted token costs more than it may save."""
        saved = self.prices.large * self.trust
        return min(1.0, (self.prices.small + self.prices.token) / saved) if saved else 0.0

    def saw(self, draft: Draft, kept: int, seconds: float) -> None:
        """A window took so long, for `kept` drafted tokens and one of the large model."""
        chance, hope = 1.0, 0.0
        for probability in draft.probabilities[: len(draft.tokens)]:
            chance *= probability
            hope += chance
        self.accepted = 0.9 * self.accepted + kept
        self.hoped = 0.9 * self.hoped + max(hope, kept)
        if draft.tokens:
            self.limit = self.limit + 2 if kept == len(draft.tokens) else max(1.0, self.limit - 1)
        self.windows += 1
        if not self.prices.large or self.windows == 1:
            return
        self.balance = REMEMBERED * self.balance + (kept + 1) * self.prices.large - seconds
        if self.balance >= 0 and self.windows >= 4 * TRIAL:
            self.next_rest = FIRST_REST
        elif self.balance < 0 and self.windows >= TRIAL:
            self.left, self.next_rest = self.next_rest, min(2 * self.next_rest, LONGEST_REST)
            self.balance, self.windows, self.limit = 0.0, 0, FIRST_LIMIT
            self.accepted = self.hoped = 1.0


class AdaptivePace(Pace):
    """As long as it pays by the clock.

    Args:
        config: with an `Adaptive` fallback rule; its `num_small_iters` bounds every draft.
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
        assert isinstance(self.rule, Adaptive)
        self._most, self._floor = config.num_small_iters, self.rule.threshold
        self._known, self._large, self._small = experience, large, small
        self._clock = experience.clock
        self.rests()

    def rests(self) -> bool:
        self.left = self._known.left
        if not self.left:
            self._small.ready()  # its encoder is no part of what a token costs
        self._draft = Draft([], [], unsure=None)
        self._began = self._then = self._clock()
        self._fed, self._forwards = self._large.tokens_fed, self._small.forwards
        self.limit = min(self._most, self._known.limit)
        self.rule = MaxProbability(max(self._floor, self._known.least()))
        return self.left > 0

    def rested(self, tokens: int) -> None:
        seconds = (self._clock() - self._began) / tokens
        for _ in range(min(tokens, 4)):
            self._known.prices.verified(seconds, 1)
        self._known.left = max(0, self._known.left - tokens)

    def drafted(self, draft: Draft) -> None:
        self._draft, now = draft, self._clock()
        if self._known.windows or not self._known.prices.small:
            self._known.prices.drafted(now - self._then, self._small.forwards - self._forwards)
        self._then = now

    def verified(self, kept: int) -> None:
        now = self._clock()
        self._known.prices.verified(now - self._then, self._large.tokens_fed - self._fed)
        if self._draft.probabilities:
            self._known.saw(self._draft, kept, now - self._began)


def make_pace(
    config: BiLDConfig, large: Decoder, small: Decoder, experience: Experience | None
) -> Pace:
    """The pace that a configuration asks for; what nobody has experience of is learned anew."""
    if not isinstance(config.fallback_rule, Adaptive):
        return Pace(config)
    known = Experience() if experience is None else experience
    return AdaptivePace(config, known, large, small)

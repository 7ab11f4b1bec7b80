"""Whole rounds of BiLD in one call of the library: draft, verify, cut, commit, roll back.

Which token goes where is decided as `bild.generation.lookahead` does it, by `native/rounds.h`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bild.checkpoints.drafter import BiLDDrafter
from bild.engines.base import Decoder
from bild.engines.t5 import NativeT5Decoder
from bild.engines.t5_native import ints
from bild.engines.t5_rules import native_acceptance, native_fallback
from bild.engines.t5_structs import ROUND_COUNTS, CRounds, CRoundTime, Int
from bild.policy import AcceptanceRule, FallbackRule

LONGEST = 512  # tokens of a round; memory is there for the longest that may come


@dataclass(frozen=True)
class RoundRules:
    """What decides of rounds.

    Attributes:
        fallback: when the small model hands over.
        acceptance: which drafted tokens stand.
        starts_small: whether the small model makes the first token.
        window: tokens that it may write in a row; inf for no limit.
        guesses: behind which it may go on, in a round; inf for no limit.
        last_guess: whether a turn may end with a guess, as of `bild.generation.lookahead`.
    """

    fallback: FallbackRule
    acceptance: AcceptanceRule
    starts_small: bool
    window: float
    guesses: float
    last_guess: bool

    @property
    def are_native(self) -> bool:
        """Whether the library knows them."""
        return native_fallback(self.fallback) is not None and (
            native_acceptance(self.acceptance) is not None
        )


class RoundTime(NamedTuple):
    """Seconds of one round: of its drafts, in so many small forwards; and of the large forward, of
    so many tokens (0: none was made)."""

    drafted: float
    forwards: int
    verified: float
    width: int


def rounds_of(
    large: Decoder,
    small: Decoder,
    prompt: Sequence[int],
    rules: RoundRules,
    max_length: int,
    eos_token_ids: Collection[int],
) -> NativeRounds | None:
    """Rounds of one output; None where these decoders cannot make them in one call.

    Args:
        large, small: a pair that has read its source and has been fed nothing.
        prompt: decoder tokens to start from, at least one.
        rules: what decides.
        max_length: tokens at most, the prompt included.
        eos_token_ids: the output ends with one of these.
    """
    if not rules.are_native:
        return None
    if not (isinstance(large, NativeT5Decoder) and isinstance(small, NativeT5Decoder)):
        return None
    # t5.cpp verifies with whole heads alone; and neither may write what the other does not know.
    if isinstance(large.engine.model, BiLDDrafter) or large.vocab_size != small.vocab_size:
        return None
    longest = min((rules.guesses + 1) * (rules.window + 1), max_length - len(prompt))
    if longest > LONGEST:
        return None
    return NativeRounds(large, small, prompt, rules, max_length, eos_token_ids)


class NativeRounds:
    """Rounds of one output on two sessions; arguments as of `rounds_of`.

    Attributes:
        large, small: the pair.
        struct: for the library.
        ended: whether the output is whole.
        damaged: where scores are NaN: of which decoder, and the output position; else None.
        times: of the rounds of the last call.
    """

    def __init__(
        self,
        large: NativeT5Decoder,
        small: NativeT5Decoder,
        prompt: Sequence[int],
        rules: RoundRules,
        max_length: int,
        eos_token_ids: Collection[int],
    ) -> None:
        self.large, self.small = large, small
        rest = max(0, max_length - len(prompt))
        self._longest = int(min((rules.guesses + 1) * (rules.window + 1), rest))
        self._room = 0
        self._began: int | None = None  # tokens before the rounds under way
        self._tokens = ints(prompt)
        self.struct = CRounds(
            eos=ints(eos_token_ids),
            eos_count=len(eos_token_ids),
            count=len(prompt),
            checked=len(prompt),
            max_length=max_length,
            fallback=native_fallback(rules.fallback),
            acceptance=native_acceptance(rules.acceptance),
            window=int(min(rules.window, rest)),
            lookahead=int(min(rules.guesses, rest)),
            last_guess=rules.last_guess,
            checks_end=rules.acceptance.checks_end,
            large_after_cut=rules.acceptance.after_cut == "large",
            small_turn=rules.starts_small,
            ended=not rest,
        )

    @property
    def ended(self) -> bool:
        return bool(self.struct.ended)

    @property
    def damaged(self) -> tuple[Decoder, int] | None:
        if not self.struct.damaged:
            return None
        return (self.large, self.small)[self.struct.damaged - 1], self.struct.position

    @property
    def times(self) -> list[RoundTime]:
        rounds = self._times[: self.struct.rounds]
        return [RoundTime(t.drafted, t.forwards, t.verified, t.width) for t in rounds]

    @property
    def counts(self) -> dict[str, int]:
        """What was counted so far, by the names of `DecodeStats`."""
        return {name: getattr(self.struct, name) for name in ROUND_COUNTS}

    def run(self, at_least: int, least_chance: float = -1.0) -> list[int]:
        """Rounds until the output ends, or so many tokens more can no longer change.

        Args:
            at_least: tokens.
            least_chance: the small model goes on behind a guess only while the chance that all
                guesses of its turn hold is above this.

        Returns:
            The tokens that this call wrote, in order.
        """
        self.begin(at_least, least_chance)
        self.large.session.library.bild_t5_rounds(self.struct)
        return self.end()

    def begin(self, at_least: int, least_chance: float) -> None:
        """Before rounds, arguments as of `run`: memory for them, in which nothing moves until their
        `end`."""
        rounds, before = self.struct, self.struct.count
        more = at_least - 1 + self._longest
        self._make_room(before + more, at_least)
        for name, decoder in (("large", self.large), ("small", self.small)):
            ask = decoder.session.ask(decoder.length, self._tokens[decoder.length : before], more)
            setattr(rounds, name, ask.session)
            setattr(rounds, f"{name}_model", ask.model)
        rounds.until, rounds.least, rounds.rounds = rounds.checked + at_least, least_chance, 0
        rounds.large_forwards = rounds.small_forwards = rounds.large_fed = rounds.small_fed = 0
        self._began = before

    @property
    def is_under_way(self) -> bool:
        """Whether there are rounds that have begun and whose `end` is still to come."""
        return self._began is not None

    @property
    def is_done(self) -> bool:
        """Whether rounds that have begun are to end: the output ends, or enough is checked."""
        rounds = self.struct
        return bool(rounds.ended or rounds.damaged or rounds.checked >= rounds.until)

    @property
    def widest(self) -> int:
        """Tokens of the widest forward that rounds may make."""
        fed = min(self.large.session.length, self.small.session.length)
        return max(self.struct.count - fed, 1) + self._longest

    def end(self) -> list[int]:
        """After rounds: what is as of `run`."""
        assert self._began is not None
        rounds, before, self._began = self.struct, self._began, None
        for decoder, forwards, fed in (
            (self.large, rounds.large_forwards, rounds.large_fed),
            (self.small, rounds.small_forwards, rounds.small_fed),
        ):
            decoder.count(fed, forwards)
            decoder.rollback_to(decoder.session.length)
        return self._tokens[before : rounds.count]

    def _make_room(self, tokens: int, at_least: int) -> None:
        """For so many tokens of the output, and rounds that commit one each."""
        if self._room < tokens:
            self._room = 2 * tokens
            known = self._tokens[: self.struct.count]
            self._tokens = (Int * self._room)(*known)
            self.struct.tokens = ctypes.cast(self._tokens, ctypes.POINTER(Int))
        self._times = (CRoundTime * at_least)()
        self.struct.times = ctypes.cast(self._times, ctypes.POINTER(CRoundTime))

"""`decode` and `decode_ahead` where an engine makes whole rounds in one call: to the same output.

Both loops are the definition. Of most configurations nobody needs to see what happens between two
rounds; there the engine is asked for several at once, which is faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bild.config import BiLDConfig
from bild.engines import Decoder
from bild.engines.requests import RoundsRequest
from bild.engines.t5_rounds import NativeRounds, RoundRules, rounds_of
from bild.generation.decoding import (
    OnCommit,
    Output,
    Steps,
    Stopping,
    alone,
    refuse_nan,
    stats_of,
)
from bild.generation.lookahead import may_end_with_guess
from bild.generation.prices import Prices
from bild.generation.stats import DecodeStats

AT_A_TIME = 16  # tokens, so that the process can be interrupted between them


def make_rounds(
    large: Decoder,
    small: Decoder,
    prompt: Sequence[int],
    config: BiLDConfig,
    stopping: Stopping,
) -> NativeRounds | None:
    """Rounds for `decode_rounds`; None where the loops in Python are needed.

    Arguments as of `decode_rounds`; `stopping` without criteria.
    """
    rules = round_rules(config)
    return rounds_of(large, small, prompt, rules, stopping.max_length, stopping.eos_token_ids)


def round_rules(config: BiLDConfig) -> RoundRules:
    """What decides of rounds by a configuration."""
    return RoundRules(
        fallback=config.fallback_rule,
        acceptance=config.acceptance_rule,
        starts_small=config.start == "small",
        window=config.num_small_iters,
        guesses=math.inf if config.lookahead == "auto" else config.lookahead,
        last_guess=may_end_with_guess(config),
    )


def rounds_steps(
    rounds: NativeRounds,
    prompt: Sequence[int],
    config: BiLDConfig,
    prices: Prices,
    on_commit: OnCommit | None = None,
    at_a_time: int = AT_A_TIME,
) -> Steps[tuple[Output, DecodeStats]]:
    """What `decode`, or with guesses `decode_ahead`, comes to.

    Args:
        rounds: of `prompt` by `config`.
        prices: of this pair; they are learned where the configuration goes by them.
        on_commit: called with the tokens that can no longer change, in order, after each round.
        at_a_time: tokens to write in one call.

    Raises:
        BildError: a model's scores are NaN.
    """
    y = Output(len(prompt), list(prompt), keep_scores=False)
    by_price = config.lookahead == "auto"
    while not rounds.ended:
        least = prices.least_chance() if by_price else -math.inf
        written = yield RoundsRequest(rounds, 1 if on_commit is not None else at_a_time, least)
        y.tokens += written
        if rounds.damaged is not None:
            refuse_nan(math.nan, *rounds.damaged)
        for time in rounds.times if by_price else ():
            prices.drafted(time.drafted, time.forwards)
            if time.width:
                prices.verified(time.verified, time.width)
        if on_commit is not None and written:
            on_commit(written)
    return y, stats_of(y, rounds.counts, rounds.large, rounds.small)


decode_rounds = alone(rounds_steps)

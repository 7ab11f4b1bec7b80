"""Big Little Decoder with hedged hand-overs: the same tokens, fewer forwards of the large model.

Where the small model hands over (it is unsure, or has written enough in a row, or the published
code leaves a token to the large model), the output gets the large model's own choice. The small
model need not stop there: it guesses that choice and goes on drafting behind the guess. The next
large forward checks everything at once. At a guess the large model's choice must be the guess, in
the windows between BiLD's rule decides, and the first failure cuts. Whatever stands behind a guess
that held is what the small model would have drafted after the hand-over, so that the output is
token for token that of `decode`; only the number of forwards differs.

How far to go on is a question of price: a guess that holds saves a large forward, one that fails
has cost small forwards and a wider large one (`Prices.worth_it`).

A guess behind which nothing is drafted would have the large model write the next token as well,
which plain decoding leaves to the small one. Where every output is the large model's own
(`BiLDConfig.is_lossless`) that is the same token, so there a guess that is at hand is always shown
to the large model: it costs one more token in a forward that is made anyway.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from bild.config import BiLDConfig
from bild.engines import Decoder, Draft, Verdict
from bild.engines.requests import DraftRequest, VerifyRequest
from bild.generation.decoding import (
    NOTHING,
    OnCommit,
    Output,
    Steps,
    Stopping,
    alone,
    refuse_nan,
    roll_back,
    stats_of,
)
from bild.generation.judging import known_rule
from bild.generation.prices import Prices
from bild.generation.stats import DecodeStats
from bild.policy import DEAR_MEASURES, NEVER_STOPS, AcceptanceRule, Window, Writer


@dataclass
class Proposal:
    """What the small model wrote in one turn.

    Attributes:
        windows: drafts, each followed by a guess, but perhaps the last.
        guesses: positions of the guesses in the output.
        ends: whether the last token ends the output.
        full: of each window, whether it was handed over because it was long enough.
        confidences: the small model's probability of each token, guesses included.
    """

    windows: list[Draft] = field(default_factory=list)
    guesses: list[int] = field(default_factory=list)
    ends: bool = False
    full: list[bool] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Finding:
    """How far a proposal stands.

    Attributes:
        kept: tokens before the first that does not stand; None if all do.
        is_rollback: whether the rule cut there, not a guess that failed.
        windows: windows that plain decoding would have drafted as well.
        guesses: guesses that held.
        cut_off: drafted tokens that a rollback removed.
        spent: what the rule has let pass in this output, all windows so far.
    """

    kept: int | None
    is_rollback: bool
    windows: int
    guesses: int
    cut_off: int = 0
    spent: float = 0.0


def check_proposal(rule: AcceptanceRule, looked: Window, guesses: Sequence[int]) -> Finding:
    """What the large model makes of windows with guesses between them.

    Args:
        rule: judges each window by itself.
        looked: all tokens, guesses included, with what was spent before them.
        guesses: places of the guesses among them.
    """
    start, spent = 0, looked.spent
    for held, bound in enumerate((*guesses, len(looked.drafted))):
        window = looked.part(start, bound, spent)
        cut = rule.first_cut(window)
        spent += rule.spends(window, bound - start if cut is None else cut)
        if cut is not None:
            return Finding(start + cut, True, held + 1, held, bound - start - cut, spent)
        if held < len(guesses):
            if looked.large_tokens[bound] != looked.drafted[bound]:
                return Finding(bound, False, held + 1, held, spent=spent)
            start = bound + 1
    return Finding(None, False, len(guesses) + 1, len(guesses), spent=spent)


def ahead_steps(
    large: Decoder,
    small: Decoder,
    prompt: Sequence[int],
    config: BiLDConfig,
    stopping: Stopping,
    prices: Prices,
    on_commit: OnCommit | None = None,
) -> Steps[tuple[Output, DecodeStats]]:
    """`decode_steps` with guesses; for outputs whose scores nothing looks at.

    Args:
        large, small, prompt, config, stopping, on_commit: as of `decode`; `stopping` without
            criteria.
        prices: of this pair; they are learned on the way. In a batch they tell of all rows.

    Raises:
        BildError: a model's scores are NaN.
    """
    y = Output(len(prompt), list(prompt), keep_scores=False)
    tokens, rule = y.tokens, known_rule(config.acceptance_rule)
    checked, turn = len(tokens), config.start
    counts: Counter[str] = Counter()  # fields of `DecodeStats`
    spent = 0.0
    done = len(tokens) >= stopping.max_length
    while not done:
        proposal = yield from _propose(small, y, turn, config, stopping, prices)
        looked = len(tokens)  # the large model looks at tokens[checked:looked]
        if proposal.ends and not rule.checks_end:
            if not proposal.guesses:
                counts.update(_drafted(proposal, 1))
                break
            looked = proposal.guesses[-1] + 1
        # Of a proposal that ends the output the last token looked at need not be fed.
        pending = tokens[large.length : looked - proposal.ends]
        start = time.perf_counter()
        verdict = yield from _verify(large, pending, tokens[checked:looked], checked, rule)
        prices.verified(time.perf_counter() - start, len(pending))
        for i, probability in enumerate(verdict.probabilities):
            refuse_nan(probability, large, checked + i)
        guesses = [g - checked for g in proposal.guesses]
        known = verdict.window(tokens[checked:looked], proposal.confidences, spent)
        found = check_proposal(rule, known, guesses)
        spent = found.spent
        counts.update(_drafted(proposal, found.windows))
        counts.update(_verified(found, looked - checked, proposal))
        if found.kept is None and proposal.ends:
            break
        if found.kept is not None:
            roll_back(y, checked + found.kept, large, small)
        y.append(verdict.tokens[len(tokens) - checked], None)
        done = stopping(y)
        if on_commit is not None:
            on_commit(tokens[checked:])
        checked = len(tokens)
        turn = rule.after_cut if found.is_rollback else "small"
    if on_commit is not None and len(tokens) > checked:
        on_commit(tokens[checked:])
    return y, stats_of(y, counts, large, small)


decode_ahead = alone(ahead_steps)


def _verify(
    large: Decoder,
    pending: Sequence[int],
    drafted: Sequence[int],
    checked: int,
    rule: AcceptanceRule,
) -> Steps[Verdict]:
    first_row, needs = checked - large.length - 1, rule.needs & DEAR_MEASURES
    verdict: Verdict = yield VerifyRequest(large, pending, drafted, first_row, needs)
    return verdict


def _propose(
    small: Decoder,
    y: Output,
    turn: Writer,
    config: BiLDConfig,
    stopping: Stopping,
    prices: Prices,
) -> Steps[Proposal]:
    """Draft windows onto `y`, with guesses between them as far as it pays."""
    proposal, chance, fallback = Proposal(), 1.0, config.fallback_rule
    last_guess = may_end_with_guess(config)
    start, before = time.perf_counter(), small.forwards
    while True:
        draft, ends = NOTHING, False
        if turn == "small":
            limit = int(min(config.num_small_iters, stopping.max_length - len(y.tokens)))
            pending = y.tokens[small.length :]
            draft = yield DraftRequest(small, pending, limit, fallback, stopping.eos_token_ids)
            if draft.probabilities:
                refuse_nan(draft.probabilities[-1], small, len(y.tokens) + len(draft.tokens))
            y.tokens += draft.tokens
            ends = bool(draft.tokens) and stopping(y)
        proposal.windows.append(draft)
        proposal.confidences += draft.probabilities[: len(draft.tokens)]
        proposal.full.append(turn == "small" and draft.unsure is None and not ends)
        proposal.ends = ends
        # Behind a token that fills the output nothing could be drafted.
        if ends or len(y.tokens) + 1 >= stopping.max_length:
            break
        goes_on = _may_guess(config, prices, len(proposal.guesses), chance)
        if not goes_on and not (last_guess and draft.unsure is not None):
            break
        guess, probability = yield from _guess(small, y, draft)
        chance *= probability
        goes_on = goes_on and _may_guess(config, prices, len(proposal.guesses), chance)
        if not goes_on and not last_guess:
            break
        proposal.guesses.append(len(y.tokens))
        proposal.confidences.append(probability)
        y.append(guess, None)
        proposal.ends = stopping(y)
        if proposal.ends or not goes_on:
            break
        turn = "small"
    prices.drafted(time.perf_counter() - start, small.forwards - before)
    return proposal


def may_end_with_guess(config: BiLDConfig) -> bool:
    """Whether a turn may end with a guess, behind which the large model writes its own token.

    The small model would have drafted there: the output is the same only where it is the large
    model's own in any case.
    """
    return config.lookahead != 0 and config.is_lossless


def _may_guess(config: BiLDConfig, prices: Prices, made: int, chance: float) -> bool:
    if config.lookahead == "auto":
        return prices.worth_it(chance)
    return made < config.lookahead


def _guess(small: Decoder, y: Output, draft: Draft) -> Steps[tuple[int, float]]:
    """The small model's choice where the large one writes, and its probability."""
    if draft.unsure is not None:
        return draft.unsure, draft.probabilities[-1]
    one = yield DraftRequest(small, y.tokens[small.length :], 1, NEVER_STOPS, ())
    refuse_nan(one.probabilities[-1], small, len(y.tokens))
    return one.tokens[0], one.probabilities[0]


def _drafted(proposal: Proposal, windows: int) -> dict[str, int]:
    """What happened in the first windows, as plain decoding counts it."""
    reached = proposal.windows[:windows]
    return {
        "fallbacks": sum(d.unsure is not None for d in reached),
        "drafted_tokens": sum(len(d.tokens) for d in reached),
        "full_windows": sum(proposal.full[:windows]),
    }


def _verified(found: Finding, looked: int, proposal: Proposal) -> dict[str, int]:
    kept = looked if found.kept is None else found.kept
    return {
        "rollbacks": int(found.is_rollback),
        "rolled_back_tokens": found.cut_off,
        "verifications": int(looked > 0),
        "verified_tokens": kept - found.guesses,
        "guesses": len(proposal.guesses),
        "guesses_held": found.guesses,
    }

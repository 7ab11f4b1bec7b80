"""Big Little Decoder: draft, verify, roll back, commit (Kim et al., NeurIPS 2023, Algorithm 1).

The whole algorithm is `decode_steps`. It asks two `Decoder`s, which own the models and their KV
caches, and the rules of `bild.policy` for its two decisions. `greedy_steps` is the baseline: one
model, the same interface. `bild.generation.generate` makes both available to transformers'
`generate`.

What it asks of a decoder it yields, as a value (`bild.engines.requests`), and is sent the answer.
So one row reads as if it were alone, and whoever drives it may answer several rows in one forward
(`bild.generation.batching`); `decode` and `decode_greedy` answer at once.

Letters used for shapes: T tokens in one forward, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar

import torch
from torch import Tensor
from transformers.generation import LogitsProcessorList, StoppingCriteriaList

from bild.config import BiLDConfig
from bild.engines import Decoder, Draft, Verdict, drafting, drive, judge
from bild.engines.requests import DraftRequest, FeedRequest, Request, VerifyRequest
from bild.errors import BildError
from bild.generation.judging import count_draft, count_verdict, judged, known_rule
from bild.generation.pace import Experience, Pace, TurnRequest
from bild.generation.stats import DecodeStats
from bild.generation.steering import Steering, make_pace
from bild.generation.trace import SILENT, Recorder
from bild.policy import (
    DEAR_MEASURES,
    NEVER_STOPS,
    AcceptanceRule,
    FallbackRule,
)


class Scores(NamedTuple):
    """What the writer of a token thought of every token: (V,) each, float32."""

    processed: Tensor  # after the logits processors
    raw: Tensor


@dataclass
class Output:
    """The tokens so far, `y` of the paper, with the scores of whoever wrote each, if kept."""

    prompt_length: int
    tokens: list[int]
    keep_scores: bool
    scores: list[Scores] = field(default_factory=list)  # one a generated token
    latest: Scores | None = None  # of the last token, where scores are looked at at all

    def append(self, token: int, scores: Scores | None) -> None:
        self.tokens.append(token)
        self.latest = scores
        if self.keep_scores:
            assert scores is not None
            self.scores.append(scores)

    def cut(self, length: int) -> None:
        del self.tokens[length:]
        del self.scores[length - self.prompt_length :]


@dataclass
class Stopping:
    """When an output ends: end-of-sequence ids, a length limit, and transformers' criteria."""

    max_length: int  # prompt included
    eos_token_ids: frozenset[int] = frozenset()
    criteria: StoppingCriteriaList = field(default_factory=StoppingCriteriaList)

    def __call__(self, y: Output) -> bool:
        if y.tokens[-1] in self.eos_token_ids or len(y.tokens) >= self.max_length:
            return True
        if not self.criteria:
            return False
        assert y.latest is not None
        # As transformers does: the scores of all tokens, if they are kept.
        scores = tuple(s.processed[None] for s in y.scores) if y.keep_scores else None
        ids = torch.tensor([y.tokens], device=y.latest.processed.device)
        return bool(self.criteria(ids, scores)[0])


OnCommit = Callable[[list[int]], None]
NOTHING = Draft([], [], unsure=None)
P = ParamSpec("P")
R = TypeVar("R")
# It is sent what the request's `alone` returns.
Steps: TypeAlias = Generator[Request | TurnRequest, Any, R]


def decode_steps(
    large: Decoder,
    small: Decoder,
    prompt: Sequence[int],
    config: BiLDConfig,
    stopping: Stopping,
    processors: LogitsProcessorList | None = None,
    keep_scores: bool = False,
    on_commit: OnCommit | None = None,
    recorder: Recorder = SILENT,
    experience: Experience | Steering | None = None,
) -> Steps[tuple[Output, DecodeStats]]:
    """Write one output with two models, both of which have been given the source (`begin`).

    Logits processors act on both models' scores, each position with the prefix that stands
    before it. The fallback test reads the small model's processed scores; the large model picks
    its tokens from its processed scores; the distance of the rollback test is read off its raw
    logits (as in the published code).

    Args:
        large, small: the pair; each token is fed to each once, unless it is rolled back.
        prompt: decoder tokens to start from (the decoder start token), at least one.
        config: thresholds and variant.
        stopping: when the output ends.
        processors: transformers' logits processors.
        keep_scores: keep each token's scores in the output.
        on_commit: called with the tokens that can no longer change, in order.
        recorder: is told of every draft and every verdict, for a trace.
        experience: what the pair knows of drafting, for a configuration that adapts it; it is
            added to. Of a row of several, what steers them together.

    Raises:
        BildError: a model's scores are NaN.
    """
    y = Output(len(prompt), list(prompt), keep_scores)
    tokens, told = y.tokens, (stopping, processors, recorder)
    rule, pace = known_rule(config.acceptance_rule), make_pace(config, large, small, experience)
    # The large model has not seen tokens[checked:]; the rule has let pass so much so far.
    checked, turn, spent = len(tokens), config.start, 0.0
    counts: Counter[str] = Counter()  # fields of `DecodeStats`
    done = len(tokens) >= stopping.max_length
    while not done:
        if alone := (yield from _rests(pace)):  # drafting does not pay at present
            done = yield from _write_alone(large, y, alone, on_commit, *told)
            pace.rested(len(tokens) - checked)
            checked = len(tokens)
            continue
        # 1. Draft: the small model writes until it is unsure, or has written enough in a row.
        draft, draft_ends = NOTHING, False  # a drafted token ends the output
        if turn == "small":
            limit = int(min(pace.limit, stopping.max_length - len(tokens)))
            draft, draft_ends = yield from _draft(small, y, limit, pace.rule, *told)
            pace.drafted(draft)
            count_draft(counts, draft, draft_ends, limit)
            if draft_ends and not rule.checks_end:
                break  # the published code ends here: the last window is never looked at

        # 2. Verify: ONE large forward over every token it has not seen. Of a draft that ends the
        # output the last token need not be fed, for nothing will follow it.
        verdict, scores = yield from _verify(large, y, checked, draft_ends, rule, *told)
        cut, kept, spent = judged(rule, verdict, tokens[checked:], draft, spent)

        # 3. Roll both caches back to the first bad token, if there is one.
        pace.verified(kept)
        recorder.verified(verdict, cut, commits=cut is not None or not draft_ends)
        count_verdict(counts, len(tokens) - checked, cut)
        if cut is not None:
            roll_back(y, checked + cut, large, small)
        elif draft_ends:
            break  # confirmed (rules that check the end)

        # 4. Commit: the large model's own token at the cut, or after the window.
        y.append(verdict.tokens[kept], None if scores is None else scores[kept])
        done = stopping(y)
        if on_commit is not None:
            on_commit(tokens[checked:])
        checked = len(tokens)
        # After a rollback the published code stays with the large model for one more token.
        turn = "small" if cut is None else rule.after_cut
    _end(y, checked, pace, on_commit)
    return y, stats_of(y, counts, large, small)


def _rests(pace: Pace) -> Steps[int]:
    """`Pace.rests`, of rows that are steered together once each has come to its turn."""
    turn = pace.turn()
    if turn is not None:
        yield turn
    return pace.rests()


def _end(y: Output, checked: int, pace: Pace, on_commit: OnCommit | None) -> None:
    """The output is whole: what nobody has checked stands."""
    if on_commit is not None and len(y.tokens) > checked:
        on_commit(y.tokens[checked:])
    pace.ended(len(y.tokens) - y.prompt_length)


def greedy_steps(
    decoder: Decoder,
    prompt: Sequence[int],
    stopping: Stopping,
    processors: LogitsProcessorList | None = None,
    keep_scores: bool = False,
    on_commit: OnCommit | None = None,
    recorder: Recorder = SILENT,
    at_a_time: int = 16,
) -> Steps[tuple[Output, DecodeStats]]:
    """Write one output with one model: the baseline, over the same interface as `decode_steps`.

    Its forwards are counted as those of the model it is named after. Other arguments and errors
    as in `decode_steps`.
    """
    y = Output(len(prompt), list(prompt), keep_scores)
    done = len(prompt) >= stopping.max_length
    while not done:
        # In steps, so that the process can be interrupted between them, and other rows begin.
        told = stopping, processors, recorder
        done = yield from _write_alone(decoder, y, at_a_time, on_commit, *told)
    return y, stats_of(y, {}, decoder)


def _write_alone(
    decoder: Decoder,
    y: Output,
    limit: int,
    on_commit: OnCommit | None,
    stopping: Stopping,
    processors: LogitsProcessorList | None,
    recorder: Recorder,
) -> Steps[bool]:
    """Let one model write some tokens, none of which anybody checks; whether the output ends."""
    before = len(y.tokens)
    limit = min(1 if on_commit is not None else limit, stopping.max_length - before)
    _, done = yield from _draft(decoder, y, limit, NEVER_STOPS, stopping, processors, recorder)
    if on_commit is not None:
        on_commit(y.tokens[before:])
    return done


def answer_at_once(steps: Steps[R]) -> R:
    """What a row comes to, each of its requests being answered when it is made."""
    return drive(steps, lambda request: request.alone())


def alone(steps: Callable[P, Steps[R]]) -> Callable[P, R]:
    """A way to decode whose every request is answered at once."""

    @wraps(steps)
    def decode(*args: P.args, **kwargs: P.kwargs) -> R:
        return answer_at_once(steps(*args, **kwargs))

    return decode


decode = alone(decode_steps)
decode_greedy = alone(greedy_steps)


def roll_back(y: Output, length: int, *decoders: Decoder) -> None:
    """Cut the output, and what each model has seen of it, back to so many tokens."""
    y.cut(length)
    for decoder in decoders:
        decoder.rollback_to(length)


def stats_of(y: Output, counts: Mapping[str, int], *decoders: Decoder) -> DecodeStats:
    """What was counted, and the forwards of each model as its own."""
    forwards = {f"{d.name}_forwards": d.forwards for d in decoders}
    fed = {f"{d.name}_tokens_fed": d.tokens_fed for d in decoders}
    return DecodeStats(len(y.tokens) - y.prompt_length, **counts, **forwards, **fed)


def _draft(
    decoder: Decoder,
    y: Output,
    limit: int,
    rule: FallbackRule,
    stopping: Stopping,
    processors: LogitsProcessorList | None,
    recorder: Recorder,
) -> Steps[tuple[Draft, bool]]:
    """`Decoder.draft` onto `y`, and whether its last token ends the output."""
    recorder.starts(decoder)
    pending = y.tokens[decoder.length :]
    if not scores_are_read(stopping, processors, y.keep_scores):
        draft = yield DraftRequest(decoder, pending, limit, rule, stopping.eos_token_ids)
        y.tokens += draft.tokens
        ended = bool(draft.tokens) and stopping(y)
    else:
        draft, ended = yield from _draft_with_scores(decoder, y, limit, rule, stopping, processors)
    if draft.probabilities:  # a draft ends at the first that is none
        refuse_nan(draft.probabilities[-1], decoder, len(y.tokens))
    recorder.drafted(draft)
    return draft, ended


def _draft_with_scores(
    decoder: Decoder,
    y: Output,
    limit: int,
    rule: FallbackRule,
    stopping: Stopping,
    processors: LogitsProcessorList | None,
) -> Steps[tuple[Draft, bool]]:
    """`_draft` where something reads the scores."""
    scores: Scores | None = None
    ended = False

    def process(raw: Tensor) -> Tensor:
        nonlocal scores
        scores = _scores(processors, y.tokens, raw)
        return scores.processed

    def ends(token: int) -> bool:
        nonlocal ended
        y.append(token, scores)
        ended = stopping(y)
        return ended

    writing = drafting(y.tokens[decoder.length :], limit, rule, ends, process)
    logits: Any = None  # the first thing that a generator is sent
    while True:
        try:
            tokens = writing.send(logits)
        except StopIteration as end:
            return end.value, ended
        logits = yield FeedRequest(decoder, tokens)


def _verify(
    decoder: Decoder,
    y: Output,
    checked: int,
    draft_ends: bool,
    rule: AcceptanceRule,
    stopping: Stopping,
    processors: LogitsProcessorList | None,
    recorder: Recorder,
) -> Steps[tuple[Verdict, list[Scores] | None]]:
    """`Decoder.verify` of `y.tokens[checked:]`; and the scores, if looked at."""
    recorder.starts(decoder)
    pending = y.tokens[decoder.length : len(y.tokens) - draft_ends]
    drafted = y.tokens[checked:]
    first_row = checked - decoder.length - 1
    needs, reads = rule.needs & DEAR_MEASURES, scores_are_read(stopping, processors, y.keep_scores)
    scores = None
    if not reads:
        verdict = yield VerifyRequest(decoder, pending, drafted, first_row, needs)
    else:
        logits = yield FeedRequest(decoder, pending)
        raw = processed = logits[first_row:]  # (T, V): a row a drafted token, and one more
        scores = [_scores(processors, y.tokens[: checked + i], r) for i, r in enumerate(raw)]
        if processors:
            processed = torch.stack([s.processed for s in scores])
        verdict = judge(processed, raw, drafted, needs)
    for i, probability in enumerate(verdict.probabilities):
        refuse_nan(probability, decoder, checked + i)
    return verdict, scores


def scores_are_read(
    stopping: Stopping, processors: LogitsProcessorList | None, keep_scores: bool
) -> bool:
    """Whether anything but the loop itself reads scores, which then have to be made."""
    return bool(processors or stopping.criteria or keep_scores)


def _scores(processors: LogitsProcessorList | None, tokens: list[int], raw: Tensor) -> Scores:
    """Raw logits (V,) after the prefix `tokens`, and what the processors make of them."""
    raw = raw.float()  # as transformers' own, whatever the model's precision
    if not processors:
        return Scores(raw, raw)
    ids = torch.tensor([tokens], device=raw.device)
    return Scores(processors(ids, raw[None].clone())[0], raw)


def refuse_nan(value: float, decoder: Decoder, position: int) -> None:
    if value != value:
        raise BildError(
            f"the {decoder.name} model's scores are NaN at output position {position}: "
            "its weights are damaged, or its precision is too low for it (try dtype float32)"
        )

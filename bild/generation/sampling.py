"""Big Little Decoder that samples: the loop of `bild.generation.decoding` with drawn tokens.

Each model draws from its own distribution as transformers' warpers leave it (temperature, top-k,
top-p and the like). What becomes of a draft says one of `bild.generation.sampled_rules`.

Whether the small model is sure is asked BEFORE its token is drawn, of its scores before the
warpers: so where a draft ends depends on the tokens before it and not on the one to come. (To draw
a token and throw it away because it is unlikely would leave too few unlikely ones in the output.)

All chance comes from one generator of the output's own, on the CPU: a row's tokens depend neither
on the rows beside it nor on the device's kind of random numbers.

Letters used for shapes: T drafted tokens, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers.generation import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from bild.config import BiLDConfig
from bild.engines import Decoder, Draft, Verdict, judge
from bild.engines.measures import spread, top_token
from bild.engines.requests import FeedRequest
from bild.generation.decoding import (
    NOTHING,
    OnCommit,
    Output,
    Scores,
    Steps,
    Stopping,
    refuse_nan,
    roll_back,
    stats_of,
)
from bild.generation.judging import count_draft, count_verdict
from bild.generation.sampled_rules import loop_rule, sampling_rule
from bild.generation.stats import DecodeStats
from bild.generation.trace import SILENT, Recorder
from bild.policy import NEVER_STOPS, FallbackRule, Step

WARPERS = (
    *(TemperatureLogitsWarper, TopHLogitsWarper, TopKLogitsWarper, TopPLogitsWarper),
    *(MinPLogitsWarper, TypicalLogitsWarper, EpsilonLogitsWarper, EtaLogitsWarper),
)


@dataclass(frozen=True)
class Sampler:
    """Makes distributions of logits, and draws from them.

    Attributes:
        processors: transformers' logits processors; the first warper and what stands behind it
            change what is drawn, and not how sure a model is.
        generator: of this output's chance, on the CPU; None for torch's own, which
            `torch.manual_seed` and transformers' `set_seed` seed.
    """

    processors: LogitsProcessorList
    generator: torch.Generator | None = None

    def scores(self, tokens: list[int], raw: Tensor) -> tuple[Scores, Tensor]:
        """The scores (V,) after a prefix, and what they are before the warpers, from raw logits."""
        raw = raw.float()  # as transformers' own, whatever the model's precision
        plain = warped = raw[None]
        if self.processors:
            ids, first = torch.tensor([tokens], device=raw.device), self._first_warper
            for i, processor in enumerate(self.processors):
                warped = processor(ids, warped.clone())
                plain = warped if i < first else plain
        return Scores(warped[0], raw), plain[0]

    @cached_property
    def _first_warper(self) -> int:
        kinds = [getattr(p, "function", p) for p in self.processors]  # what is wrapped around it
        return next((i for i, p in enumerate(kinds) if isinstance(p, WARPERS)), len(kinds))

    def draw(self, weights: Tensor) -> int:
        """A token, by weights (V,) on the CPU: with the numbers that transformers draws it."""
        return int(torch.multinomial(weights[None], 1, generator=self.generator))

    def chances(self, count: int) -> list[float]:
        """Uniform numbers in [0, 1)."""
        return torch.rand(count, generator=self.generator, dtype=torch.float64).tolist()


def sampled_steps(
    large: Decoder,
    small: Decoder,
    prompt: Sequence[int],
    config: BiLDConfig,
    stopping: Stopping,
    sampler: Sampler,
    keep_scores: bool = False,
    on_commit: OnCommit | None = None,
    recorder: Recorder = SILENT,
) -> Steps[tuple[Output, DecodeStats]]:
    """Sample one output with two models, both of which have been given the source.

    Arguments, results and errors as of `bild.generation.decoding.decode_steps`.
    """
    y = Output(len(prompt), list(prompt), keep_scores)
    tokens, judged, rule = y.tokens, sampling_rule(config), loop_rule(config)
    checked, turn = len(tokens), config.start  # the large model has not seen tokens[checked:]
    counts: Counter[str] = Counter()  # fields of `DecodeStats`
    done = len(tokens) >= stopping.max_length
    while not done:
        # 1. Draft: the small model draws until it is unsure, or has drawn enough in a row.
        draft, q, draft_ends = NOTHING, torch.empty(0), False
        if turn == "small":
            limit = int(min(config.num_small_iters, stopping.max_length - len(tokens)))
            told = stopping, sampler, recorder
            draft, q, draft_ends = yield from _draw(small, y, limit, config.fallback_rule, *told)
            count_draft(counts, draft, draft_ends, limit)
            if draft_ends and not rule.checks_end:
                break

        # 2. Verify: one large forward; a token after one that ends the output is not scored.
        verdict, scores = yield from _score(large, y, checked, draft_ends, sampler, recorder)
        p = _distributions([s.processed for s in scores])
        drafted = tokens[checked:]
        kept, weights = judged(p, q, drafted, sampler.chances(len(drafted)))

        # 3. Roll both caches back to the first token that does not stand, if there is one.
        cut = kept if kept < len(drafted) else None
        count_verdict(counts, len(drafted), cut)
        if cut is not None:
            roll_back(y, checked + cut, large, small)
        elif draft_ends:
            recorder.verified(verdict, cut, commits=False)
            break

        # 4. Commit: what is drawn in the place of the one that does not stand, or after them all.
        assert weights is not None
        token = sampler.draw(weights)
        recorder.verified(_with_own(verdict, kept, token, p[kept]), cut, commits=True)
        y.append(token, scores[kept])
        done = stopping(y)
        if on_commit is not None:
            on_commit(tokens[checked:])
        checked, turn = len(tokens), "small" if cut is None else rule.after_cut
    if on_commit is not None and len(tokens) > checked:
        on_commit(tokens[checked:])
    return y, stats_of(y, counts, large, small)


def sampled_alone(
    decoder: Decoder,
    prompt: Sequence[int],
    stopping: Stopping,
    sampler: Sampler,
    keep_scores: bool = False,
    on_commit: OnCommit | None = None,
    recorder: Recorder = SILENT,
) -> Steps[tuple[Output, DecodeStats]]:
    """Sample one output with one model: what transformers samples, given the same numbers.

    Arguments as of `sampled_steps`.
    """
    y = Output(len(prompt), list(prompt), keep_scores)
    done = len(prompt) >= stopping.max_length
    while not done:
        before = len(y.tokens)
        told = stopping, sampler, recorder
        _, _, done = yield from _draw(decoder, y, 1, NEVER_STOPS, *told)
        if on_commit is not None:
            on_commit(y.tokens[before:])
    return y, stats_of(y, {}, decoder)


def _draw(
    decoder: Decoder,
    y: Output,
    limit: int,
    rule: FallbackRule,
    stopping: Stopping,
    sampler: Sampler,
    recorder: Recorder,
) -> Steps[tuple[Draft, Tensor, bool]]:
    """Draw tokens onto `y`; those, what they were drawn from (T, V), and whether the output ends.

    The unsure token of the draft is the likeliest: none was drawn.
    """
    recorder.starts(decoder)
    tokens: list[int] = []
    probabilities: list[float] = []
    rows: list[Tensor] = []
    product, unsure, ended = 1.0, None, False
    while len(tokens) < limit and not ended:
        logits = yield FeedRequest(decoder, y.tokens[decoder.length :])
        scores, plain = sampler.scores(y.tokens, logits[-1])
        best, confidence = top_token(plain)
        refuse_nan(confidence, decoder, len(y.tokens))
        product *= confidence
        if rule.should_stop(Step(confidence, product, *(spread(plain) if rule.needs else ()))):
            unsure = best
            probabilities.append(confidence)
            break
        q = _distributions([scores.processed])[0]
        rows.append(q)
        tokens.append(sampler.draw(q))
        probabilities.append(float(q[tokens[-1]]))
        y.append(tokens[-1], scores)
        ended = stopping(y)
    draft = Draft(tokens, probabilities, unsure)
    recorder.drafted(draft)
    return draft, torch.stack(rows) if rows else torch.empty(0), ended


def _score(
    decoder: Decoder,
    y: Output,
    checked: int,
    draft_ends: bool,
    sampler: Sampler,
    recorder: Recorder,
) -> Steps[tuple[Verdict, list[Scores]]]:
    """Feed what the large model has not seen; what it says of `y.tokens[checked:]`, and scores."""
    recorder.starts(decoder)
    first_row = checked - decoder.length - 1
    logits = yield FeedRequest(decoder, y.tokens[decoder.length : len(y.tokens) - draft_ends])
    raws = logits[first_row:]  # (T, V) or (T + 1, V)
    scores = [sampler.scores(y.tokens[: checked + i], raw)[0] for i, raw in enumerate(raws)]
    processed = torch.stack([s.processed for s in scores])
    verdict = judge(processed, processed, y.tokens[checked:])
    for i, probability in enumerate(verdict.probabilities):
        refuse_nan(probability, decoder, checked + i)
    return verdict, scores


def _distributions(scores: Sequence[Tensor]) -> Tensor:
    """Scores, (V,) each, as probabilities (T, V) on the CPU."""
    return torch.stack(list(scores)).softmax(-1).cpu()


def _with_own(verdict: Verdict, place: int, token: int, p: Tensor) -> Verdict:
    """The verdict with the token that was drawn at a place; p: (V,)."""
    tokens, probabilities = list(verdict.tokens), list(verdict.probabilities)
    tokens[place], probabilities[place] = token, float(p[token])
    return verdict._replace(tokens=tokens, probabilities=probabilities)

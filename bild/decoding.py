"""Big Little Decoder: draft, verify, roll back, commit (Kim et al., NeurIPS 2023, Algorithm 1).

The whole algorithm is `decode`. It talks to two `Decoder`s, which own the models and their KV
caches, and asks `policy` for its two decisions. `decode_greedy` is the baseline: one model, the
same interface. `bild.generation` makes both available to transformers' `generate`.

Letters used for shapes: T tokens in one forward, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor
from transformers.generation import LogitsProcessorList, StoppingCriteriaList

from bild import policy
from bild.config import BiLDConfig, Writer
from bild.decoders import Decoder
from bild.errors import BildError


@dataclass(frozen=True)
class DecodeStats:
    """What happened while one output was written. Stats of several outputs add up with `+`.

    Attributes:
        generated_tokens: tokens of the output, end of sequence included, prompt excluded.
        fallbacks: proposals of the small model thrown away for low confidence.
        rollbacks: times the large model cut the draft back.
        rolled_back_tokens: drafted tokens that those cuts removed.
        drafted_tokens: tokens the small model wrote, rolled back ones included.
        full_windows: hand-overs because `num_small_iters` tokens stood in a row.
        verifications: large forwards that looked at one or more drafted tokens.
        verified_tokens: drafted tokens that a large forward looked at and kept.
        large_forwards, small_forwards: decoder forwards per model.
        large_tokens_fed, small_tokens_fed: tokens those forwards were fed.
    """

    generated_tokens: int = 0
    fallbacks: int = 0
    rollbacks: int = 0
    rolled_back_tokens: int = 0
    drafted_tokens: int = 0
    full_windows: int = 0
    verifications: int = 0
    verified_tokens: int = 0
    large_forwards: int = 0
    small_forwards: int = 0
    large_tokens_fed: int = 0
    small_tokens_fed: int = 0

    @property
    def fallback_rate(self) -> float:
        """Fallbacks per 100 generated tokens, as the published result files count them."""
        return self._per_100_tokens(self.fallbacks)

    @property
    def rollback_rate(self) -> float:
        """Rollbacks per 100 generated tokens, as the published result files count them."""
        return self._per_100_tokens(self.rollbacks)

    @property
    def large_forward_rate(self) -> float:
        """Large forwards per 100 generated tokens; 100 for the large model alone."""
        return self._per_100_tokens(self.large_forwards)

    @property
    def mean_accepted_length(self) -> float:
        """Drafted tokens kept per verification; NaN when there was none."""
        return self.verified_tokens / self.verifications if self.verifications else math.nan

    def _per_100_tokens(self, count: int) -> float:
        return 100 * count / self.generated_tokens if self.generated_tokens else math.nan

    def __add__(self, other: DecodeStats) -> DecodeStats:
        return DecodeStats(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )


@dataclass
class Stopping:
    """When an output ends: end-of-sequence ids, a length limit, and transformers' criteria."""

    max_length: int  # prompt included
    eos_token_ids: frozenset[int] = frozenset()
    criteria: StoppingCriteriaList = field(default_factory=StoppingCriteriaList)

    def __call__(self, tokens: list[int], scores: Tensor) -> bool:
        if tokens[-1] in self.eos_token_ids or len(tokens) >= self.max_length:
            return True
        if not self.criteria:
            return False
        ids = torch.tensor([tokens], device=scores.device)
        return bool(self.criteria(ids, scores[None])[0])


@dataclass
class Output:
    """The tokens so far, `y` of the paper, with the scores of whoever wrote each, if kept."""

    prompt_length: int
    tokens: list[int]
    keep_scores: bool
    processed: list[Tensor] = field(default_factory=list)  # (V,) a generated token
    raw: list[Tensor] = field(default_factory=list)  # (V,) a generated token

    def append(self, token: int, processed: Tensor, raw: Tensor) -> None:
        self.tokens.append(token)
        if self.keep_scores:
            self.processed.append(processed)
            self.raw.append(raw)

    def cut(self, length: int) -> None:
        del self.tokens[length:]
        del self.processed[length - self.prompt_length :]
        del self.raw[length - self.prompt_length :]


OnCommit = Callable[[list[int]], None]


def decode(
    large: Decoder,
    small: Decoder,
    prompt: Sequence[int],
    config: BiLDConfig,
    stopping: Stopping,
    processors: LogitsProcessorList | None = None,
    keep_scores: bool = False,
    on_commit: OnCommit | None = None,
) -> tuple[Output, DecodeStats]:
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

    Raises:
        BildError: a model's scores are NaN.
    """
    y = Output(len(prompt), list(prompt), keep_scores)
    tokens = y.tokens
    checked = len(tokens)  # tokens[checked:] are drafted, and the large model has not seen them
    fallbacks = rollbacks = rolled_back = drafted = full_windows = verifications = verified = 0
    turn: Writer = config.start
    done = len(tokens) >= stopping.max_length

    while not done:
        # 1. Draft: the small model writes until it is unsure, or has written enough in a row.
        draft_ends = False  # a drafted token ends the output
        if turn == "small":
            unsure = False
            while not (unsure or draft_ends) and len(tokens) - checked < config.num_small_iters:
                raw = small.feed(tokens[small.length :])[-1]  # (V,)
                scores = _process(processors, tokens, raw)
                token, probability = policy.top_token(scores)
                _refuse_nan(probability, small, len(tokens))
                unsure = policy.should_fall_back(probability, config.fallback_threshold)
                if not unsure:
                    y.append(token, scores, raw)
                    draft_ends = stopping(tokens, scores)
            drafted += len(tokens) - checked
            fallbacks += unsure
            full_windows += not (unsure or draft_ends)
            if draft_ends and config.variant != "verified":
                break  # the published code ends here: the last window is never looked at

        # 2. Verify: ONE large forward over every token it has not seen. Of a draft that ends the
        # output the last token need not be fed, for nothing will follow it.
        first = large.length + 1  # the position that the first row scores
        raw_rows = large.feed(tokens[large.length : len(tokens) - draft_ends])  # (T, V)
        raw_rows = raw_rows[checked - first :]  # a row a drafted token, one for what follows them
        rows = raw_rows
        if processors:
            each = enumerate(raw_rows)
            rows = torch.stack([_process(processors, tokens[: checked + i], r) for i, r in each])
        best = rows.max(-1)
        for i, value in enumerate(best.values.tolist()):
            _refuse_nan(value, large, checked + i)
        window = len(tokens) - checked
        cut = None
        if window:
            verifications += 1
            cut = policy.first_rollback(
                raw_rows[:window],
                best.indices[:window],
                torch.tensor(tokens[checked:], device=raw_rows.device),
                config.rollback_threshold,
                config.variant,
            )

        # 3. Roll both caches back to the first bad token, if there is one.
        kept = window if cut is None else cut
        verified += kept
        if cut is not None:
            rollbacks += 1
            rolled_back += window - cut
            y.cut(checked + cut)
            large.rollback_to(len(tokens))
            small.rollback_to(len(tokens))
        elif draft_ends:
            break  # confirmed (variant "verified")

        # 4. Commit: the large model's own token at the cut, or after the window.
        y.append(int(best.indices[kept]), rows[kept], raw_rows[kept])
        done = stopping(tokens, rows[kept])
        if on_commit is not None:
            on_commit(tokens[checked:])
        checked = len(tokens)
        # After a rollback the published code stays with the large model for one more token.
        turn = "large" if cut is not None and config.variant == "authors" else "small"

    if on_commit is not None and len(tokens) > checked:
        on_commit(tokens[checked:])
    return y, DecodeStats(
        generated_tokens=len(tokens) - len(prompt),
        fallbacks=fallbacks,
        rollbacks=rollbacks,
        rolled_back_tokens=rolled_back,
        drafted_tokens=drafted,
        full_windows=full_windows,
        verifications=verifications,
        verified_tokens=verified,
        large_forwards=large.forwards,
        small_forwards=small.forwards,
        large_tokens_fed=large.tokens_fed,
        small_tokens_fed=small.tokens_fed,
    )


def decode_greedy(
    decoder: Decoder,
    prompt: Sequence[int],
    stopping: Stopping,
    processors: LogitsProcessorList | None = None,
    keep_scores: bool = False,
    on_commit: OnCommit | None = None,
) -> tuple[Output, DecodeStats]:
    """Write one output with one model: the baseline, over the same interface as `decode`.

    Its forwards are counted as the large model's. Arguments and errors as in `decode`.
    """
    y = Output(len(prompt), list(prompt), keep_scores)
    done = len(prompt) >= stopping.max_length
    while not done:
        raw = decoder.feed(y.tokens[decoder.length :])[-1]  # (V,)
        scores = _process(processors, y.tokens, raw)
        best = scores.max(-1)
        _refuse_nan(float(best.values), decoder, len(y.tokens))
        y.append(int(best.indices), scores, raw)
        done = stopping(y.tokens, scores)
        if on_commit is not None:
            on_commit(y.tokens[-1:])
    return y, DecodeStats(
        generated_tokens=len(y.tokens) - len(prompt),
        large_forwards=decoder.forwards,
        large_tokens_fed=decoder.tokens_fed,
    )


def _process(processors: LogitsProcessorList | None, tokens: list[int], raw: Tensor) -> Tensor:
    """The scores (V,) that the processors make of raw logits (V,) after the prefix `tokens`."""
    if not processors:
        return raw
    ids = torch.tensor([tokens], device=raw.device)
    return processors(ids, raw[None].to(copy=True, dtype=torch.float32))[0]


def _refuse_nan(value: float, decoder: Decoder, position: int) -> None:
    if value != value:
        raise BildError(
            f"the {decoder.name} model's scores are NaN at output position {position}: "
            "its weights are damaged, or its precision is too low for it (try dtype float32)"
        )

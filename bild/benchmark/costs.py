"""What a decoding must cost: step times measured apart, the rates, and the memory's bandwidth.

`predict` multiplies how often each model has to run, given fallback and rollback rates, by what one
run takes. Below that lies the floor: every forward reads the decoder's weights and its cached keys
and values once, and memory gives only so many bytes a second.

Letters used for shapes: T fed tokens.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bild.config import BiLDConfig
from bild.engines import Decoder, states_for
from bild.evaluation.timing import timed
from bild.policy import NEVER_STOPS

# A width of 11 is a full window: ten drafted tokens and the large model's own one before them.
WIDTHS = (1, 2, 4, 8, 11)

WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
# Of cached keys and values; int8 is of weights alone.
CACHE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 4}

CEILING_BYTES = 512 * 2**20


# ------------------------------------------------------------------------------ bytes


@dataclass(frozen=True)
class DecoderSize:
    """What one forward of a decoder reads, in numbers (not bytes).

    Attributes:
        weights: of all its layers and the head, each once; those that make the cross-attention's
            keys and values run once a source and are left out, as is the embedding, of which a
            forward reads a row.
        keys_and_values: cached for each token of the output, and of the source.
    """

    weights: int
    keys_and_values: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> DecoderSize:
        """Count a model's decoder."""
        head = model.get_output_embeddings().weight.numel()
        layers = cached = 0
        for name, module in model.get_decoder().named_modules():
            own = sum(p.numel() for p in module.parameters(recurse=False))
            if isinstance(module, nn.Embedding):
                continue
            if re.search(r"(EncDecAttention\.[kv]|encoder_attn\.[kv]_proj)$", name):
                cached += module.out_features
            else:
                layers += own
        return cls(layers + head, cached)

    def bytes_read(self, precision: str, source_tokens: float, output_tokens: float) -> float:
        """Bytes of one forward with so many tokens in the source and, before it, in the output."""
        cached = self.keys_and_values * (source_tokens + output_tokens)
        return WEIGHT_BYTES[precision] * self.weights + CACHE_BYTES[precision] * cached


class MemoryCeiling:
    """The rate at which this device reads memory, through a buffer larger than its caches."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        columns = 4096
        # Not zeros: a system may map them all to one page.
        self._matrix = torch.ones(CEILING_BYTES // (4 * columns), columns, device=device)
        self._vector = torch.ones(columns, device=device)

    def measure(self, repeats: int = 3) -> float:
        """Bytes a second: the better of a sum and a matrix-vector product, medians."""
        uses: tuple[Callable[[], Tensor], ...] = (
            self._matrix.sum,
            lambda: torch.mv(self._matrix, self._vector),
        )
        seconds = min(
            statistics.median(timed(self.device, use)[1] for _ in range(repeats)) for use in uses
        )
        return self._matrix.numel() * self._matrix.element_size() / seconds


# ------------------------------------------------------------------------------ step times


@dataclass(frozen=True)
class StepTimes:
    """Seconds of the parts of a decoding, measured one by one.

    Attributes:
        encoders: both encoders, or the large one where it decodes alone, and what they prepare.
        large: of one large forward over T tokens, by T.
        small: of one small forward within a draft.
    """

    encoders: float
    large: Mapping[int, float]
    small: float

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> StepTimes:
        """The inverse of `dataclasses.asdict`, also after JSON has made the widths text."""
        return cls(**{**fields, "large": {int(w): s for w, s in fields["large"].items()}})

    def large_step(self, width: float) -> float:
        """Of a large forward of any width, between the measured ones on straight lines."""
        widths = sorted(self.large)
        return float(np.interp(width, widths, [self.large[w] for w in widths]))


def measure_steps(
    large: Decoder,
    small: Decoder,
    input_ids: Tensor,
    prefix: int,
    repeats: int = 3,
    *,
    shared: bool = False,
) -> StepTimes:
    """Time each step of two decoders in the middle of an output; medians.

    The two take turns as they do when they decode, so that each finds the processor's caches full
    of the other's weights.

    Args:
        large, small: the pair.
        input_ids: source tokens, (1, S).
        prefix: tokens that both have cached before the measured step.
        repeats: of each step.
        shared: whether both have one encoder, which then runs once.
    """
    device = large.device
    mask = torch.ones_like(input_ids)
    token = int(input_ids[0, 0])
    drafted = max(WIDTHS) - 1
    steps: dict[int, list[float]] = {width: [] for width in WIDTHS}
    drafts: list[float] = []

    def encode(decoder: Decoder) -> None:
        known = None if decoder is large else states_for(small, large, shared=shared)
        decoder.read(input_ids, mask, known)

    encoders = [
        sum(timed(device, partial(encode, decoder))[1] for decoder in (large, small))
        for _ in range(repeats)
    ]
    for decoder in (large, small):
        for start in range(0, prefix, max(WIDTHS)):
            decoder.feed([token] * min(max(WIDTHS), prefix - start))
    for _ in range(repeats):
        for width in WIDTHS:
            tokens = [token] * width
            steps[width].append(timed(device, partial(large.verify, tokens, tokens[1:]))[1])
            drafts.append(timed(device, partial(small.draft, [token], drafted, NEVER_STOPS))[1])
            large.rollback_to(prefix)
            small.rollback_to(prefix)
    return StepTimes(
        statistics.median(encoders),
        {width: statistics.median(seconds) for width, seconds in steps.items()},
        statistics.median(drafts) / drafted,
    )


def median_steps(measured: Sequence[StepTimes]) -> StepTimes:
    """The median of each step over several measurements."""
    return StepTimes(
        statistics.median(m.encoders for m in measured),
        {w: statistics.median(m.large[w] for m in measured) for w in measured[0].large},
        statistics.median(m.small for m in measured),
    )


# ------------------------------------------------------------------------------ prediction


@dataclass(frozen=True)
class Expected:
    """What an output of BiLD takes on average, by its rates; all per generated token.

    Attributes:
        large_forwards: by the tokens they are fed.
        small_forwards: of the small model.
    """

    large_forwards: Mapping[int, float]
    small_forwards: float

    @property
    def large_forward_rate(self) -> float:
        """Large forwards per 100 generated tokens."""
        return 100 * sum(self.large_forwards.values())


def expect(
    fallback_rate: float, rollback_rate: float, length: float, config: BiLDConfig
) -> Expected:
    """How often the two models run, if every proposal is as likely to be thrown away.

    A draft ends at the first unsure proposal or after `num_small_iters` tokens, so its length is
    geometric and cut there. A rollback undoes half a draft on average and, by rules that leave the
    token after it to the large model, costs a large forward of its own. The first token is the
    large model's (`start`); the last draft is cut in half by the end, and rules that check it look
    at it in one more forward.

    Args:
        fallback_rate, rollback_rate: per 100 generated tokens, as `DecodeStats` counts them.
        length: generated tokens of an output.
        config: variant, start and length of a draft.
    """
    fallbacks, rollbacks = fallback_rate / 100, rollback_rate / 100
    limit = int(min(config.num_small_iters, max(1, round(length))))
    rule = config.acceptance_rule
    extra = rollbacks if rule.after_cut == "large" else 0.0
    first = (1 / length) if config.start == "large" else 0.0

    def drafts(unsure: float) -> tuple[list[float], float]:
        """P(k tokens drafted) for k = 0..limit, and the drafts a generated token takes."""
        chances = [unsure * (1 - unsure) ** k for k in range(limit)] + [(1 - unsure) ** limit]
        mean = sum(k * p for k, p in enumerate(chances))
        undone = (mean + 1) / 2
        # Every draft gives its tokens and one of the large model's.
        return chances, max(0.0, 1 + rollbacks * undone - extra - first) / (mean + 1)

    # The chance of an unsure proposal that gives the wanted fallbacks: more of it, more of them.
    low, high = 0.0, 1.0
    for _ in range(60):
        unsure = (low + high) / 2
        chances, number = drafts(unsure)
        if number * (1 - chances[-1]) < fallbacks:
            low = unsure
        else:
            high = unsure
    chances, number = drafts((low + high) / 2)
    large = {k + 1: number * p for k, p in enumerate(chances)}
    large[1] = large.get(1, 0.0) + extra + first
    if rule.checks_end:
        drafted = max(0.0, 1 - sum(large.values()))  # the chance that an output's last token is
        width = 1 + round(sum(k * p for k, p in enumerate(chances)) / 2)
        large[width] = large.get(width, 0.0) + drafted / length
    else:
        unseen = 0.5 / length
        total = sum(large.values())
        large = {width: n * max(0.0, 1 - unseen / total) for width, n in large.items()}
    small = number * sum(p * (k + (k < limit)) for k, p in enumerate(chances))
    return Expected(large, small)


def predict(expected: Expected, steps: StepTimes, length: float) -> float:
    """Seconds of one output: both encoders, and every forward at its measured time."""
    large = sum(n * steps.large_step(width) for width, n in expected.large_forwards.items())
    return steps.encoders + length * (large + expected.small_forwards * steps.small)


def floor(
    expected: Expected, large_bytes: float, small_bytes: float, bytes_per_second: float
) -> float:
    """Seconds a token below which no engine can go that reads each weight once a forward."""
    read = sum(expected.large_forwards.values()) * large_bytes
    return (read + expected.small_forwards * small_bytes) / bytes_per_second

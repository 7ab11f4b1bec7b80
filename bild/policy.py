"""The two decisions of Big Little Decoder as pure functions; no model in sight.

Letters used for shapes: T drafted tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bild.config import Variant


def top_token(scores: Tensor) -> tuple[int, float]:
    """The most likely token and its probability, `max softmax(scores)`; scores: (V,).

    The probability is NaN when a score is NaN.
    """
    scores = scores.float()
    top, token = scores.max(-1)
    # One transfer for both: float64 holds a token id exactly.
    token_id, distance = torch.stack((token.double(), scores.logsumexp(-1) - top)).tolist()
    return int(token_id), math.exp(-distance)


def should_fall_back(probability: float, threshold: float) -> bool:
    """Whether the small model is too unsure to write (paper, Eq. 1); strict."""
    return probability < threshold


def distances(large_logits: Tensor, drafted: Tensor, normalizers: Tensor | None = None) -> Tensor:
    """How far the large model is from each drafted token, in nats; (T,).

    It is the large model's cross-entropy with the small one's hard label, `-log p_L(drafted)`
    (paper, Eq. 2).

    Args:
        large_logits: (T, V), the large model's raw logits at the drafted positions.
        drafted: (T,), the tokens the small model wrote.
        normalizers: (T,), the logsumexp of each row of the logits, where it is known already.
    """
    logits = large_logits.float()
    if normalizers is None:
        normalizers = logits.logsumexp(-1)
    return normalizers - logits.gather(-1, drafted.unsqueeze(-1)).squeeze(-1)


def first_rollback(
    distances: Sequence[float],
    large_tokens: Sequence[int],
    drafted: Sequence[int],
    threshold: float,
    variant: Variant,
) -> int | None:
    """Index of the drafted token at which the large model takes over again, or None.

    Args:
        distances: T values, nats; see `distances`.
        large_tokens: T or more, the tokens the large model would have written.
        drafted: T, the tokens the small model wrote.
        threshold: alpha_RB, nats; the comparison is strict.
        variant: "authors" looks only at the first position over the threshold, as
            `BigLittleDecoder` does, and keeps the draft when the large model agrees there;
            the others take the earliest position that is over the threshold and differs.
    """
    for i, (distance, token) in enumerate(zip(distances, drafted, strict=True)):
        if distance > threshold:
            if large_tokens[i] != token:
                return i
            if variant == "authors":
                return None
    return None

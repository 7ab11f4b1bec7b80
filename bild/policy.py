"""The two decisions of Big Little Decoder as pure functions; no model in sight.

Letters used for shapes: T drafted tokens, V vocabulary.
"""

from __future__ import annotations

import math

from torch import Tensor

from bild.config import Variant


def top_token(scores: Tensor) -> tuple[int, float]:
    """The most likely token and its probability, `max softmax(scores)`; scores: (V,).

    The probability is NaN when a score is NaN.
    """
    scores = scores.float()
    top, token = scores.max(-1)
    return int(token), math.exp(float(top - scores.logsumexp(-1)))


def should_fall_back(probability: float, threshold: float) -> bool:
    """Whether the small model is too unsure to write (paper, Eq. 1); strict."""
    return probability < threshold


def first_rollback(
    large_logits: Tensor,
    large_tokens: Tensor,
    drafted: Tensor,
    threshold: float,
    variant: Variant,
) -> int | None:
    """Index of the drafted token at which the large model takes over again, or None.

    Args:
        large_logits: (T, V), the large model's raw logits at the drafted positions.
        large_tokens: (T,), the tokens the large model would have written there.
        drafted: (T,), the tokens the small model wrote.
        threshold: alpha_RB, nats. The distance is the large model's cross-entropy with the
            small one's hard label, `-log p_L(drafted)` (paper, Eq. 2); the comparison is strict.
        variant: "authors" looks only at the first position over the threshold, as
            `BigLittleDecoder` does, and keeps the draft when the large model agrees there;
            the others take the earliest position that is over the threshold and differs.
    """
    logits = large_logits.float()
    picked = logits.gather(-1, drafted.unsqueeze(-1)).squeeze(-1)  # (T,)
    far = logits.logsumexp(-1) - picked > threshold  # (T,)
    differs = large_tokens != drafted  # (T,)
    candidates = (far if variant == "authors" else far & differs).nonzero()
    if len(candidates) == 0:
        return None
    first = int(candidates[0, 0])
    return first if bool(differs[first]) else None

"""What scores say of a token, as numbers: the definition, in torch; machine code has its own.

Letters used for shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def top_token(scores: Tensor) -> tuple[int, float]:
    """The most likely token and its probability, `max softmax(scores)`; scores: (V,).

    The probability is NaN when a score is NaN.
    """
    scores = scores.float()
    top, token = scores.max(-1)
    # One transfer for both: float64 holds a token id exactly.
    token_id, distance = torch.stack((token.double(), scores.logsumexp(-1) - top)).tolist()
    return int(token_id), math.exp(-distance)


def spread(scores: Tensor) -> tuple[float, float]:
    """The entropy of softmax(scores) in nats, and by how much its first leads its second; (V,)."""
    log_p = scores.float().log_softmax(-1)
    first, second = log_p.topk(2).values.exp()
    entropy, margin = torch.stack((entropies(log_p), first - second)).tolist()
    return entropy, margin


def entropies(log_p: Tensor) -> Tensor:
    """Entropies in nats of distributions (..., V) given as logarithms; impossible tokens add 0."""
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)


def distances_from(
    large_logits: Tensor, drafted: Tensor, normalizers: Tensor | None = None
) -> Tensor:
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

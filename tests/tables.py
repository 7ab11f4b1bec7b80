"""A decoder over a fixed table of logits, which checks how the loop treats it."""

from __future__ import annotations

import math

import torch

from bild.engines import Decoder

EOS = 1
VOCAB = 10


def sure(token, probability=0.99, second=None):
    """Logits (V,) with `probability` on `token` and the rest on `second`, or evenly spread."""
    rest = 1 - probability
    p = torch.full((VOCAB,), rest / (VOCAB - 1) if second is None else 1e-9)
    p[token] = probability
    if second is not None:
        p[second] = rest
    return p.log()


class TableDecoder(Decoder):
    """Scores position i (0 is the first generated token) by `rows[i]`, whatever came before.

    It asserts that the loop never feeds a token twice unless it was rolled back, and that what
    it holds is always a prefix of the output.
    """

    def __init__(self, name, rows):
        self.name, self.rows, self.vocab_size = name, rows, VOCAB
        self.begin(None, None)

    @property
    def device(self):
        return torch.device("cpu")

    def encode(self, input_ids, attention_mask, **inputs):
        return None

    def begin(self, encoder_outputs, attention_mask):
        self.cached, self.fed = [], []
        self.length = self.forwards = self.tokens_fed = 0

    def feed(self, tokens):
        assert len(tokens) > 0
        start = self.length
        self.cached += tokens
        self.fed.append(list(tokens))
        self.length += len(tokens)
        self.forwards += 1
        self.tokens_fed += len(tokens)
        return torch.stack([self.rows[i] for i in range(start, self.length)])

    def rollback_to(self, length):
        if length < self.length:
            del self.cached[length:]
            self.length = length


def rows(*tokens, probability=0.99):
    return [sure(t, probability) if isinstance(t, int) else t for t in tokens]


def distance(row, token):
    """-log p(token) in nats, computed apart from the package."""
    p = [math.exp(v) for v in row.tolist()]
    return -math.log(p[token] / sum(p))

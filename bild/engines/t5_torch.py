"""A T5's encoder and decoder in torch, without transformers' forward.

What transformers does per layer in Python is done here once a model, once a source, or not at all:
the KV cache is allocated ahead and rolled back by moving a length, relative position biases are a
table, cross-attention keys and values are made once a source.

Letters used for shapes: S source tokens, T fed tokens, P positions the cache holds, D model width,
H heads, C width of a head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from bild.checkpoints.drafter import spread
from bild.engines.t5_weights import FeedForward, Stack

FIRST_CAPACITY = 128  # positions; doubled until they suffice


def room_for(positions: int) -> int:
    """Positions to have memory for, where so many are needed."""
    capacity = FIRST_CAPACITY
    while capacity < positions:
        capacity *= 2
    return capacity


class TorchEncoder:
    """The encoder of a T5 for one source."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._biases: tuple[int, list[Tensor]] = (0, [])

    def _bias(self, length: int) -> list[Tensor]:
        """Per layer (H, 2 P - 1), P >= length; remembered."""
        capacity, tables = self._biases
        if capacity < length:
            capacity = room_for(length)
            tables = [t.to(self.stack.embedding.dtype) for t in self.stack.position_bias(capacity)]
            self._biases = capacity, tables
        return tables

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, hidden: Tensor | None) -> Tensor:
        """(S,) source tokens -> (S, D) states; `hidden` (S,) are tokens that none sees."""
        w = self.stack
        x = w.embed(tokens)  # (S, D)
        size = len(x)
        hidden = None if hidden is None else hidden.to(x.device)
        previous, bias = None, x
        for layer, table in zip(w.layers, self._bias(size), strict=True):
            if layer.buckets is not previous:
                previous = layer.buckets
                bias = _by_position(table, size, size, 0)  # (H, S, S)
                if hidden is not None:
                    bias = bias.masked_fill(hidden, torch.finfo(bias.dtype).min)
            h = norm(x, layer.own.norm, w.epsilon)
            q, k, v = (
                functional.linear(h, matrix).view(1, size, w.heads, -1).transpose(1, 2)
                for matrix in (layer.own.q, layer.own.k, layer.own.v)
            )
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[None], scale=1)
            x = add(x, mixed[0].transpose(0, 1).reshape(size, -1), layer.own.o)
            x = feed_forward(x, layer.feed, w.activation, w.epsilon)
        return norm(x, w.final_norm, w.epsilon)


class TorchSession:
    """The decoder of a T5 over one source at a time, on a static cache that only grows.

    Args:
        encode: the encoder, which many sessions may share; None for a drafter.
        stack: the decoder's parameters.
    """

    def __init__(self, encode: TorchEncoder | None, stack: Stack) -> None:
        if encode is not None:
            self.encode = encode
        self.stack = stack
        self.vocab_size = stack.vocab_size
        self.device = stack.head.device
        self._cache = self._memory(0)  # (layers, 2, H, P, C)
        self._cross = self._memory(0)  # the same of the source
        self._source = 0  # S
        self._bias: list[Tensor] = []  # per layer (H, 2 P - 1)

    def _memory(self, positions: int) -> Tensor:
        w = self.stack
        shape = (len(w.layers), 2, w.heads, positions, w.head_width)
        return torch.zeros(shape, dtype=w.head.dtype, device=self.device)

    @torch.inference_mode()
    def begin(self, states: Tensor, vocab_size: int) -> None:
        """Start a sequence over the encoder's states (S, D), scoring the first V token ids."""
        w = self.stack
        self.vocab_size = vocab_size
        states = states.to(w.head.dtype)
        self._source = len(states)
        if self._cross.shape[3] < self._source:
            self._cross = self._memory(room_for(self._source))
        for layer, cached in zip(w.layers, self._cross, strict=True):
            assert layer.cross is not None
            for matrix, part in zip((layer.cross.k, layer.cross.v), cached, strict=True):
                made = functional.linear(states, matrix).view(-1, w.heads, w.head_width)
                part[:, : self._source] = made.transpose(0, 1)

    def feed(self, length: int, tokens: Sequence[int]) -> Tensor:
        """Logits (T, V) of `tokens`, fed after the first `length` cached ones."""
        return feed_together([self], [length], [tokens])[0]

    def own_attention(self, i: int, length: int, projected: Tensor) -> Tensor:
        """Self-attention of layer i: (T, 3 H C) projections of new tokens -> (T, H C)."""
        count, end = len(projected), length + len(projected)
        q, k, v = projected.view(count, 3, self.stack.heads, -1).permute(1, 2, 0, 3)  # (H, T, C)
        keys, values = self._cache[i]
        keys[:, length:end], values[:, length:end] = k, v
        bias = _by_position(self._bias[i], count, end, length)  # (H, T, end)
        return _mix(torch.baddbmm(bias, q, keys[:, :end].transpose(1, 2)), values[:, :end])

    def cross_attention(self, i: int, projected: Tensor) -> Tensor:
        """Attention of layer i over the source: (T, H C) queries -> (T, H C)."""
        keys, values = self._cross[i, :, :, : self._source]  # (H, S, C) each
        q = projected.view(len(projected), self.stack.heads, -1).transpose(0, 1)
        return _mix(torch.bmm(q, keys.transpose(1, 2)), values)

    def reserve(self, length: int, needed: int) -> None:
        """Memory for `needed` positions, of which the first `length` are kept."""
        w = self.stack
        if needed <= self._cache.shape[3]:
            return
        capacity = room_for(needed)
        cache = self._memory(capacity)
        cache[:, :, :, :length] = self._cache[:, :, :, :length]
        self._cache = cache
        future = torch.full(
            (w.heads, capacity - 1), -torch.inf, dtype=torch.float32, device=self.device
        )
        self._bias = [
            torch.cat((past, future), 1).to(w.head.dtype) for past in w.position_bias(capacity)
        ]


@torch.inference_mode()
def feed_together(
    sessions: Sequence[TorchSession], lengths: Sequence[int], tokens: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Logits (T, V) of each session's tokens, fed after its first `length` cached ones.

    The sessions are of one decoder and score as many ids. Products with weights are made of the
    tokens of all, one behind the other; attention is each session's own.
    """
    w, vocab_size = sessions[0].stack, sessions[0].vocab_size
    counts = [len(own) for own in tokens]
    for session, length, count in zip(sessions, lengths, counts, strict=True):
        session.reserve(length, length + count)
    together = [token for own in tokens for token in own]
    x = w.embed(torch.tensor(together, device="cpu"))  # (T of all, D)
    for i, layer in enumerate(w.layers):
        projected = functional.linear(norm(x, layer.own.norm, w.epsilon), w.projections[i])
        parts = zip(sessions, lengths, torch.split(projected, counts), strict=True)
        mixed = [session.own_attention(i, length, part) for session, length, part in parts]
        x = add(x, mixed[0] if len(mixed) == 1 else torch.cat(mixed), layer.own.o)
        assert layer.cross is not None
        queries = functional.linear(norm(x, layer.cross.norm, w.epsilon), layer.cross.q)
        asked = zip(sessions, torch.split(queries, counts), strict=True)
        mixed = [session.cross_attention(i, part) for session, part in asked]
        x = add(x, mixed[0] if len(mixed) == 1 else torch.cat(mixed), layer.cross.o)
        x = feed_forward(x, layer.feed, w.activation, w.epsilon)
    x = norm(x, w.final_norm, w.epsilon)
    scores = functional.linear(x * w.output_scale, w.head[: w.rows(vocab_size)])
    shortlist = None if w.shortlist is None else w.shortlist[: scores.shape[1]]
    return list(torch.split(spread(scores, shortlist, vocab_size), counts))


def _by_position(by_offset: Tensor, rows: int, columns: int, first: int) -> Tensor:
    """Biases (H, rows, columns) of queries first.. and keys 0.., from (H, 2 P - 1) by offset.

    Entry [h, P - 1 + o] is for keys `o` positions after the query.
    """
    heads, width = by_offset.shape
    zero = (width - 1) // 2
    start = zero - (first + rows - 1)  # the last row's first entry; each row above is one later
    return by_offset.as_strided((heads, rows, columns), (width, 1, 1), start).flip(1)


def _activate(x: Tensor, name: str) -> Tensor:
    if name == "relu":
        return x.relu()
    if name == "silu":
        return functional.silu(x)
    return functional.gelu(x, approximate="tanh" if name == "gelu_new" else "none")


def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root mean square norm of x (T, D), in the precision of the weight (D,)."""
    if x.dtype == weight.dtype:
        return functional.rms_norm(x, weight.shape, weight, epsilon)
    return functional.rms_norm(x, weight.shape, None, epsilon).to(weight.dtype) * weight


def add(x: Tensor, branch: Tensor, weight: Tensor) -> Tensor:
    """x (T, D) plus branch (T, n) times weight (D, n), in the precision of x, and in its place."""
    branch = branch.to(weight.dtype)
    if x.dtype == weight.dtype:
        return x.addmm_(branch, weight.t())
    return x + functional.linear(branch, weight)


def feed_forward(x: Tensor, weights: FeedForward, activation: str, epsilon: float) -> Tensor:
    h = norm(x, weights.norm, epsilon)
    inner = _activate(functional.linear(h, weights.into), activation)
    if weights.gate is not None:
        inner = inner * functional.linear(h, weights.gate)
    return add(x, inner, weights.out)


def _mix(scores: Tensor, values: Tensor) -> Tensor:
    """softmax(scores) over (H, T, n) times values (H, n, C) -> (T, H C)."""
    mixed = torch.bmm(scores.softmax(-1), values)
    return mixed.transpose(0, 1).reshape(scores.shape[1], -1)

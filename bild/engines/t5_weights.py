"""The parameters of a T5 by what they do, without transformers' modules around them.

Letters used for shapes: D model width, H heads, C width of a head, F feed-forward width,
V vocabulary, P positions a cache holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.t5.modeling_t5 import T5Attention

from bild.checkpoints.drafter import BiLDDrafter, scales_head


@dataclass(frozen=True, eq=False)
class Attention:
    """One attention: `norm` (D,); `q`, `k`, `v` (H C, D); `o` (D, H C).

    Of a drafter's cross-attention `k` and `v` are as wide as the encoder that it reads.
    """

    norm: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor


@dataclass(frozen=True, eq=False)
class FeedForward:
    """One feed-forward: `norm` (D,); `into` and, where it is gated, `gate` (F, D); `out` (D, F)."""

    norm: Tensor
    into: Tensor
    gate: Tensor | None
    out: Tensor


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: `cross` is a decoder's only; `buckets` (buckets, H) are the relative position
    biases, one tensor where layers share them."""

    own: Attention
    cross: Attention | None
    feed: FeedForward
    buckets: Tensor


@dataclass(frozen=True, eq=False)
class Stack:
    """An encoder's or a decoder's parameters. Nothing is copied, but for `projections`.

    Attributes:
        config: the model's.
        is_decoder: else it is an encoder.
        embedding: (V, D).
        layers: from the first on.
        final_norm: (D,).
        head: the output embedding, (V, D), or of the shortlist, (rows, D).
        output_scale: what the head's input is scaled by.
        shortlist: the token ids that the head scores, ascending; None for all.
    """

    config: Any
    is_decoder: bool
    embedding: Tensor
    layers: tuple[Layer, ...]
    final_norm: Tensor
    head: Tensor
    output_scale: float
    shortlist: Tensor | None = None

    @cached_property
    def projections(self) -> list[Tensor]:
        """Per layer the three projections of self-attention in one, (3 H C, D); a copy."""
        return [torch.cat((x.own.q, x.own.k, x.own.v)) for x in self.layers]

    @cached_property
    def cross_projections(self) -> Tensor:
        """Cross-attention's keys and values of all layers in one product, (layers 2 H C, the
        encoder's D); a copy."""
        crosses = [layer.cross for layer in self.layers]
        return torch.cat([m for cross in crosses if cross is not None for m in (cross.k, cross.v)])

    @property
    def vocab_size(self) -> int:
        """V: token ids that have a score, if only that of never."""
        return len(self.head if self.shortlist is None else self.embedding)

    def rows(self, vocab_size: int) -> int:
        """Rows of the head that score the first so many token ids."""
        if self.shortlist is None:
            return vocab_size
        return int((self.shortlist < vocab_size).sum())

    @cached_property
    def width(self) -> int:
        return int(self.config.d_model)

    @cached_property
    def heads(self) -> int:
        return int(self.config.num_heads)

    @cached_property
    def head_width(self) -> int:
        return int(self.config.d_kv)

    @cached_property
    def epsilon(self) -> float:
        return float(self.config.layer_norm_epsilon)

    @property
    def activation(self) -> str:
        return str(self.config.dense_act_fn)

    def embed(self, tokens: Tensor) -> Tensor:
        """(T,) tokens -> (T, D). In float16 the residual stream is float32: float16 overflows."""
        x = functional.embedding(tokens.to(self.embedding.device), self.embedding)
        return x.float() if x.dtype == torch.float16 else x

    def position_bias(self, capacity: int) -> list[Tensor]:
        """Biases by position of the key, per layer; float32; one tensor if layers share it.

        Of a decoder (H, P), the query standing at P - 1; of an encoder (H, 2 P - 1), with keys
        after the query too.
        """
        last = 1 if self.is_decoder else capacity
        index = T5Attention._relative_position_bucket(
            torch.arange(1 - capacity, last, device=self.embedding.device),
            bidirectional=not self.is_decoder,
            num_buckets=self.config.relative_attention_num_buckets,
            max_distance=self.config.relative_attention_max_distance,
        )
        tables: dict[int, Tensor] = {}
        for layer in self.layers:
            key = id(layer.buckets)
            if key not in tables:
                tables[key] = layer.buckets[index].t().float().contiguous()
        return [tables[id(layer.buckets)] for layer in self.layers]


def read_stack(model: PreTrainedModel, part: str) -> Stack:
    """The "encoder" or the "decoder" of a model that `coverage.not_covered` accepts."""
    config = model.config
    is_decoder = part == "decoder"
    stack: Any = model.get_decoder() if is_decoder else model.get_encoder()
    layers: list[Layer] = []
    for block in stack.block:
        first = block.layer[0].SelfAttention
        # A layer without biases of its own uses those of the first.
        own_biases = first.has_relative_attention_bias
        layers.append(
            Layer(
                own=_attention(block.layer[0], first),
                cross=_attention(block.layer[1], block.layer[1].EncDecAttention)
                if is_decoder
                else None,
                feed=_feed_forward(block.layer[-1], config.is_gated_act),
                buckets=first.relative_attention_bias.weight.detach()
                if own_biases
                else layers[0].buckets,
            )
        )
    return Stack(
        config=config,
        is_decoder=is_decoder,
        embedding=stack.embed_tokens.weight.detach(),
        layers=tuple(layers),
        final_norm=stack.final_layer_norm.weight.detach(),
        head=model.get_output_embeddings().weight.detach(),
        output_scale=config.d_model**-0.5 if scales_head(config) else 1.0,
        shortlist=model.shortlist if isinstance(model, BiLDDrafter) else None,
    )


def _attention(part: Any, attention: Any) -> Attention:
    q, k, v, o = (getattr(attention, n).weight.detach() for n in "qkvo")
    return Attention(part.layer_norm.weight.detach(), q, k, v, o)


def _feed_forward(part: Any, gated: bool) -> FeedForward:
    dense = part.DenseReluDense
    return FeedForward(
        norm=part.layer_norm.weight.detach(),
        into=(dense.wi_0 if gated else dense.wi).weight.detach(),
        gate=dense.wi_1.weight.detach() if gated else None,
        out=dense.wo.weight.detach(),
    )

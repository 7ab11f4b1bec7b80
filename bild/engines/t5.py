"""The fast engine: T5, mT5, Flan-T5 and UMT5 without transformers' forward.

What transformers does per layer in Python is done here once a model, once a source, or not at all:
the KV cache is allocated ahead and rolled back by moving a length, relative position biases are a
table, cross-attention keys and values are made once a source. `T5Engine` is what does not change
between sequences; its decoders hold one sequence each. On a CPU with a C++ compiler the decoder
runs in `bild.engines.native`, otherwise here, in torch.

Letters used for shapes: S source tokens, T fed tokens, P positions the cache holds, D model width,
H heads, C width of a head, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.t5.modeling_t5 import T5Attention

from bild.engines.base import Decoder, Draft, Verdict
from bild.engines.native import MULTIPLE, NativeSession, NativeStack
from bild.policy import FallbackRule, MaxProbability

MODEL_TYPES = ("t5", "mt5", "umt5")
ACTIVATIONS = ("relu", "gelu_new", "gelu", "silu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FIRST_CAPACITY = 128  # positions; doubled when they do not suffice


def not_covered(model: PreTrainedModel) -> str | None:
    """Why the fast engine cannot run this model, in words; None if it can."""
    config = model.config
    if config.model_type not in MODEL_TYPES:
        return f"model type {config.model_type!r} is not one of {', '.join(MODEL_TYPES)}"
    if config.dense_act_fn not in ACTIVATIONS:
        return f"activation {config.dense_act_fn!r} is not one of {', '.join(ACTIVATIONS)}"
    # transformers keeps the feed-forward's last matrix in float32 when it loads T5 in float16.
    kept = ".wo.weight" if model.dtype == torch.float16 else ()
    dtypes = {p.dtype for name, p in model.named_parameters() if not name.endswith(kept)}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        known = ", ".join(map(str, DTYPES))
        return f"weights are {', '.join(sorted(map(str, dtypes)))}, not all one of {known}"
    if len({p.device for p in model.parameters()}) > 1:
        return "weights lie on several devices"
    return None


def not_compilable(model: PreTrainedModel) -> str | None:
    """Why the machine code cannot run a model that the fast engine covers; None if it can."""
    if model.device.type != "cpu":
        return f"it is on {model.device}, and the compiled engine is for the CPU"
    if model.dtype == torch.float16:
        return "its weights are float16, which the compiled engine does not read; use bfloat16"
    config = model.config
    for name in ("d_model", "d_kv", "d_ff"):
        size = getattr(config, name)
        if size % MULTIPLE:
            return f"{name} is {size}, not a multiple of {MULTIPLE}"
    return None


class T5Engine:
    """A T5's weights, arranged for decoding. The model must not be changed afterwards.

    Args:
        model: a model that `not_covered` accepts.
        precision: of the decoder's weights: "float32", "bfloat16", or "int8" (one scale a row,
            activations stay float32; needs `compiled`). None: as the model has them.
        compiled: run the decoder in machine code made on this machine (CPU only).
    """

    def __init__(
        self, model: PreTrainedModel, precision: str | None = None, compiled: bool = False
    ) -> None:
        self.model = model
        self.precision = str(model.dtype).removeprefix("torch.") if precision is None else precision
        self.compiled = compiled
        self.device = model.device
        self.weights = T5Stack(model, "decoder")
        source = T5Stack(model, "encoder")
        self.encoder = T5Encoder(source)
        self.native = NativeStack(self.weights, self.precision) if compiled else None
        self.native_encoder = NativeStack(source, self.precision) if compiled else None

    @cached_property
    def projections(self) -> list[Tensor]:
        """Per layer the three projections of self-attention in one, (3 H C, D); a copy."""
        return [torch.cat([layer[n] for n in "qkv"]) for layer in self.weights.layers]

    def __str__(self) -> str:
        return f"fast, {self.precision}, {'compiled' if self.compiled else 'not compiled'}"

    def decoder(self, name: str, vocab_size: int | None = None) -> Decoder:
        rows = self.weights.head.shape[0]
        vocab_size = rows if vocab_size is None else vocab_size
        if self.native is not None:
            return NativeT5Decoder(self, name, vocab_size)
        return T5Decoder(self, name, vocab_size)


class T5Stack:
    """The parameters of a T5's encoder or decoder by what they do. Nothing is copied.

    Attributes:
        layers: a dictionary a layer: self_norm, q, k, v, o, feed_norm, in, gate (None unless
            gated), out; a decoder's also cross_norm, cross_q, cross_k, cross_v, cross_o; and
            `buckets`, the relative position bias of each bucket, (buckets, H).
        head, output_scale: a decoder's output embedding (V, D), and what its input is scaled by.
    """

    def __init__(self, model: PreTrainedModel, part: str) -> None:
        config = model.config
        stack: Any = model.get_encoder() if part == "encoder" else model.get_decoder()
        self.config = config
        self.is_decoder = part == "decoder"
        self.width, self.heads, self.head_width = config.d_model, config.num_heads, config.d_kv
        self.activation = config.dense_act_fn
        self.epsilon = config.layer_norm_epsilon
        self.embedding = stack.embed_tokens.weight.detach()  # (V, D)
        self.final_norm = stack.final_layer_norm.weight.detach()
        self.head = model.get_output_embeddings().weight.detach()
        self.output_scale = self.width**-0.5 if _scales_output(config) else 1.0
        self.layers: list[dict[str, Any]] = []
        for block in stack.block:
            layer: dict[str, Any] = {**_self_attention(block.layer[0])}
            if self.is_decoder:
                layer |= _cross_attention(block.layer[1])
            layer |= _feed_forward(block.layer[-1])
            layer["buckets"] = _buckets(block.layer[0].SelfAttention, self.layers)
            self.layers.append(layer)

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
            key = id(layer["buckets"])
            if key not in tables:
                tables[key] = layer["buckets"][index].t().float().contiguous()
        return [tables[id(layer["buckets"])] for layer in self.layers]


def _scales_output(config: Any) -> bool:
    """Whether the head's input is scaled; each model type decides it differently (5.23)."""
    if config.model_type == "t5":
        return config.scale_decoder_outputs
    return config.model_type == "umt5" and config.tie_word_embeddings


def _self_attention(part: Any) -> dict[str, Tensor]:
    weights = {n: getattr(part.SelfAttention, n).weight.detach() for n in "qkvo"}
    return {"self_norm": part.layer_norm.weight.detach(), **weights}


def _cross_attention(part: Any) -> dict[str, Tensor]:
    weights = {f"cross_{n}": getattr(part.EncDecAttention, n).weight.detach() for n in "qkvo"}
    return {"cross_norm": part.layer_norm.weight.detach(), **weights}


def _feed_forward(part: Any) -> dict[str, Tensor | None]:
    dense = part.DenseReluDense
    gated = hasattr(dense, "wi_0")
    return {
        "feed_norm": part.layer_norm.weight.detach(),
        "in": (dense.wi_0 if gated else dense.wi).weight.detach(),
        "gate": dense.wi_1.weight.detach() if gated else None,
        "out": dense.wo.weight.detach(),
    }


def _buckets(attention: Any, layers: list[dict[str, Any]]) -> Tensor:
    """A layer's own table of biases, or the first layer's, which the others then share."""
    if attention.has_relative_attention_bias:
        return attention.relative_attention_bias.weight.detach()
    return layers[0]["buckets"]


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


class T5Encoder:
    """The encoder of a T5 for one source, in torch."""

    def __init__(self, stack: T5Stack) -> None:
        self.stack = stack
        self._biases: tuple[int, list[Tensor]] = (0, [])

    def _bias(self, length: int) -> list[Tensor]:
        """Per layer (H, 2 P - 1), P >= length; remembered."""
        capacity, tables = self._biases
        if capacity < length:
            capacity = max(FIRST_CAPACITY, 2 * length)
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
            if layer["buckets"] is not previous:
                previous = layer["buckets"]
                bias = _by_position(table, size, size, 0)  # (H, S, S)
                if hidden is not None:
                    bias = bias.masked_fill(hidden, torch.finfo(bias.dtype).min)
            h = _norm(x, layer["self_norm"], w.epsilon)
            q, k, v = (
                functional.linear(h, layer[n]).view(1, size, w.heads, -1).transpose(1, 2)
                for n in "qkv"
            )
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[None], scale=1)
            x = _add(x, mixed[0].transpose(0, 1).reshape(size, -1), layer["o"])
            x = _feed(x, layer, w.activation, w.epsilon)
        return _norm(x, w.final_norm, w.epsilon)


def _norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root mean square norm of x (T, D), in the precision of the weight (D,)."""
    if x.dtype == weight.dtype:
        return functional.rms_norm(x, weight.shape, weight, epsilon)
    return functional.rms_norm(x, weight.shape, None, epsilon).to(weight.dtype) * weight


def _add(x: Tensor, branch: Tensor, weight: Tensor) -> Tensor:
    """x (T, D) plus branch (T, n) times weight (D, n), in the precision of x."""
    branch = branch.to(weight.dtype)
    if x.dtype == weight.dtype:
        return torch.addmm(x, branch, weight.t())
    return x + functional.linear(branch, weight)


def _feed(x: Tensor, layer: dict[str, Any], activation: str, epsilon: float) -> Tensor:
    h = _norm(x, layer["feed_norm"], epsilon)
    inner = _activate(functional.linear(h, layer["in"]), activation)
    if layer["gate"] is not None:
        inner = inner * functional.linear(h, layer["gate"])
    return _add(x, inner, layer["out"])


class _T5Session(Decoder):
    """What the two decoders of a `T5Engine` share: the encoder and the source."""

    def __init__(self, engine: T5Engine, name: str, vocab_size: int) -> None:
        self.engine, self.name, self.vocab_size = engine, name, vocab_size
        self.length = self.forwards = self.tokens_fed = 0

    @property
    def device(self) -> torch.device:
        return self.engine.device

    @torch.inference_mode()
    def encode(self, input_ids: Tensor, attention_mask: Tensor | None) -> Any:
        if attention_mask is None or bool(attention_mask.all()):
            return (self._encode(input_ids[0], None)[None],)
        # Positions are relative: without the padding around it a source is the same source, to the
        # last bit. What is hidden inside it counts as distance, and stays.
        hidden = attention_mask[0].cpu() == 0  # (S,)
        kept = (~hidden).nonzero()[:, 0].tolist()
        first, end = kept[0], kept[-1] + 1
        inside = hidden[first:end] if len(kept) < end - first else None
        states = self._encode(input_ids[0, first:end], inside)
        return (functional.pad(states, (0, 0, first, len(hidden) - end))[None],)

    def _encode(self, tokens: Tensor, hidden: Tensor | None) -> Tensor:
        """The encoder's states (S, D) of source tokens (S,), none of which sees the hidden."""
        return self.engine.encoder(tokens, hidden)

    def _states(self, encoder_outputs: Any, attention_mask: Tensor | None) -> Tensor:
        """The encoder's states (S, D), without those of padding."""
        states = encoder_outputs[0][0].to(self.device)
        if attention_mask is not None and not bool(attention_mask.all()):
            states = states[attention_mask[0].to(states.device) != 0]
        return states

    def rollback_to(self, length: int) -> None:
        self.length = min(self.length, length)

    def _count(self, tokens: int, forwards: int = 1) -> None:
        self.length += tokens
        self.forwards += forwards
        self.tokens_fed += tokens


class T5Decoder(_T5Session):
    """A T5 decoder in torch, on a static cache."""

    def __init__(self, engine: T5Engine, name: str, vocab_size: int) -> None:
        super().__init__(engine, name, vocab_size)
        self._capacity = 0
        self._cache: Tensor  # (layers, 2, H, P, C)

    @torch.inference_mode()
    def begin(self, encoder_outputs: Any, attention_mask: Tensor | None) -> None:
        states = self._states(encoder_outputs, attention_mask)  # (S, D)
        w = self.engine.weights
        self._cross = [
            tuple(
                functional.linear(states, layer[n]).view(-1, w.heads, w.head_width).transpose(0, 1)
                for n in ("cross_k", "cross_v")
            )
            for layer in w.layers
        ]  # per layer (H, S, C) twice
        self.length = self.forwards = self.tokens_fed = 0

    def _reserve(self, length: int) -> None:
        if length <= self._capacity:
            return
        w = self.engine.weights
        capacity = max(FIRST_CAPACITY, 2 * length)
        shape = (len(w.layers), 2, w.heads, capacity, w.head_width)
        cache = torch.zeros(shape, dtype=w.head.dtype, device=self.device)
        if self.length:
            cache[:, :, :, : self.length] = self._cache[:, :, :, : self.length]
        self._cache = cache
        future = torch.full(
            (w.heads, capacity - 1), -torch.inf, dtype=torch.float32, device=self.device
        )
        self._bias = [
            torch.cat((past, future), 1).to(w.head.dtype) for past in w.position_bias(capacity)
        ]  # per layer (H, 2 P - 1)
        self._capacity = capacity

    @torch.inference_mode()
    def feed(self, tokens: Sequence[int]) -> Tensor:
        w = self.engine.weights
        count, start = len(tokens), self.length
        end = start + count
        self._reserve(end)
        x = w.embed(torch.tensor(tokens, device="cpu"))  # (T, D)
        for i, layer in enumerate(w.layers):
            h = _norm(x, layer["self_norm"], w.epsilon)
            projected = functional.linear(h, self.engine.projections[i]).view(count, 3, w.heads, -1)
            q, k, v = projected.permute(1, 2, 0, 3)  # (H, T, C) each
            keys, values = self._cache[i]
            keys[:, start:end], values[:, start:end] = k, v
            bias = _by_position(self._bias[i], count, end, start)  # (H, T, end)
            scores = torch.baddbmm(bias, q, keys[:, :end].transpose(1, 2))
            x = _add(x, _mix(scores, values[:, :end]), layer["o"])

            h = _norm(x, layer["cross_norm"], w.epsilon)
            q = functional.linear(h, layer["cross_q"]).view(count, w.heads, -1).transpose(0, 1)
            keys, values = self._cross[i]
            scores = torch.bmm(q, keys.transpose(1, 2))  # (H, T, S)
            x = _add(x, _mix(scores, values), layer["cross_o"])
            x = _feed(x, layer, w.activation, w.epsilon)
        x = _norm(x, w.final_norm, w.epsilon)
        self._count(count)
        return functional.linear(x * w.output_scale, w.head[: self.vocab_size])


def _mix(scores: Tensor, values: Tensor) -> Tensor:
    """softmax(scores) over (H, T, n) times values (H, n, C) -> (T, H C)."""
    mixed = torch.bmm(scores.softmax(-1), values)
    return mixed.transpose(0, 1).reshape(scores.shape[1], -1)


class NativeT5Decoder(_T5Session):
    """A T5 decoder in machine code (`bild.engines.native`), on a static cache."""

    def __init__(self, engine: T5Engine, name: str, vocab_size: int) -> None:
        super().__init__(engine, name, vocab_size)
        assert engine.native is not None
        self._session = NativeSession(engine.native, vocab_size)

    def _encode(self, tokens: Tensor, hidden: Tensor | None) -> Tensor:
        assert self.engine.native_encoder is not None
        return self.engine.native_encoder.encode(tokens.tolist(), hidden)

    @torch.inference_mode()
    def begin(self, encoder_outputs: Any, attention_mask: Tensor | None) -> None:
        self._session.begin(self._states(encoder_outputs, attention_mask))
        self.length = self.forwards = self.tokens_fed = 0

    def feed(self, tokens: Sequence[int]) -> Tensor:
        logits = self._session.feed(self.length, tokens)
        self._count(len(tokens))
        return logits

    def draft(
        self,
        pending: Sequence[int],
        limit: int,
        rule: FallbackRule,
        eos_token_ids: Collection[int] = (),
    ) -> Draft:
        if not isinstance(rule, MaxProbability):
            return super().draft(pending, limit, rule, eos_token_ids)
        draft = self._session.draft(self.length, pending, limit, rule.threshold, eos_token_ids)
        forwards = len(draft.probabilities)
        if forwards:
            self._count(len(pending) + forwards - 1, forwards)
        return draft

    def verify(self, pending: Sequence[int], drafted: Sequence[int], first_row: int = 0) -> Verdict:
        verdict = self._session.verify(self.length, pending, drafted, first_row)
        self._count(len(pending))
        return verdict

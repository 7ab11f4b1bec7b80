"""A T5's encoder and decoder in machine code: packs its weights and calls `native/t5.cpp`.

Letters used for shapes: S source tokens, T fed tokens, P positions the cache holds, D model width,
H heads, C width of a head, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bild.checkpoints.drafter import spread
from bild.engines import t5_structs
from bild.engines.base import Draft, Verdict, check_ids
from bild.engines.pages import LargePages
from bild.engines.t5_structs import (
    ACTIVATIONS,
    MAX_TOKENS,
    MULTIPLE,
    PRECISIONS,
    CAsk,
    CAttention,
    CFallback,
    CFeedForward,
    CLayer,
    CMatrix,
    CModel,
    CSession,
    Double,
    Int,
)
from bild.engines.t5_weights import Attention, FeedForward, Stack
from bild.engines.threads import thread_count

FIRST_POSITIONS = 128  # of caches; doubled when they do not suffice


def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory for the library to read and write.

    All of it is made here: `torch.empty` alone follows the process's default dtype and device,
    which another thread may change at any time (transformers does while it loads a model), and
    the library would then run past the end of what it was given.
    """
    return torch.empty(shape, dtype=dtype, device="cpu")


class NativeStack:
    """An encoder's or a decoder's weights as the library wants them.

    They are copied: the kernels read them in an order of their own.

    Args:
        weights: the parameters, on the CPU.
        precision: "float32", "bfloat16" or "int8".

    Raises:
        BildError: no compiler, or it fails.
    """

    def __init__(self, weights: Stack, precision: str) -> None:
        self.library = t5_structs.load()
        self.weights = weights
        self.precision = precision
        self._pages = LargePages()  # what the structures below point to
        self.layers = (CLayer * len(weights.layers))()
        for c_layer, layer in zip(self.layers, weights.layers, strict=True):
            c_layer.own = self._attention(layer.own)
            if layer.cross is not None:
                c_layer.cross = self._attention(layer.cross)
            c_layer.feed = self._feed_forward(layer.feed)
        self.struct = CModel(
            layers=self.layers,
            layer_count=len(weights.layers),
            width=weights.width,
            heads=weights.heads,
            head_width=weights.head_width,
            feed_width=len(weights.layers[0].feed.into),
            activation=ACTIVATIONS[weights.activation],
            epsilon=weights.epsilon,
            output_scale=weights.output_scale,
            final_norm=self._keep(weights.final_norm.float()),
            embedding=CMatrix(
                data=self._keep(weights.embedding),
                type=PRECISIONS[str(weights.embedding.dtype).removeprefix("torch.")],
                columns=weights.width,
            ),
        )
        if weights.is_decoder:
            self.struct.head = self._matrix(weights.head)
            self.struct.source_width = cross_width(weights)
            if weights.shortlist is not None:
                self.struct.ids = self._keep(weights.shortlist.to(torch.int32))
        self._known = len(weights.embedding)  # token ids
        self._biases: dict[int, list[Tensor]] = {}

    def layers_with_bias(self, capacity: int) -> Any:
        """The layers with their position biases (H, P) for caches of `capacity` positions."""
        if capacity not in self._biases:
            self._biases[capacity] = self.weights.position_bias(capacity)
        layers = type(self.layers).from_buffer_copy(self.layers)
        for c_layer, bias in zip(layers, self._biases[capacity], strict=True):
            c_layer.bias = bias.data_ptr()
        return layers

    def ids(self, tokens: Sequence[int]) -> Any:
        """Token ids as the library reads them, which does not check them itself."""
        check_ids(tokens, self._known, "embeddings")
        return ints(tokens)

    def _attention(self, part: Attention) -> CAttention:
        matrices = (self._matrix(m) for m in (part.q, part.k, part.v, part.o))
        return CAttention(self._keep(part.norm.float()), *matrices)

    def _feed_forward(self, part: FeedForward) -> CFeedForward:
        gate = CMatrix() if part.gate is None else self._matrix(part.gate)
        norm = self._keep(part.norm.float())
        return CFeedForward(norm, self._matrix(part.into), gate, self._matrix(part.out))

    def _matrix(self, weight: Tensor) -> CMatrix:
        """A weight (rows, columns), rows padded with zeros to a multiple of 16, as kernels read it:
        in groups of 16 rows; of a group, for every 4 bytes of columns, its 16 rows together."""
        scales = sums = None
        weight = functional.pad(weight, (0, 0, 0, -len(weight) % MULTIPLE))
        if self.precision == "int8":
            scale = (weight.float().abs().amax(1) / 127).clamp(min=1e-12)  # one a row
            weight = (weight.float() / scale[:, None]).round().to(torch.int8)
            scales, sums = self._keep(scale), self._keep(weight.sum(1, dtype=torch.int32))
        else:
            weight = weight.to(getattr(torch, self.precision))
        rows, columns = weight.shape
        together = 4 // weight.element_size()
        groups = weight.view(rows // MULTIPLE, MULTIPLE, columns // together, together)
        data = self._keep(groups.transpose(1, 2))
        return CMatrix(data, scales, sums, PRECISIONS[self.precision], columns)

    def _keep(self, tensor: Tensor) -> int:
        return self._pages.keep(tensor).data_ptr()


class Room:
    """Memory that keeps its address until more is asked for, and then is at least doubled."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self._memory, self._count = buffer(0, dtype=dtype), 0
        self._start = self._memory.data_ptr()

    def address(self, count: int) -> int:
        """Where `count` numbers have room; what was there is lost if it had to grow."""
        if self._count < count:
            self._count = max(count, 2 * self._count)
            self._memory = buffer(self._count, dtype=self._memory.dtype)
            self._start = self._memory.data_ptr()
        return self._start


class NativeSession:
    """One sequence at a time: its caches, and calls into the library.

    All its memory is reused by the next sequence, and only grows.

    Args:
        encoder, decoder: the weights; many sessions may share them. A drafter has no encoder.
    """

    def __init__(self, encoder: NativeStack | None, decoder: NativeStack) -> None:
        self._encoder = encoder
        self.model = decoder
        self.library = decoder.library
        self.struct = CModel.from_buffer_copy(decoder.struct)
        # The source is read by every forward, beside the weights: in half precision with them.
        kept = "float32" if decoder.precision == "float32" else "bfloat16"
        self._session = CSession(cross_type=PRECISIONS[kept])
        self._cache: tuple[Tensor, Tensor]  # per layer (H, P / 16, C, 16) and (H, P, C)
        self._cross = [Room(getattr(torch, kept)) for _ in range(2)]
        self._scratch = Room()
        self._vocab_size = 0  # none as yet
        self._logits = buffer(MAX_TOKENS, padded(len(decoder.weights.head)))
        self._session.logits = self._logits.data_ptr()

    def encode(self, tokens: Tensor, hidden: Tensor | None) -> Tensor:
        """The encoder's states (S, D) of source tokens (S,), none of which sees the hidden (S,)."""
        assert self._encoder is not None, "a drafter is given the large model's states"
        stack, size = self._encoder, len(tokens)
        positions = -(-size // 128) * 128  # few different ones: their biases are kept
        layers = stack.layers_with_bias(positions)
        struct = CModel.from_buffer_copy(stack.struct)
        struct.threads, struct.layers = thread_count(), layers
        states = buffer(size, stack.weights.width)
        floats = self.library.bild_t5_encode_floats(struct, size, positions)
        self._session.scratch = self._scratch.address(floats)
        mask = None if hidden is None else buffer(size).zero_().masked_fill_(hidden, -torch.inf)
        self.library.bild_t5_encode(
            *(struct, self._session, stack.ids(tokens.tolist()), size, positions),
            *(None if mask is None else mask.data_ptr(), states.data_ptr()),
        )
        return states

    def begin(self, states: Tensor, vocab_size: int) -> None:
        """Start a sequence over the encoder's states (S, D), scoring the first V token ids."""
        w = self.model.weights
        states = states.float().contiguous()
        session = self._session
        if vocab_size != self._vocab_size:
            self.struct.vocabulary, self._vocab_size = w.rows(vocab_size), vocab_size
        self.struct.threads = thread_count()
        size = len(states)
        session.source, session.source_stride = size, padded(size)
        numbers = len(w.layers) * w.heads * session.source_stride * w.head_width
        session.cross_keys, session.cross_values = (r.address(numbers) for r in self._cross)
        self._reserve(1)
        self._make_room()
        self.library.bild_t5_begin(self.struct, session, states.data_ptr())

    def feed(self, length: int, tokens: Sequence[int]) -> Tensor:
        """Logits (T, V) of `tokens`, fed after the first `length` cached ones."""
        self.move_to(length, len(tokens))
        logits = buffer(len(tokens), padded(self.struct.vocabulary))
        self.library.bild_t5_feed(
            self.struct, self._session, self.model.ids(tokens), len(tokens), logits.data_ptr()
        )
        scores = logits[:, : self.struct.vocabulary]
        shortlist = self.model.weights.shortlist
        if shortlist is None:
            return scores
        return spread(scores, shortlist[: scores.shape[1]], self._vocab_size)

    def draft(
        self,
        length: int,
        pending: Sequence[int],
        limit: int,
        fallback: CFallback,
        eos_token_ids: Collection[int],
    ) -> Draft:
        """`Decoder.draft`, after the first `length` cached tokens."""
        self.move_to(length, len(pending) + limit)
        written, probabilities = (Int * limit)(), (Double * limit)()
        written_count = Int()
        count = self.library.bild_t5_draft(
            *(self.struct, self._session, self.model.ids(pending), len(pending)),
            *(limit, fallback, ints(eos_token_ids), len(eos_token_ids)),
            *(written, probabilities, ctypes.byref(written_count)),
        )
        kept = written_count.value
        unsure = written[kept] if count > kept else None
        return Draft(written[:kept], probabilities[:count], unsure)

    def verify(
        self,
        length: int,
        pending: Sequence[int],
        drafted: Sequence[int],
        first_row: int,
        needs: Collection[str] = (),
    ) -> Verdict:
        """`Decoder.verify`, after the first `length` cached tokens."""
        self.move_to(length, len(pending))
        check_ids(drafted, self.struct.vocabulary, "scored tokens")
        rows = len(pending) - first_row
        tokens, probabilities = (Int * rows)(), (Double * rows)()
        distances = (Double * len(drafted))()
        entropies, ranks = dear_measures(needs, len(drafted))
        self.library.bild_t5_verify(
            *(self.struct, self._session, self.model.ids(pending), len(pending)),
            *(ints(drafted), len(drafted), first_row, tokens, probabilities, distances),
            *(entropies or None, ranks or None),
        )
        return Verdict(
            *(tokens[:], probabilities[:], distances[:], None, entropies[:], ranks[:]),
        )

    def ask(self, length: int, pending: Sequence[int], more: int = 0) -> CAsk:
        """To feed `pending` after the first `length` cached tokens, and up to `more` after them.

        It points to memory of this session, which must not be given another length before.
        """
        self.move_to(length, len(pending) + more)
        return CAsk(
            model=ctypes.pointer(self.struct),
            session=ctypes.pointer(self._session),
            pending=self.model.ids(pending),
            count=len(pending),
        )

    @property
    def length(self) -> int:
        """Tokens cached, as the library has left them."""
        return int(self._session.length)

    @property
    def positions(self) -> int:
        """That a query sees at most."""
        return max(self._session.capacity, self._session.source_stride)

    def move_to(self, length: int, more: int) -> None:
        """Keep the first `length` cached tokens, with room for `more`."""
        self._session.length = length
        self._reserve(length + more)

    def _reserve(self, length: int) -> None:
        old = self._session.capacity
        if length <= old:
            return
        w = self.model.weights
        capacity = max(FIRST_POSITIONS, padded(2 * length))
        keys, values = (buffer(len(w.layers), w.heads, capacity, w.head_width) for _ in "kv")
        if old:  # positions lie in blocks of 16, those of keys too
            keys[:, :, :old], values[:, :, :old] = self._cache
        self._cache = keys, values
        self._layers = self.model.layers_with_bias(capacity)
        self.struct.layers = self._layers
        self._session.capacity = capacity
        self._session.keys, self._session.values = keys.data_ptr(), values.data_ptr()
        self._make_room()

    def _make_room(self) -> None:
        """Scratch memory for the present source, capacity and number of threads."""
        floats = self.library.bild_t5_scratch_floats(self.struct, self._session)
        self._session.scratch = self._scratch.address(floats)


def cross_width(weights: Stack) -> int:
    """How wide the states are that a decoder's cross-attention reads."""
    cross = weights.layers[0].cross
    assert cross is not None
    return cross.k.shape[1]


def padded(rows: int) -> int:
    return -(-rows // MULTIPLE) * MULTIPLE


def dear_measures(needs: Collection[str], count: int) -> tuple[Any, Any]:
    """Memory for entropies and ranks of so many tokens; of what nobody needs, for none."""
    entropies = count if "entropies" in needs else 0
    return (Double * entropies)(), (Int * (count if "ranks" in needs else 0))()


def ints(values: Collection[int]) -> Any:
    return (Int * len(values))(*values)

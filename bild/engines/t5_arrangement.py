"""The weights of a T5 as its decoders read them, and the sessions that its decoders work in.

Letters used for shapes: S source tokens, T fed tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from bild.checkpoints.drafter import BiLDDrafter
from bild.engines.requests import Company
from bild.engines.snapshot import Snapshot
from bild.engines.t5_batch import NativeCompany, TorchCompany
from bild.engines.t5_graphs import GraphSession, records
from bild.engines.t5_native import NativeSession, NativeStack
from bild.engines.t5_torch import TorchEncoder, TorchSession
from bild.engines.t5_weights import read_stack


class Session(Protocol):
    """Memory for one sequence at a time, and the calls that work in it."""

    def encode(self, tokens: Tensor, hidden: Tensor | None) -> Tensor:
        """The encoder's states (S, D) of source tokens (S,), none of which sees the hidden (S,)."""

    def begin(self, states: Tensor, vocab_size: int) -> None:
        """Start a sequence over the encoder's states (S, D), scoring the first V token ids."""

    def feed(self, length: int, tokens: Sequence[int]) -> Tensor:
        """Logits (T, V) of `tokens`, fed after the first `length` cached ones."""


class Arrangement:
    """A model's weights as they were at one moment, and the sessions that read them.

    Args:
        model: a model that `not_covered` accepts.
        precision: of the weights.
        compiled: whether sessions run in machine code.

    Attributes:
        rows: V of the model's head.
        device: where the weights are.
        records: whether sessions are `GraphSession`s.
    """

    def __init__(self, model: PreTrainedModel, precision: str, compiled: bool) -> None:
        self._snapshot = Snapshot(model)
        drafts = isinstance(model, BiLDDrafter)
        encoder = None if drafts else read_stack(model, "encoder")
        decoder = read_stack(model, "decoder")
        self.rows, self.device = decoder.vocab_size, decoder.head.device
        self.records = not compiled and records(self.device)
        self._make: Callable[[], Session]
        self._make_company: Callable[[int], Company]
        if compiled:
            reads = None if encoder is None else NativeStack(encoder, precision)
            writes = NativeStack(decoder, precision)
            self._make = partial(NativeSession, reads, writes)
            self._make_company = partial(NativeCompany, writes)
        else:
            encode = None if encoder is None else TorchEncoder(encoder)
            kind = GraphSession if self.records else TorchSession
            self._make = partial(kind, encode, decoder)
            self._make_company = lambda _: TorchCompany()
        self._companies: dict[int, Company] = {}
        self._idle: list[Session] = []
        self._lock = Lock()

    def is_current(self) -> bool:
        """Whether the model's weights are still those that were arranged."""
        return self._snapshot.is_current()

    def take(self) -> Session:
        """A session that nobody else uses until it is given back."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._make()

    def company(self, vocab_size: int) -> Company:
        """Of the sessions that score the first V token ids."""
        with self._lock:
            if vocab_size not in self._companies:
                self._companies[vocab_size] = self._make_company(vocab_size)
            return self._companies[vocab_size]

    def give_back(self, session: Session) -> None:
        """Keep a session, with its memory, for the next who needs one."""
        with self._lock:
            self._idle.append(session)

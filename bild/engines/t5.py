"""The fast engine: T5, mT5, Flan-T5 and UMT5 without transformers' forward.

`T5Engine` is what does not change between sequences; its decoders hold one sequence each, in a
session whose memory the engine keeps for the next one. On a CPU with a C++ compiler the model runs
in machine code (`t5_native`), on a GPU by recorded steps (`t5_graphs`), otherwise in torch
(`t5_torch`).

Letters used for shapes: S source tokens, T fed tokens, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from bild.checkpoints.drafter import NO_ENCODER, BiLDDrafter
from bild.engines import build
from bild.engines.base import Decoder, Draft, Verdict, check_ids
from bild.engines.coverage import not_compilable, not_covered
from bild.engines.requests import Company
from bild.engines.t5_arrangement import Arrangement
from bild.engines.t5_graphs import WIDEST, GraphSession
from bild.engines.t5_native import NativeSession
from bild.engines.t5_rules import native_fallback
from bild.engines.t5_structs import CFallback
from bild.errors import BildError
from bild.policy import FallbackRule, Step


class T5Engine:
    """A T5's weights, arranged for decoding, and arranged again when they have changed.

    Args:
        model: a model that `not_covered` accepts.
        precision: of the weights that are read: "float32", "bfloat16", or "int8" (one scale a row,
            activations stay float32; needs `compiled`). None: as the model has them.
        compiled: run in machine code made on this machine (CPU only).

    Raises:
        BildError: no compiler, or it fails.
    """

    name = "fast"

    def __init__(
        self, model: PreTrainedModel, precision: str | None = None, compiled: bool = False
    ) -> None:
        self.model = model
        self.compiled = compiled
        self._asked = precision
        self._lock = Lock()
        self._arranged: Arrangement | None = None
        self.arranged()

    @property
    def precision(self) -> str:
        own = str(self.model.dtype).removeprefix("torch.")
        return own if self._asked is None else self._asked

    def arranged(self) -> Arrangement:
        """The model's present weights, arranged.

        Raises:
            BildError: the model has become one that this engine cannot run.
        """
        with self._lock:
            if self._arranged is None or not self._arranged.is_current():
                why_not = not_covered(self.model)
                if why_not is None and self.compiled:
                    why_not = not_compilable(self.model)
                if why_not is not None:
                    raise BildError(
                        "the model was changed so that the fast engine can no longer run it: "
                        f"{why_not}; make a new BiLDModel"
                    )
                self._arranged = Arrangement(self.model, self.precision, self.compiled)
            return self._arranged

    def decoder(self, name: str, vocab_size: int | None = None) -> Decoder:
        """A decoder in a session of the engine's own, to be given back by `release`."""
        kind: type[T5Decoder] = T5Decoder
        if self.compiled:
            kind = NativeT5Decoder
        elif self.arranged().records:
            kind = GraphT5Decoder
        return kind(self, name, vocab_size)

    def __str__(self) -> str:
        return f"fast, {self.precision}, {build.load() if self.compiled else 'not compiled'}"

    def __getstate__(self) -> dict[str, Any]:
        """For copies and files: the arranged weights are made anew where they are needed."""
        return {"model": self.model, "compiled": self.compiled, "_asked": self._asked}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=Lock(), _arranged=None)


class T5Decoder(Decoder):
    """A T5 on an engine, in one of its sessions.

    Args:
        engine: whose sessions it uses.
        name: "large" or "small", for messages.
        vocab_size: score only the first so many ids; None for all the model has.

    Raises:
        BildError: a `vocab_size` beyond the model's.
    """

    def __init__(self, engine: T5Engine, name: str, vocab_size: int | None = None) -> None:
        self.engine, self.name = engine, name
        self.has_encoder = not isinstance(engine.model, BiLDDrafter)
        self._arranged = engine.arranged()
        rows = self._arranged.rows
        self.vocab_size = rows if vocab_size is None else vocab_size
        if not 0 < self.vocab_size <= rows:
            raise BildError(f"the {name} model scores {rows} token ids, not {vocab_size}")
        self._session: Any = self._arranged.take()
        self._checked = True  # that the weights have not changed, since the last `begin`
        self.length = self.forwards = self.tokens_fed = 0

    @property
    def device(self) -> torch.device:
        return self._arranged.device

    @property
    def company(self) -> Company | None:
        return self._arranged.company(self.vocab_size)

    @property
    def session(self) -> Any:
        """Where this decoder's cache is."""
        return self._session

    def _follow(self) -> None:
        """Before a new sequence: read the model's weights as they are now."""
        if self._session is None:
            raise BildError(f"the {self.name} decoder was released; ask its engine for another")
        if self._checked:
            return
        arranged = self.engine.arranged()
        if arranged is not self._arranged:
            self._arranged, self._session = arranged, arranged.take()
        self._checked = True

    def read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        **inputs: Any,
    ) -> None:
        # Looked at once: most masks hide nothing, and then nobody need ask again.
        if attention_mask is not None and attention_mask.shape == input_ids.shape:
            attention_mask = None if bool(attention_mask.all()) else attention_mask
        super().read(input_ids, attention_mask, encoder_outputs, **inputs)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None, **inputs: Any) -> Any:
        if inputs:
            raise BildError(
                f"the fast engine's encoder reads no {', '.join(inputs)}; use engine='transformers'"
            )
        if not self.has_encoder:
            raise BildError(NO_ENCODER)
        self._follow()
        if attention_mask is None or bool(attention_mask.all()):
            return (self._session.encode(input_ids[0], None)[None],)
        # Positions are relative: without the padding around it a source is the same source, to the
        # last bit. What is hidden inside it counts as distance, and stays.
        hidden = attention_mask[0].cpu() == 0  # (S,)
        kept = (~hidden).nonzero()[:, 0].tolist()
        first, end = kept[0], kept[-1] + 1
        inside = hidden[first:end] if len(kept) < end - first else None
        states = self._session.encode(input_ids[0, first:end], inside)
        return (functional.pad(states, (0, 0, first, len(hidden) - end))[None],)

    def begin(self, encoder_outputs: Any, attention_mask: Tensor | None) -> None:
        self._follow()
        states = encoder_outputs[0][0].to(self.device)  # (S, D)
        if attention_mask is not None and not bool(attention_mask.all()):
            states = states[attention_mask[0].to(states.device) != 0]  # without the padding's
        self._session.begin(states, self.vocab_size)
        self.length = self.forwards = self.tokens_fed = 0
        self._checked = False

    def feed(self, tokens: Sequence[int]) -> Tensor:
        logits: Tensor = self._session.feed(self.length, tokens)
        self.count(len(tokens))
        return logits

    def rollback_to(self, length: int) -> None:
        self.length = min(self.length, length)

    def release(self) -> None:
        if self._session is not None:
            self._arranged.give_back(self._session)
            self._session = None

    def count(self, tokens: int, forwards: int = 1) -> None:
        """Note that tokens were fed, in so many forwards."""
        self.length += tokens
        self.forwards += forwards
        self.tokens_fed += tokens


class NativeT5Decoder(T5Decoder):
    """A T5 in machine code, which drafts and verifies without logits in Python."""

    _session: NativeSession

    def draft(
        self,
        pending: Sequence[int],
        limit: int,
        rule: FallbackRule,
        eos_token_ids: Collection[int] = (),
    ) -> Draft:
        native = native_fallback(rule)
        if native is not None:
            return self._draft(pending, limit, native, eos_token_ids)
        if rule.needs:
            return super().draft(pending, limit, rule, eos_token_ids)

        def best_of(pending: Sequence[int]) -> tuple[int, float]:
            one = self._draft(pending, 1, CFallback(), eos_token_ids)
            token = one.tokens[0] if one.unsure is None else one.unsure  # of NaN
            return token, one.probabilities[0]

        return draft_by(best_of, pending, limit, rule, eos_token_ids)

    def _draft(
        self,
        pending: Sequence[int],
        limit: int,
        fallback: CFallback,
        eos_token_ids: Collection[int],
    ) -> Draft:
        draft = self._session.draft(self.length, pending, limit, fallback, eos_token_ids)
        forwards = len(draft.probabilities)
        if forwards:
            self.count(len(pending) + forwards - 1, forwards)
        return draft

    def verify(
        self,
        pending: Sequence[int],
        drafted: Sequence[int],
        first_row: int = 0,
        needs: Collection[str] = (),
    ) -> Verdict:
        if isinstance(self.engine.model, BiLDDrafter):  # t5.cpp verifies with whole heads alone
            return super().verify(pending, drafted, first_row, needs)
        verdict = self._session.verify(self.length, pending, drafted, first_row, needs)
        self.count(len(pending))
        return verdict


class GraphT5Decoder(T5Decoder):
    """A T5 on a GPU, whose steps say by themselves what drafting and verification ask."""

    @property
    def company(self) -> None:
        """None: each step is a graph of its own session, and several cost what they cost alone."""

    def _looks(self, pending: Sequence[int]) -> bool:
        """Whether one step can be asked; a model that has left its GPU has other sessions."""
        return isinstance(self._session, GraphSession) and len(pending) <= WIDEST

    def draft(
        self,
        pending: Sequence[int],
        limit: int,
        rule: FallbackRule,
        eos_token_ids: Collection[int] = (),
    ) -> Draft:
        if rule.needs or not self._looks(pending):
            return super().draft(pending, limit, rule, eos_token_ids)

        def best_of(pending: Sequence[int]) -> tuple[int, float]:
            best, distance, _ = self._session.look(self.length, pending)[-1]
            self.count(len(pending))
            return int(best), math.exp(-distance)

        return draft_by(best_of, pending, limit, rule, eos_token_ids)

    def verify(
        self,
        pending: Sequence[int],
        drafted: Sequence[int],
        first_row: int = 0,
        needs: Collection[str] = (),
    ) -> Verdict:
        # A head with a shortlist does not score every token that may be asked for.
        if needs or isinstance(self.engine.model, BiLDDrafter) or not self._looks(pending):
            return super().verify(pending, drafted, first_row, needs)
        check_ids(drafted, self.vocab_size, "scored tokens")
        rows = self._session.look(self.length, pending, drafted, first_row)[first_row:]
        self.count(len(pending))
        return Verdict(
            [int(token) for token, _, _ in rows],
            [math.exp(-distance) for _, distance, _ in rows],
            [distance for _, _, distance in rows[: len(drafted)]],
        )


def draft_by(
    best_of: Callable[[Sequence[int]], tuple[int, float]],
    pending: Sequence[int],
    limit: int,
    rule: FallbackRule,
    eos_token_ids: Collection[int],
) -> Draft:
    """`Decoder.draft` token by token, by a rule that looks at probabilities alone.

    Args:
        best_of: feeds tokens; the best token after them, and its probability.
        pending, limit, rule, eos_token_ids: as `Decoder.draft`'s.
    """
    tokens: list[int] = []
    probabilities: list[float] = []
    product = 1.0
    while len(tokens) < limit:
        token, probability = best_of(pending)
        probabilities.append(probability)
        product *= probability
        if math.isnan(probability) or rule.should_stop(Step(probability, product)):
            return Draft(tokens, probabilities, unsure=token)
        tokens.append(token)
        if token in eos_token_ids:
            break
        pending = [token]
    return Draft(tokens, probabilities, unsure=None)

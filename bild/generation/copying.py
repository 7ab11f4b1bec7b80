"""Drafts that are copied: from the SOURCE and from the output so far, at no forward.

Where the last tokens of the output stand in the source too, or earlier in the output, what followed
them there is drafted. It is a `Decoder` like any other, so that the loop is unchanged: with a small
model it drafts first, and the small model where nothing is found; or it drafts alone.

Source: Saxena, "Prompt Lookup Decoding", 2023, which looks at decoder tokens only; Ge et al.,
"Lossless Acceleration for Seq2seq Generation with Aggressive Decoding", 2022, copies the source.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from bild.config import BiLDConfig
from bild.engines import Decoder, Draft
from bild.errors import BildError
from bild.policy import FallbackRule

LONGEST, SHORTEST = 4, 2  # tokens that must stand in both places


def continuation(output: Sequence[int], source: Sequence[int], limit: int, known: int) -> list[int]:
    """What followed the output's last tokens where they stood before.

    Args:
        output: tokens so far, the decoder start token first, which is no part of a match.
        source: of the encoder.
        limit: tokens at most.
        known: token ids below this may be written; the copy ends before any other.

    Returns:
        Tokens after the longest match of `LONGEST` to `SHORTEST` tokens: the first place in the
        source, or else the latest in the output; empty where there is none.
    """
    written = list(output[1:])
    for size in range(min(LONGEST, len(written)), SHORTEST - 1, -1):
        last = written[-size:]
        places = [(source, i) for i in range(len(source) - size)]
        places += [(written, i) for i in range(len(written) - size - 1, -1, -1)]
        for text, i in places:
            if list(text[i : i + size]) == last:
                copied = list(text[i + size : i + size + limit])
                strange = next((n for n, t in enumerate(copied) if not 0 <= t < known), None)
                return copied[:strange]
    return []


class CopyDecoder(Decoder):
    """Drafts by copying; where nothing is found the small model drafts, or nobody.

    Args:
        inner: the small model's decoder, which has read the source, or is to when it is needed.
        source: its token ids.
        alone: the small model never drafts.
    """

    def __init__(self, inner: Decoder, source: Sequence[int], alone: bool) -> None:
        self.inner, self.source, self.alone = inner, list(source), alone
        self.name, self.vocab_size = inner.name, inner.vocab_size
        self._cached: list[int] = []  # what the inner decoder has been fed
        self._follow()

    @property
    def device(self) -> torch.device:
        return self.inner.device

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None, **inputs: Any) -> Any:
        return self.inner.encode(input_ids, attention_mask, **inputs)

    def begin(self, encoder_outputs: Any, attention_mask: Tensor | None) -> None:
        self.inner.begin(encoder_outputs, attention_mask)
        self._cached = []
        self._follow()

    def feed(self, tokens: Sequence[int]) -> Tensor:
        raise BildError(
            "copied drafts have no scores: leave logits processors, stopping criteria and output "
            'scores out, or use copying="no"'
        )

    def draft(
        self,
        pending: Sequence[int],
        limit: int,
        rule: FallbackRule,
        eos_token_ids: Collection[int] = (),
    ) -> Draft:
        output = [*self._cached, *pending]
        copied = continuation(output, self.source, limit, self.vocab_size)
        end = next((i + 1 for i, t in enumerate(copied) if t in eos_token_ids), None)
        copied = copied[:end]
        if copied or self.alone:
            return Draft(copied, [1.0] * len(copied), unsure=None)
        self.inner.ready()
        draft = self.inner.draft(pending, limit, rule, eos_token_ids)
        self._cached = [*output, *draft.tokens][: self.inner.length]
        self._follow()
        return draft

    def rollback_to(self, length: int) -> None:
        self.inner.rollback_to(length)
        del self._cached[length:]
        self._follow()

    def _follow(self) -> None:
        inner = self.inner
        self.length, self.forwards, self.tokens_fed = inner.length, inner.forwards, inner.tokens_fed
        self.encoder_seconds = inner.encoder_seconds


def with_copies(
    small: Decoder, source: Tensor, config: BiLDConfig | None, output_trace: bool
) -> Decoder:
    """The small model's decoder, with copies before it or in its place, if that is asked for.

    Args:
        small: has read the source, or is to when it is needed.
        source: token ids, (1, S).
        config: whose `copying` says it.
        output_trace: whether a trace is asked for.

    Raises:
        BildError: copies and a trace.
    """
    if not isinstance(config, BiLDConfig) or config.copying == "no":
        return small
    if output_trace:
        raise BildError(
            f"a trace tells of forwards, of which copies make none; leave output_trace out, or "
            f"use copying='no', got copying={config.copying!r}"
        )
    return CopyDecoder(small, source[0].tolist(), config.copying == "alone")

"""Any encoder-decoder model of transformers, on the library's own caches.

Letters used for shapes: S source tokens, T fed tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from bild.engines.base import Decoder


class HuggingFaceDecoder(Decoder):
    """A `PreTrainedModel` with `is_encoder_decoder` and an `EncoderDecoderCache`.

    Args:
        model: the model, in evaluation mode.
        name: "large" or "small", for messages.
        vocab_size: score only the first so many ids; None for all the model has.
    """

    def __init__(self, model: PreTrainedModel, name: str, vocab_size: int | None = None) -> None:
        self.model = model
        self.name = name
        rows = model.get_output_embeddings().weight.shape[0]
        self.vocab_size = rows if vocab_size is None else vocab_size
        self._cut = self.vocab_size < rows
        self._encoder_outputs: Any = None
        self._attention_mask: Tensor | None = None
        self._cache: EncoderDecoderCache | None = None
        self.length = self.forwards = self.tokens_fed = 0

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.no_grad()
    def encode(self, input_ids: Tensor, attention_mask: Tensor | None) -> Any:
        return self.model.get_encoder()(
            input_ids=input_ids.to(self.device),
            attention_mask=None if attention_mask is None else attention_mask.to(self.device),
            return_dict=True,
        )

    def begin(self, encoder_outputs: Any, attention_mask: Tensor | None) -> None:
        if not isinstance(encoder_outputs, BaseModelOutput):
            encoder_outputs = BaseModelOutput(last_hidden_state=encoder_outputs[0])
        self._encoder_outputs = encoder_outputs
        self._attention_mask = None if attention_mask is None else attention_mask.to(self.device)
        # Without a config: DynamicCache(config=...) makes as many layers as the ENCODER has, and
        # a deeper decoder then runs out of them (transformers 5.23).
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.length = self.forwards = self.tokens_fed = 0

    @torch.no_grad()
    def feed(self, tokens: Sequence[int]) -> Tensor:
        logits = self.model(
            encoder_outputs=self._encoder_outputs,
            attention_mask=self._attention_mask,
            decoder_input_ids=torch.tensor([tokens], device=self.device),  # (1, T)
            past_key_values=self._cache,
            use_cache=True,
            return_dict=True,
        ).logits[0]  # (T, V)
        self.length += len(tokens)
        self.forwards += 1
        self.tokens_fed += len(tokens)
        return logits[:, : self.vocab_size] if self._cut else logits

    def rollback_to(self, length: int) -> None:
        surplus = self.length - length
        if surplus <= 0:
            return
        assert self._cache is not None
        # EncoderDecoderCache.crop trims self-attention only, which is what is wanted here. Its
        # argument is the number of tokens to remove, negative (transformers 5.23).
        self._cache.crop(-surplus)
        self.length = length

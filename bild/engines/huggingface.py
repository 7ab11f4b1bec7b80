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
from transformers.utils import ModelOutput

from bild.checkpoints.vocabulary import input_device, output_rows
from bild.engines.base import Decoder

# Model types of which it was tested that several tokens, fed at once onto a cache, give what they
# give one by one. Some do not: FSMT then lets a token see those after it, ProphetNet refuses.
SEVERAL_AT_ONCE = frozenset(
    (
        *("t5", "mt5", "umt5", "longt5", "t5gemma", "t5gemma2", "switch_transformers"),
        *("bart", "mbart", "plbart", "mvp", "led", "bigbird_pegasus", "pegasus", "pegasus_x"),
        *("marian", "m2m_100", "nllb-moe", "blenderbot", "blenderbot-small"),
        *("seamless_m4t", "seamless_m4t_v2", "florence2", "whisper"),
    )
)
DECODERS_SEVERAL_AT_ONCE = frozenset(("bert", "roberta", "gpt2"))  # of "encoder-decoder"


def feeds_several(model: PreTrainedModel) -> bool:
    """Whether several tokens may be fed to a model at once."""
    kind = model.config.model_type
    if kind == "encoder-decoder":
        return model.config.decoder.model_type in DECODERS_SEVERAL_AT_ONCE
    return kind in SEVERAL_AT_ONCE


class HuggingFaceDecoder(Decoder):
    """A `PreTrainedModel` with `is_encoder_decoder` and an `EncoderDecoderCache`.

    A model that is not known to take several tokens at once (`SEVERAL_AT_ONCE`) gets them one by
    one, each in a forward of its own.

    Args:
        model: the model, in evaluation mode.
        name: "large" or "small", for messages.
        vocab_size: score only the first so many ids; None for all the model has.
    """

    def __init__(self, model: PreTrainedModel, name: str, vocab_size: int | None = None) -> None:
        self.model = model
        self.name = name
        rows = output_rows(model)
        self.vocab_size = rows if vocab_size is None else vocab_size
        self._cut = self.vocab_size < rows
        self._several = feeds_several(model)
        self._device = input_device(model)
        self._encoder_outputs: Any = None
        self._attention_mask: Tensor | None = None
        self._cache: EncoderDecoderCache | None = None
        self.length = self.forwards = self.tokens_fed = 0

    @property
    def device(self) -> torch.device:
        return self._device

    @torch.no_grad()
    def encode(self, input_ids: Tensor, attention_mask: Tensor | None) -> Any:
        return self.model.get_encoder()(
            input_ids=input_ids.to(self.device),
            attention_mask=None if attention_mask is None else attention_mask.to(self.device),
            return_dict=True,
        )

    def begin(self, encoder_outputs: Any, attention_mask: Tensor | None) -> None:
        # Its own class: a mixture of experts looks for its routers there.
        if not isinstance(encoder_outputs, ModelOutput):
            encoder_outputs = BaseModelOutput(last_hidden_state=encoder_outputs[0])
        self._encoder_outputs = encoder_outputs
        self._attention_mask = None if attention_mask is None else attention_mask.to(self.device)
        # Without a config: DynamicCache(config=...) makes as many layers as the ENCODER has, and
        # a deeper decoder then runs out of them (transformers 5.23).
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.length = self.forwards = self.tokens_fed = 0

    def feed(self, tokens: Sequence[int]) -> Tensor:
        if self._several:
            return self._forward(tokens)
        return torch.cat([self._forward([token]) for token in tokens])

    @torch.no_grad()
    def _forward(self, tokens: Sequence[int]) -> Tensor:
        logits: Tensor = self.model(
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

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

from bild.checkpoints.drafter import NO_ENCODER, BiLDDrafter
from bild.checkpoints.vocabulary import input_device, output_rows
from bild.engines.base import Decoder
from bild.engines.probe import takes_several
from bild.errors import BildError


def refuse_prompt_learning(model: PreTrainedModel) -> None:
    """Refuse prefix and prompt tuning: they put states before the decoder's own by a way of
    preparing inputs that only transformers' `generate` goes."""
    learns = getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
    prepares = vars(model).get("prepare_inputs_for_generation")
    changed = prepares is not None and (
        getattr(prepares, "__func__", None) is not type(model).prepare_inputs_for_generation
    )
    if learns or changed:
        raise BildError(
            "BiLD does not run prefix or prompt tuning, which prepares a model's inputs in a way "
            "of its own; use an adapter that changes weights, such as LoRA"
        )


class HuggingFaceDecoder(Decoder):
    """A `PreTrainedModel` with `is_encoder_decoder` and an `EncoderDecoderCache`.

    A model that does not take several tokens at once (`bild.engines.probe`) gets them one by one,
    each in a forward of its own.

    Args:
        model: the model, in evaluation mode.
        name: "large" or "small", for messages.
        vocab_size: score only the first so many ids; None for all the model has.

    Raises:
        BildError: a model without a head, without weights, or with prefix or prompt tuning.
    """

    def __init__(self, model: PreTrainedModel, name: str, vocab_size: int | None = None) -> None:
        self.model = model
        self.name = name
        self.has_encoder = not isinstance(model, BiLDDrafter)
        refuse_prompt_learning(model)
        rows = output_rows(model)
        self.vocab_size = rows if vocab_size is None else vocab_size
        self._cut = self.vocab_size < rows
        self._several = False  # known once there is a source to try it with
        self._device = input_device(model)
        self._encoder_outputs: Any = None
        self._attention_mask: Tensor | None = None
        self._cache: EncoderDecoderCache
        self.length = self.forwards = self.tokens_fed = 0

    @property
    def device(self) -> torch.device:
        return self._device

    @torch.no_grad()
    def encode(self, input_ids: Tensor, attention_mask: Tensor | None, **inputs: Any) -> Any:
        if not self.has_encoder:
            raise BildError(NO_ENCODER)
        inputs |= {"input_ids": input_ids, "attention_mask": attention_mask}
        here = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        return self.model.get_encoder()(**here, return_dict=True)

    def begin(self, encoder_outputs: Any, attention_mask: Tensor | None) -> None:
        # Its own class: a mixture of experts looks for its routers there.
        if not isinstance(encoder_outputs, ModelOutput):
            encoder_outputs = BaseModelOutput(last_hidden_state=encoder_outputs[0])
        self._encoder_outputs = encoder_outputs
        self._attention_mask = None if attention_mask is None else attention_mask.to(self.device)
        self._several = takes_several(self)
        self.restart()

    def restart(self) -> None:
        """Forget every token; the source stays."""
        # Without a config: DynamicCache(config=...) makes as many layers as the ENCODER has, and
        # a deeper decoder then runs out of them (transformers 5.23).
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.length = self.forwards = self.tokens_fed = 0

    def feed(self, tokens: Sequence[int]) -> Tensor:
        if self._several:
            return self.forward(tokens)
        return torch.cat([self.forward([token]) for token in tokens])

    @torch.no_grad()
    def forward(self, tokens: Sequence[int]) -> Tensor:
        """Feed tokens in one forward, whatever the model makes of that; their logits, (T, V)."""
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
        if length < self.length:
            self.take_back(self.length - length)

    def take_back(self, count: int) -> None:
        """Forget the last `count` tokens."""
        # EncoderDecoderCache.crop trims self-attention only, which is what is wanted here. Its
        # argument is the number of tokens to remove, negative (transformers 5.23).
        self._cache.crop(-count)
        self.length -= count

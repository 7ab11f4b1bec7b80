"""Decoder prompts that are padded on the left, with a mask that hides the padding.

To a model whose positions are relative such a prompt is the one without the padding, and so it is
decoded without. Processors, criteria, streamers and the output have it, as in transformers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bild.errors import BildError

# Model types whose decoders know of a position only how far it is from another one.
RELATIVE = ("t5", "mt5", "umt5", "longt5", "switch_transformers", "t5gemma")


def hidden_tokens(model: PreTrainedModel, prompt: Tensor, mask: Tensor | None) -> int:
    """How many tokens at the beginning of a decoder prompt (1, P) no other token sees.

    Args:
        model: the large one.
        prompt: decoder tokens.
        mask: (1, P), 0 for what is hidden; None for nothing.

    Raises:
        BildError: a mask that does not fit, or that hides something else; a model to which a prompt
            behind padding is another prompt.
    """
    if mask is None:
        return 0
    if mask.shape != prompt.shape:
        raise BildError(
            f"decoder_attention_mask must have the shape of the decoder prompt, "
            f"{tuple(prompt.shape)}, got {tuple(mask.shape)}"
        )
    seen = (mask[0] != 0).nonzero()[:, 0].tolist()
    if len(seen) == prompt.shape[1]:
        return 0
    if not seen or len(seen) != prompt.shape[1] - seen[0]:
        raise BildError(
            "decoder_attention_mask must hide padding before the decoder prompt and nothing else, "
            f"got {mask[0].tolist()}"
        )
    kind = model.config.model_type
    if kind not in RELATIVE:
        raise BildError(
            f"BiLD does not support decoder_attention_mask= that hides tokens for model type "
            f"{kind!r}, only for {', '.join(RELATIVE)}: give decoder_input_ids= without padding"
        )
    return int(seen[0])


class Behind:
    """A processor or a criterion that is shown hidden tokens before each prefix.

    Args:
        function: the processor or the criterion.
        hidden: (1, n).
    """

    def __init__(self, function: Any, hidden: Tensor) -> None:
        self.function, self.hidden = function, hidden

    def __call__(self, input_ids: Tensor, scores: Any) -> Any:
        return self.function(torch.cat((self.hidden.to(input_ids.device), input_ids), 1), scores)

    def settle(self, length: int) -> None:
        """As `Rewinding.settle`."""
        if hasattr(self.function, "settle"):
            self.function.settle(self.hidden.shape[1] + length)


def behind(functions: Iterable[Any], hidden: Tensor) -> list[Any]:
    """Processors or criteria that are shown hidden tokens (1, n) before each prefix."""
    return [Behind(f, hidden) for f in functions]

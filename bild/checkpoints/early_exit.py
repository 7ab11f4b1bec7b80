"""The first layers of the large model's decoder as the small model: no second model is needed.

The paper's appendix on early exiting runs BiLD so. Everything is shared with the large model: the
encoder, the embeddings, the first layers, the last norm and the head. A model that was not trained
to be left early is a poor small model; what it drafts is checked like any other draft.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from bild.checkpoints.loading import load_model
from bild.checkpoints.names import EARLY_EXIT, Checkpoint, CheckpointName
from bild.errors import BildError

FAMILIES = ("t5", "mt5", "umt5")


def exit_layers(name: CheckpointName) -> int | None:
    """How many layers "early-exit:N" asks for; None for every other name of a small model."""
    found = EARLY_EXIT.fullmatch(name.name if isinstance(name, Checkpoint) else str(name))
    return None if found is None else int(found[1])


def early_exit(large: PreTrainedModel, layers: int) -> PreTrainedModel:
    """The large model without its decoder's later layers; it shares all parameters.

    Args:
        large: of `FAMILIES`.
        layers: of the decoder, to be kept.

    Raises:
        BildError: a model of another family; no layer, or not fewer than the large model has.
    """
    family = large.config.model_type
    if family not in FAMILIES:
        raise BildError(f"early exit is of {', '.join(FAMILIES)}, not of {family}")
    depth = large.config.num_decoder_layers
    if not 1 <= layers < depth:
        raise BildError(
            f"early exit must leave after 1 to {depth - 1} of the large model's {depth} decoder "
            f"layers, got {layers}"
        )
    config = copy.deepcopy(large.config)
    config.num_decoder_layers = layers
    with torch.device("meta"):  # nothing is allocated: all of it is the large model's
        small: PreTrainedModel = type(large)(config)
    small.shared, small.encoder, small.lm_head = large.shared, large.encoder, large.lm_head
    decoder, own = large.decoder, small.decoder
    assert isinstance(decoder, nn.Module)
    assert isinstance(own, nn.Module)
    assert isinstance(decoder.block, nn.ModuleList)
    own.embed_tokens, own.final_layer_norm = decoder.embed_tokens, decoder.final_layer_norm
    own.block = nn.ModuleList(list(decoder.block)[:layers])
    small.generation_config = copy.deepcopy(large.generation_config)
    return small.eval()


def load_small(
    name: CheckpointName,
    large: PreTrainedModel,
    dtype: torch.dtype,
    device: str | torch.device,
    **kwargs: Any,
) -> PreTrainedModel:
    """The small model of that name: a checkpoint, or "early-exit:N" of the large model.

    Arguments and errors as of `load_model` and `early_exit`.
    """
    layers = exit_layers(name)
    if layers is not None:
        return early_exit(large, layers)
    return load_model(name, dtype, device, **kwargs)


def shares_encoder(large: PreTrainedModel, small: PreTrainedModel) -> bool:
    """Whether both read the source with one encoder, which then need not run twice."""
    return small is not large and small.get_encoder() is large.get_encoder()

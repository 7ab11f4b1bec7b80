"""What both encoders read, checked; anything that one of them could not read is refused."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from bild.checkpoints.early_exit import shares_encoder
from bild.errors import BildError
from bild.generation.plan import ENCODER_INPUTS

SMALL_STATES = "small_encoder_outputs"  # of the small model; encoder_outputs= are the large one's
UNKNOWN = -100  # in the place of an id, as transformers has it where it is given states alone
OTHER_MODALITIES = ("input_features", "input_values", "pixel_values", "flattened_patches")


@dataclass(frozen=True)
class Source:
    """One source.

    Attributes:
        ids: source tokens, (1, S).
        mask: (1, S), 0 for padding; None for no padding.
        inputs: what the encoders read besides, by the keywords of `ENCODER_INPUTS`.
        states: what the encoders of some models have made of it already, by the models' names.
    """

    ids: Tensor
    mask: Tensor | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    states: Mapping[str, Any] = field(default_factory=dict)


def make_source(
    models: Mapping[str, PreTrainedModel],
    input_ids: Any,
    attention_mask: Any,
    keywords: Mapping[str, Any],
) -> Source:
    """The source that all models read.

    Args:
        models: by "large" and "small".
        input_ids, attention_mask: as given to `generate`. Ids need not be given where the outputs
            of all encoders are.
        keywords: its others; inputs and outputs of an encoder are looked for in them.

    Raises:
        BildError: not one sequence of token ids; a mask that is no tensor; an id that a model does
            not know; an input that a model's encoder does not read, or outputs that cannot be its.
    """
    states = _states(models, keywords)
    if attention_mask is not None and not isinstance(attention_mask, Tensor):
        raise BildError(
            "attention_mask must be a tensor of the shape of input_ids, got a "
            f"{type(attention_mask).__name__}"
        )
    if input_ids is None and states and _all_known(models, states):
        ids = _unknown_ids(states)
    else:
        ids = check_ids(input_ids, keywords)
    inputs = {name: keywords[name] for name in ENCODER_INPUTS if keywords.get(name) is not None}
    highest = int(ids.max())
    for which, model in models.items():
        encoder = model.get_encoder()
        if encoder is None:  # a drafter reads what the large model's makes of the source
            continue
        takes = inspect.signature(encoder.forward).parameters if inputs else {}
        for name in inputs:
            if name not in takes:
                raise BildError(
                    f"the {which} model's encoder does not read {name}=; leave it out, or use a "
                    "pair of which both do"
                )
        rows = _known_ids(encoder)
        if rows is not None and highest >= rows:
            raise BildError(
                f"the source holds token id {highest}, but the {which} model knows only {rows}; "
                "a pair must share one tokenizer"
            )
    source = Source(ids, attention_mask, inputs, states)
    for which, given in states.items():
        check_states(models[which], source, given)
    return source


def states_keyword(models: Mapping[str, PreTrainedModel], which: str) -> str:
    """The keyword of `generate` for the outputs of a model's encoder."""
    return SMALL_STATES if which == "small" and len(models) > 1 else "encoder_outputs"


def without_states(
    models: Mapping[str, PreTrainedModel], keywords: Mapping[str, Any]
) -> dict[str, Any]:
    """Keywords of `generate` without those that a source takes as its `states`."""
    taken = {states_keyword(models, which) for which in models}
    return {name: value for name, value in keywords.items() if name not in taken}


def _states(models: Mapping[str, PreTrainedModel], keywords: Mapping[str, Any]) -> dict[str, Any]:
    given = {which: keywords.get(states_keyword(models, which)) for which in models}
    return {which: states for which, states in given.items() if states is not None}


def _all_known(models: Mapping[str, PreTrainedModel], states: Mapping[str, Any]) -> bool:
    """Whether no encoder has anything to do; a drafter has none, and reads the large model's, and
    so does a small model of which that is the encoder too."""
    large = models.get("large")
    return all(
        which in states
        or model.get_encoder() is None
        or ("large" in states and large is not None and shares_encoder(large, model))
        for which, model in models.items()
    )


def _unknown_ids(states: Mapping[str, Any]) -> Tensor:
    """Ids, (1, S), of a source of which nothing but states is known: none of a vocabulary."""
    first = next(iter(states.values()))
    tensor = first[0] if isinstance(first, tuple | ModelOutput) else first
    if not isinstance(tensor, Tensor) or tensor.ndim != 3:
        raise BildError("encoder_outputs must hold states of shape (1, S, width)")
    return torch.full((1, tensor.shape[1]), UNKNOWN, device=tensor.device)


def _known_ids(encoder: Any) -> int | None:
    """How many token ids an encoder embeds, if it says."""
    try:
        rows: int | None = encoder.get_input_embeddings().num_embeddings
    except (AttributeError, NotImplementedError):  # FSMT has no such method
        return None
    return rows


def check_states(model: PreTrainedModel, source: Source, given: Any) -> None:
    """Refuse encoder outputs that cannot be those of a source.

    Args:
        model: whose encoder made them.
        source: what it read.
        given: transformers' output class, or a tuple that begins with the states (1, S, D).
    """
    states = given[0] if isinstance(given, tuple | ModelOutput) else given
    length = source.ids.shape[1]
    encoder = model.get_encoder()
    config = model.config if encoder is None else getattr(encoder, "config", None)  # FSMT's: none
    width = getattr(config, "source_width" if encoder is None else "hidden_size", None)
    right = isinstance(states, Tensor) and states.ndim == 3 and states.shape[0] == 1
    if right and not source.inputs:  # an image may add states of its own
        right = states.shape[1] == length
    if right and width is not None:
        right = states.shape[2] == width
    if not right or not isinstance(given, tuple | ModelOutput):
        shape = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
        raise BildError(
            f"encoder_outputs must hold states of shape (1, {length}, {width or 'width'}), "
            f"as the model's own encoder returns them for input_ids, got {shape}"
        )


def check_ids(given: Any, keywords: Mapping[str, Any] | None = None) -> Tensor:
    """Source ids (1, S); anything else is refused, with what it is.

    Args:
        given: what stands in their place.
        keywords: of `generate`, to tell of a source that is no text.
    """
    if given is None:
        other = next((n for n in OTHER_MODALITIES if (keywords or {}).get(n) is not None), None)
        reads = "for both models read the source"
        if other is not None:
            raise BildError(f"BiLD needs input_ids=, {reads}; text sources only, not {other}=")
        if (keywords or {}).get("encoder_outputs") is not None:
            reads += f"; or {SMALL_STATES}= besides encoder_outputs="
        raise BildError(f"BiLD needs input_ids=, {reads}")
    if isinstance(given, str):
        raise BildError(
            "input_ids must be token ids, got a text; give generate(**tokenizer(text, "
            "return_tensors='pt'))"
        )
    if isinstance(given, Mapping):
        raise BildError(
            f"input_ids must be a tensor, got a {type(given).__name__}; give generate(**inputs)"
        )
    if not isinstance(given, Tensor):
        raise BildError(
            f"input_ids must be a tensor of shape (1, tokens), got a {type(given).__name__}; "
            "give torch.tensor([ids])"
        )
    wrong_shape = given.ndim != 2 or given.shape[1] == 0
    if wrong_shape or given.is_floating_point() or bool((given < 0).any()):
        raise BildError(
            "BiLD needs input_ids of shape (1, tokens), for both models read the source, and it "
            f"reads text sources only; got a tensor of shape {tuple(given.shape)}, {given.dtype}"
        )
    if given.shape[0] != 1:
        raise BildError(f"one source is read at a time here, got a batch of {given.shape[0]}")
    return given

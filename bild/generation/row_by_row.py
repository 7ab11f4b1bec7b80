"""A batch of one of our decoding methods within transformers' `generate`: row after row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bild.errors import BildError
from bild.generation.batching import refuse_of_a_batch
from bild.generation.kept_back import kept_back
from bild.generation.output import BiLDOutput, gather, pad_token_id, states_of
from bild.generation.plan import ENCODER_INPUTS, check_settings
from bild.generation.rewinding import Beginnings
from bild.generation.sequences import Samples
from bild.generation.source import SMALL_STATES


def decode_row_by_row(
    method: Callable[..., BiLDOutput | Tensor],
    model: PreTrainedModel,
    input_ids: Tensor,
    inputs_tensor: Tensor,
    made: Mapping[str, Any],
    generator: torch.Generator | None = None,
) -> BiLDOutput | Tensor:
    """A decoding method over a batch, one row after the other, as transformers returns it.

    Args:
        method: of one row.
        model: whose padding fills up rows.
        input_ids, inputs_tensor: (B, P) and (B, S); with n sequences of each source, (B n, P), as
            is what transformers makes.
        made: its other keywords.
        generator: of the call.

    Raises:
        BildError: a setting that is not supported; a streamer, a trace, or a processor that knows
            the whole batch; prompts or states of another number of rows.
    """
    if len(inputs_tensor) > 1:
        way_out = "use BiLDModel.generate, or one source at a time"
        refuse_of_a_batch(made["logits_processor"], way_out)
    streams = {"streamer": kept_back().streamer, "bild_streamer": made["bild_streamer"]}
    for name, value in {**streams, "output_trace": made["output_trace"]}.items():
        if value:
            raise BildError(f"{name}= takes one source at a time, got a batch of {len(input_ids)}")
    config = copy(made["generation_config"])
    config.num_return_sequences = 1  # of a row
    check_settings(config)  # before rows are counted, of which beams make more
    asked = Samples.of(made, model, generator)
    if len(input_ids) != asked.count * len(inputs_tensor):
        raise BildError(
            f"decoder_input_ids must have a row for each of {len(inputs_tensor)} source(s), got "
            f"{len(input_ids) // asked.count}"
        )
    begun, found = Beginnings(), []
    for i, of_row in enumerate(asked.each({} for _ in inputs_tensor)):
        place = i // asked.count  # of the source
        own = {"generation_config": config, "generator": of_row.get("generator")}
        sizes = {"encoder_outputs": (i, len(input_ids)), SMALL_STATES: (place, len(inputs_tensor))}
        row = begun.of_a_row(_row_of({**made, **own}, i, sizes))
        row["input_ids"] = input_ids[i : i + 1]
        row["inputs_tensor"] = inputs_tensor[place : place + 1]
        found.append(method(**row))
    begun.leave()
    return gather(found, pad_token_id(made, model))


def _row_of(
    made: Mapping[str, Any], i: int, states: Mapping[str, tuple[int, int]]
) -> dict[str, Any]:
    """The keywords of row i.

    Args:
        made: of all rows.
        i: the row.
        states: which row of the states by these keywords is its, and of how many.
    """
    row = dict(made)
    for name in ("attention_mask", *ENCODER_INPUTS):
        if isinstance(row.get(name), Tensor):
            row[name] = row[name][i : i + 1]
    for name, place in states.items():
        if row.get(name) is not None:
            row[name] = states_of(name, row[name], *place)
    # An empty cache, of which each row needs its own, which its decoder makes.
    row.pop("past_key_values", None)
    return row

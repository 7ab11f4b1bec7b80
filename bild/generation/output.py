"""What `generate` returns, of one row and of several."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation import GenerateEncoderDecoderOutput
from transformers.utils import ModelOutput

from bild.errors import BildError
from bild.generation.stats import DecodeStats
from bild.generation.trace import Trace


@dataclass
class BiLDOutput(GenerateEncoderDecoderOutput):
    """What `generate` returns with `return_dict_in_generate=True`: transformers' own, and more.

    Attributes:
        sequences: (B, prompt + generated), as transformers' own: rows that ended before others
            are padded.
        scores: with `output_scores`, one (B, V) tensor a generated token: the scores, after the
            logits processors, of the model that wrote it; NaN for rows that have ended before.
        logits: with `output_logits`, the same before the processors.
        stats: what happened, in all rows together.
        row_stats: what happened in each row.
        trace: with `output_trace`, who wrote each token, and what came to nothing.
        encoder_seconds: wall-clock seconds in which the source was read, by all models together;
            where an encoder's outputs were there already, without it.

    Its other fields (attentions, hidden states, a cache) are None.
    """

    stats: DecodeStats | None = None
    row_stats: tuple[DecodeStats, ...] | None = None
    trace: Trace | None = None
    encoder_seconds: float | None = None

    def __post_init__(self) -> None:
        # The base's walks over all fields to put into the dictionary what is there already.
        if not isinstance(self.sequences, Tensor):
            super().__post_init__()

    def __setattr__(self, name: str, value: Any) -> None:
        # As the base's, which looks all fields up anew each time: a tenth of a short decoding.
        if value is not None and name in OUTPUT_FIELDS:
            OrderedDict.__setitem__(self, name, value)
        object.__setattr__(self, name, value)


OUTPUT_FIELDS = frozenset(field.name for field in fields(BiLDOutput))


def pad_token_id(keywords: Mapping[str, Any], model: PreTrainedModel) -> int:
    """What stands after rows that ended before others; as transformers finds it.

    Args:
        keywords: of `generate`; they go before the model's own settings.
        model: that writes.
    """
    configs = keywords.get("generation_config"), model.generation_config
    for name in ("pad_token_id", "eos_token_id"):
        for value in (keywords.get(name), *(getattr(c, name, None) for c in configs)):
            if value is not None:
                return int(value[0] if isinstance(value, list | tuple) else value)
    return 0


def gather(outputs: list[BiLDOutput | Tensor], pad_token_id: int) -> BiLDOutput | Tensor:
    """One output of several: rows padded on the right, as transformers pads them.

    Args:
        outputs: one a row; all of one kind.
        pad_token_id: stands after a row that ended before others.
    """
    if isinstance(outputs[0], Tensor):
        return _padded([o for o in outputs if isinstance(o, Tensor)], pad_token_id)
    rows = [o for o in outputs if isinstance(o, BiLDOutput)]
    stats = tuple(own for o in rows if o.row_stats is not None for own in o.row_stats)
    return BiLDOutput(
        sequences=_padded([o.sequences for o in rows if o.sequences is not None], pad_token_id),
        scores=_together([o.scores for o in rows]),
        logits=_together([o.logits for o in rows]),
        stats=sum(stats, DecodeStats()),
        row_stats=stats,
        encoder_seconds=sum(o.encoder_seconds or 0.0 for o in rows),
    )


def _padded(rows: list[Tensor], pad_token_id: int) -> Tensor:
    """(1, n) each -> (B, longest)."""
    longest = max(row.shape[1] for row in rows)
    together = rows[0].new_full((len(rows), longest), pad_token_id)
    for i, row in enumerate(rows):
        together[i, : row.shape[1]] = row[0]
    return together


def _together(rows: list[tuple[Tensor, ...] | None]) -> tuple[Tensor, ...] | None:
    """Scores of each row, (1, V) a token -> (B, V) a token, NaN where a row has ended."""
    kept = [row for row in rows if row is not None]
    if not kept:
        return None
    longest = max(kept, key=len)
    if not longest:
        return ()
    ended = torch.full_like(longest[0], torch.nan)
    return tuple(
        torch.cat([row[i] if i < len(row) else ended for row in kept]) for i in range(len(longest))
    )


def shape_of_states(given: Any) -> tuple[int, ...] | None:
    """The shape, (B, S, D), of the states in an encoder's outputs; None where they are none."""
    states = given[0] if isinstance(given, tuple | ModelOutput) and len(given) else given
    return tuple(states.shape) if isinstance(states, Tensor) and states.ndim == 3 else None


def states_of(name: str, given: Any, i: int, size: int) -> Any:
    """Row i of an encoder's outputs: the states, and what else has a row for each source.

    Args:
        name: of the keyword.
        given: its value; what holds no states is refused where it is read.
        i: the row.
        size: rows that there are.

    Raises:
        BildError: states of more or fewer sources.
    """
    shape = shape_of_states(given)
    if shape is not None and shape[0] != size:
        raise BildError(
            f"{name} must hold states of {size} source(s), got {shape[0]}, of shape {shape}"
        )
    if isinstance(given, ModelOutput):
        parts = {k: v[i : i + 1] for k, v in given.items() if isinstance(v, Tensor)}
        return type(given)(**parts)
    if isinstance(given, tuple) and given and isinstance(given[0], Tensor):
        return (given[0][i : i + 1],)
    return given

"""Several rows at a time: each decodes as if it were alone, and what they ask is put together.

A row is a `Steps` generator of `bild.generation.decoding`. `run_rows` keeps a fixed number of rows
busy: it gathers what they ask of the models, answers all in as few forwards as the engine allows
(`bild.engines.requests.answer`), and lets a waiting row begin where one has ended.

The large model is asked last: a row that waits for a verdict waits until the others have drafted,
so that one large forward serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers.generation import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
)

from bild.engines.requests import LATER, Effort, Request, answer
from bild.errors import BildError
from bild.generation.decoding import Steps
from bild.generation.output import shape_of_states, states_of
from bild.generation.pace import Steers, TurnRequest
from bild.generation.plan import ENCODER_INPUTS
from bild.generation.rewinding import Beginnings
from bild.generation.source import SMALL_STATES

R = TypeVar("R")

# Of a call, and of no single source: who draws from what, and what is returned.
OF_A_CALL = (
    *("do_sample", "num_return_sequences", "generation_config", "return_dict_in_generate"),
    *("streamer", "output_trace"),
)
# Logits processors that know all sources of a batch, by the places of their rows.
OF_A_BATCH = (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
)
BY_SETTINGS = (
    "give what makes it, as encoder_repetition_penalty= or prefix_allowed_tokens_fn=, or give it "
    "with its source"
)
OF_ROWS = (*ENCODER_INPUTS, "decoder_input_ids", "decoder_attention_mask")


class _Row:
    """A row that is being decoded, and what it asks for.

    Attributes:
        request: asked of a model; None where it waits for its next turn, or has ended.
        turn: asked for, where it waits for that.
        ended: whether `result` is there.
        steering: of the rows that are steered with it, if it is steered.
    """

    def __init__(self, number: int, steps: Steps[Any]) -> None:
        self.number, self.steps = number, steps
        self.request: Request | None = None
        self.turn: TurnRequest | None = None
        self.steering: Steers | None = None
        self.ended = False
        self.result: Any = None
        self.tell(None)

    def tell(self, reply: Any) -> None:
        """Go on with the answer to its request; afterwards it has another, or its result."""
        self.request = self.turn = None
        try:
            asked = self.steps.send(reply)
        except StopIteration as end:
            self.ended, self.result = True, end.value
            return
        if isinstance(asked, TurnRequest):
            self.turn, self.steering = asked, asked.steering
        else:
            self.request = asked


def run_rows(rows: Iterable[Steps[R] | None], size: int) -> Iterator[tuple[int, R]]:
    """Decode rows, `size` at a time, and yield each one's number and result once it has ended.

    Args:
        rows: what is to be decoded; a row is taken when there is room for it, at any time. None
            where none waits just now: it is asked again before the next forward.
        size: rows that are decoded together, at least 1.
    """
    waiting, number, more = iter(rows), count(), True
    busy: list[_Row] = []
    try:
        while True:
            while more and len(busy) < size:
                try:
                    steps = next(waiting)
                except StopIteration:
                    more = False
                    break
                if steps is None:
                    break
                busy.append(_Row(next(number), steps))
            if not busy and not more:
                return
            ended = [row for row in busy if row.ended]
            if busy and not ended and not _begin_turns(busy):
                _answer_some(busy)
            for row in ended:
                busy.remove(row)
                yield row.number, row.result
    finally:
        for row in busy:  # they give back what the engines lent them
            row.steps.close()


def _begin_turns(busy: list[_Row]) -> bool:
    """Let rows that are steered together begin their next turn, once all of them wait for it."""
    begun = False
    for steering in dict.fromkeys(row.steering for row in busy if row.turn is not None):
        rows = [row for row in busy if row.steering is steering]
        waiting = [(row, row.turn.pace) for row in rows if row.turn is not None]
        assert steering is not None
        if len(waiting) == len(rows):
            steering.begin([pace for _, pace in waiting])
        elif steering.may_join:
            for _, pace in waiting:
                steering.join(pace)
        else:
            continue
        begun = True
        for row, _ in waiting:
            row.tell(None)
    return begun


def _answer_some(busy: list[_Row]) -> None:
    """Answer what is asked of the small model; where nothing is, of the large one.

    Rows that are steered are asked for by themselves, so that it is known what theirs took.
    """
    asking = [(row, row.request) for row in busy if row.request is not None]
    first = min(_asked_last(request) for _, request in asking)
    chosen = [(row, request) for row, request in asking if _asked_last(request) == first]
    for steering in dict.fromkeys(row.steering for row, _ in chosen):
        own = [(row, request) for row, request in chosen if row.steering is steering]
        if steering is None:
            _answer_all(own)
            continue
        effort, start = Effort([request for _, request in own]), steering.clock()
        _answer_all(own)
        name = own[0][1].decoder.name
        steering.forwards_made(name, steering.clock() - start, *effort.so_far())


def _answer_all(asking: list[tuple[_Row, Request]]) -> None:
    replies = answer([request for _, request in asking])
    for (row, _), reply in zip(asking, replies, strict=True):
        if reply is not LATER:
            row.tell(reply)


def _asked_last(request: Request) -> bool:
    return request.decoder.name == "large"


def fail_alone(steps: Steps[R]) -> Steps[R | Exception]:
    """The same row, whose error is its result, so that the others go on."""
    try:
        return (yield from steps)
    except Exception as error:
        return error


def in_order(found: Iterable[tuple[int, R]]) -> Iterator[R]:
    """Results in the order of their numbers, from 0; those that come too early are kept."""
    kept: dict[int, R] = {}
    number = 0
    for own, result in found:
        kept[own] = result
        while number in kept:
            yield kept.pop(number)
            number += 1


def decode_rows(
    steps: Callable[..., Steps[R]],
    rows: Iterable[Mapping[str, Any]],
    size: int,
) -> Iterator[R]:
    """What `steps` comes to with each row's keywords, in order, `size` rows at a time.

    Args:
        steps: makes a row's.
        rows: the keywords of each.
        size: at least 1.
    """
    begun = Beginnings()
    yield from in_order(run_rows((steps(**begun.of_a_row(row)) for row in rows), size))
    begun.leave()


def check_batch_size(size: Any, keywords: Mapping[str, Any]) -> None:
    """Refuse a batch size that is none, and what only one row can be given."""
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise BildError(f"batch_size must be a whole number of at least 1, got {size!r}")
    refuse_of_one_row(keywords)
    refuse_of_a_batch(keywords.get("logits_processor"), BY_SETTINGS)


# ------------------------------------------------------------------------------ rows of a batch


def as_keywords(source: Any) -> dict[str, Any]:
    """The keywords of `generate` for one source: ids, or what a tokenizer returns.

    Raises:
        BildError: it brings a setting by which all outputs of a call are made.
    """
    found = dict(source) if isinstance(source, Mapping) else {"input_ids": source}
    for name in OF_A_CALL:
        if found.get(name) is not None:
            raise BildError(f"a source cannot bring {name}=, which is the call's; give it there")
    for name in ("input_ids", "attention_mask"):
        value = found.get(name)
        if isinstance(value, list | tuple):
            value = torch.tensor(value, dtype=torch.long, device="cpu")
        if isinstance(value, Tensor):
            found[name] = value[None] if value.ndim == 1 else value
    return found


def rows_given(input_ids: Any, keywords: Mapping[str, Any]) -> int:
    """How many sources a call of `generate` has, by their ids, (B, S), or else by their states."""
    if isinstance(input_ids, Tensor) and input_ids.ndim == 2:
        return len(input_ids)
    states = None if input_ids is not None else shape_of_states(keywords.get("encoder_outputs"))
    return 1 if states is None else states[0]


def split_rows(
    input_ids: Tensor | None, attention_mask: Any, keywords: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The keywords of `generate` for each row of a batch.

    Args:
        input_ids: source tokens, (B, S); None where the encoders' outputs are given without.
        attention_mask: (B, S), or None for no padding, whatever the ids are.
        keywords: the others; what has B rows is split, all else is given to each row.

    Raises:
        BildError: a mask of another shape; states or prompts of another number of rows; what can
            only be given with one row.
    """
    size = rows_given(input_ids, keywords)
    states = shape_of_states(keywords.get("encoder_outputs"))
    shape = states[:2] if input_ids is None and states is not None else None
    shape = shape if input_ids is None else tuple(input_ids.shape)
    if attention_mask is not None and getattr(attention_mask, "shape", None) != shape:
        given = getattr(attention_mask, "shape", None)
        given = f"a {type(attention_mask).__name__}" if given is None else tuple(given)
        raise BildError(f"attention_mask must have the shape of input_ids, {shape}, got {given}")
    refuse_of_one_row(keywords)
    refuse_of_a_batch(keywords.get("logits_processor"), BY_SETTINGS)
    rows: list[dict[str, Any]] = []
    for i in range(size):
        own = {name: _row_of(name, value, i, size) for name, value in keywords.items()}
        own["input_ids"] = None if input_ids is None else input_ids[i : i + 1]
        own["attention_mask"] = None if attention_mask is None else attention_mask[i : i + 1]
        rows.append(own)
    return rows


def refuse_of_one_row(keywords: Mapping[str, Any]) -> None:
    """Refuse what only a call for one output can be given."""
    for name, reason in (
        ("streamer", "the rows of a batch commit tokens, and end, at different times"),
        ("output_trace", "a trace tells of the forwards of one output, and a batch shares them"),
    ):
        if keywords.get(name):
            raise BildError(
                f"BiLD does not support {name}= with several outputs at a time: {reason}; give "
                "generate one source at a time"
            )


def refuse_of_a_batch(processors: Any, way_out: str) -> None:
    """Refuse logits processors that know several sources, where each row would need its own.

    Args:
        processors: given to all rows; None for none.
        way_out: what to do instead.
    """
    for processor in processors or ():
        if isinstance(processor, OF_A_BATCH):
            raise BildError(
                f"BiLD cannot use {type(processor).__name__} with several sources, of which each "
                f"would need its own; {way_out}"
            )


def _row_of(name: str, value: Any, i: int, size: int) -> Any:
    """What row i gets of a keyword's value."""
    if value is None:
        return None
    if name in OF_ROWS and isinstance(value, Tensor) and value.ndim:
        if len(value) == size:
            return value[i : i + 1]
        if value.ndim > 1 and len(value) != 1:
            raise BildError(f"{name} must have a row for each of {size} sources, got {len(value)}")
    if name in ("encoder_outputs", SMALL_STATES):
        return states_of(name, value, i, size)
    if name == "prefix_allowed_tokens_fn":
        return lambda _, ids: value(i, ids)
    return value

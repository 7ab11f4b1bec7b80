"""One model that generates alone, on its engine: the baseline of a pair, and its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from bild.checkpoints.vocabulary import output_rows
from bild.engines import Decoder, EngineName, make_engine
from bild.generation.batching import (
    TOKENS_AT_A_TIME,
    as_keywords,
    check_batch_size,
    decode_rows,
    is_batch,
    split_rows,
)
from bild.generation.decoding import Steps, answer_at_once
from bild.generation.generate import Stream, single_steps
from bild.generation.output import BiLDOutput, gather, pad_token_id
from bild.generation.plan import ENCODER_INPUTS, Plan, Planner
from bild.generation.source import Source, make_source, without_states
from bild.generation.texts import TokenizerHolder, describe
from bild.policy import Writer


class SingleModel:
    """One encoder-decoder model on an engine.

    Args:
        model: the model, in evaluation mode.
        name: "large" or "small": what messages call it, and as whose its forwards are counted.
        vocab_size: write only the first so many ids; None for all.
        engine, precision, compile: as for `BiLDModel`.
        tokenizer: for stop strings, where a call gives no other.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        name: Writer = "large",
        vocab_size: int | None = None,
        *,
        engine: EngineName = "auto",
        precision: str | None = None,
        compile: bool | None = None,
        tokenizer: PreTrainedTokenizerBase | TokenizerHolder | None = None,
    ) -> None:
        self.model, self.name, self.vocab_size = model, name, vocab_size
        self.engine = make_engine(model, engine, precision, compile)
        if not isinstance(tokenizer, TokenizerHolder):
            tokenizer = TokenizerHolder(output_rows(model), tokenizer)
        self._planner = Planner(model, tokenizer.find)

    def __repr__(self) -> str:
        return f"SingleModel({self.model_and_engine}, {self.model.device})"

    @property
    def model_and_engine(self) -> str:
        """What it is and what runs it, for people."""
        return f"<{describe(self.model)} on {self.engine}>"

    def greedy(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        streamer: BaseStreamer | None = None,
        output_trace: bool = False,
        **generate_kwargs: Any,
    ) -> BiLDOutput | Tensor:
        """Generate greedily; arguments, results and errors as of `BiLDModel.generate`.

        Its forwards are counted as those of the model it is named after.
        """
        given = {"streamer": streamer, "output_trace": output_trace, **generate_kwargs}
        return greedy_rows(self.steps, self.model, input_ids, attention_mask, **given)

    def greedy_many(
        self, sources: Iterable[Any], *, batch_size: int = 8, **generate_kwargs: Any
    ) -> Iterator[BiLDOutput | Tensor]:
        """`BiLDModel.generate_many` with this model alone; arguments and results as there."""
        return greedy_rows_of_many(self.steps, sources, batch_size=batch_size, **generate_kwargs)

    def steps(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        streamer: BaseStreamer | None = None,
        output_trace: bool = False,
        at_a_time: int = 16,
        **generate_kwargs: Any,
    ) -> Steps[BiLDOutput | Tensor]:
        """`greedy` of one row."""
        models: dict[str, PreTrainedModel] = {self.name: self.model}
        source = make_source(models, input_ids, attention_mask, generate_kwargs)
        plan = self.plan(source, without_states(models, generate_kwargs))
        with self.reading(source) as decoder:
            stream = Stream(streamer)
            return (yield from single_steps(plan, decoder, stream, output_trace, at_a_time))

    @contextmanager
    def reading(
        self, source: Source, encoder_outputs: Any = None, *, later: bool = False
    ) -> Iterator[Decoder]:
        """A decoder that has read the source; it is the engine's again afterwards.

        Args:
            source: what the encoder reads.
            encoder_outputs: what it would make of that, where the source does not hold it.
            later: read only once the decoder is asked to write.
        """
        encoder_outputs = source.states.get(self.name, encoder_outputs)
        decoder = self.engine.decoder(self.name, self.vocab_size)
        try:
            read = decoder.read_later if later else decoder.read
            read(source.ids, source.mask, encoder_outputs, **source.inputs)
            yield decoder
        finally:
            decoder.release()

    def plan(self, source: Source, keywords: dict[str, Any]) -> Plan:
        """What transformers makes of `generate`'s keywords."""
        settings = {k: v for k, v in keywords.items() if k not in ENCODER_INPUTS}
        return self._planner(source.ids, settings)


def greedy_rows(
    steps: Callable[..., Steps[BiLDOutput | Tensor]],
    model: PreTrainedModel,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    **generate_kwargs: Any,
) -> BiLDOutput | Tensor:
    """`SingleModel.greedy`: one row at once, the rows of a batch together.

    Args:
        steps: as `SingleModel.steps`.
        model: whose padding fills up rows.
        input_ids, attention_mask, **generate_kwargs: of the call.
    """
    if not is_batch(input_ids):
        return answer_at_once(steps(input_ids, attention_mask, **generate_kwargs))
    assert input_ids is not None
    rows = split_rows(input_ids, attention_mask, generate_kwargs)
    own = ({"at_a_time": TOKENS_AT_A_TIME, **row} for row in rows)
    found = list(decode_rows(steps, own, len(rows), generate_kwargs))
    return gather(found, pad_token_id(generate_kwargs, model))


def greedy_rows_of_many(
    steps: Callable[..., Steps[BiLDOutput | Tensor]],
    sources: Iterable[Any],
    *,
    batch_size: int = 8,
    **generate_kwargs: Any,
) -> Iterator[BiLDOutput | Tensor]:
    """`SingleModel.greedy_many`, with `steps` as that model's."""
    check_batch_size(batch_size, generate_kwargs)
    shared = {"at_a_time": TOKENS_AT_A_TIME, **generate_kwargs}
    rows = ({**shared, **as_keywords(source)} for source in sources)
    return decode_rows(steps, rows, batch_size, generate_kwargs)

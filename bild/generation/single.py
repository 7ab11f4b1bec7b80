"""One model that generates alone, on its engine: the baseline of a pair, and its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from bild.checkpoints.vocabulary import output_rows
from bild.engines import Decoder, EngineName, make_engine
from bild.errors import BildError
from bild.generation.decoding import Steps
from bild.generation.generate import single_steps
from bild.generation.later import LaterDecoder
from bild.generation.output import BiLDOutput
from bild.generation.plan import ENCODER_INPUTS, Plan, Planner
from bild.generation.sequences import generate_many_rows, generate_rows
from bild.generation.source import Source, make_source, without_states
from bild.generation.steering import TOKENS_AT_A_TIME
from bild.generation.streams import Stream
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
        given = {"streamer": streamer, "output_trace": output_trace, **greedily(generate_kwargs)}
        return rows_alone(self.steps, self.model, input_ids, attention_mask, **given)

    def greedy_many(
        self, sources: Iterable[Any], *, batch_size: int = 8, **generate_kwargs: Any
    ) -> Iterator[BiLDOutput | Tensor]:
        """`BiLDModel.generate_many` with this model alone; arguments and results as there."""
        given = {"batch_size": batch_size, **greedily(generate_kwargs)}
        return many_rows_alone(self.steps, self.model, sources, **given)

    def sample(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **generate_kwargs: Any,
    ) -> BiLDOutput | Tensor:
        """Draw outputs; arguments, results and errors as of `BiLDModel.generate`.

        Of one source one output is what transformers draws from the same random numbers.
        """
        given = {**generate_kwargs, "do_sample": True}
        return rows_alone(self.steps, self.model, input_ids, attention_mask, **given)

    def sample_many(
        self, sources: Iterable[Any], *, batch_size: int = 8, **generate_kwargs: Any
    ) -> Iterator[BiLDOutput | Tensor]:
        """`BiLDModel.generate_many`, drawn with this model alone; arguments as there."""
        given = {**generate_kwargs, "batch_size": batch_size, "do_sample": True}
        return many_rows_alone(self.steps, self.model, sources, **given)

    def steps(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        streamer: BaseStreamer | None = None,
        output_trace: bool = False,
        at_a_time: int = 16,
        generator: torch.Generator | None = None,
        encoded: dict[str, Any] | None = None,
        **generate_kwargs: Any,
    ) -> Steps[BiLDOutput | Tensor]:
        """`greedy` or `sample` of one row, as its settings say.

        Args:
            encoded: of the source, by the models' names, as far as another row has; it is added to.
        """
        models: dict[str, PreTrainedModel] = {self.name: self.model}
        source = make_source(models, input_ids, attention_mask, generate_kwargs)
        plan = self.plan(source, without_states(models, generate_kwargs))
        encoded = {} if encoded is None else encoded
        with self.reading(source, encoded.get(self.name)) as decoder:
            encoded[self.name] = decoder.encoder_outputs
            told = Stream(streamer), output_trace, at_a_time, generator
            return (yield from single_steps(plan, decoder, *told))

    @contextmanager
    def reading(
        self, source: Source, encoder_outputs: Any = None, *, later: bool = False
    ) -> Iterator[Decoder]:
        """A decoder that has read the source; it is the engine's again afterwards.

        Args:
            source: what the encoder reads.
            encoder_outputs: what it would make of that, where the source does not hold it.
            later: lend and read only once the decoder is asked to write.
        """
        encoder_outputs = source.states.get(self.name, encoder_outputs)
        lend = partial(self._lend, source, encoder_outputs)
        known = output_rows(self.model) if self.vocab_size is None else self.vocab_size
        decoder = LaterDecoder(lend, self.name, known) if later else lend()
        try:
            yield decoder
        finally:
            decoder.release()

    def _lend(self, source: Source, encoder_outputs: Any) -> Decoder:
        """A decoder that has read the source."""
        decoder = self.engine.decoder(self.name, self.vocab_size)
        try:
            decoder.read(source.ids, source.mask, encoder_outputs, **source.inputs)
        except BaseException:
            decoder.release()
            raise
        return decoder

    def plan(self, source: Source, keywords: dict[str, Any]) -> Plan:
        """What transformers makes of `generate`'s keywords."""
        settings = {k: v for k, v in keywords.items() if k not in ENCODER_INPUTS}
        return self._planner(source.ids, settings)


def greedily(keywords: dict[str, Any]) -> dict[str, Any]:
    """Keywords of `generate` that ask for the likeliest tokens, whatever a model's settings are.

    Raises:
        BildError: they ask for drawn ones.
    """
    config = keywords.get("generation_config")
    if keywords.get("do_sample", getattr(config, "do_sample", False)):
        raise BildError("greedy draws nothing; use sample in place of do_sample=True")
    return {**keywords, "do_sample": False}


def rows_alone(
    steps: Callable[..., Steps[BiLDOutput | Tensor]],
    model: PreTrainedModel,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
    **generate_kwargs: Any,
) -> BiLDOutput | Tensor:
    """One model's outputs: one row at once, several together.

    Args:
        steps: as `SingleModel.steps`.
        model: whose settings hold, and whose padding fills up rows.
        input_ids, attention_mask, generator, **generate_kwargs: of the call.
    """
    given = input_ids, attention_mask, generator, generate_kwargs
    return generate_rows(steps, model, *given, at_a_time=TOKENS_AT_A_TIME)


def many_rows_alone(
    steps: Callable[..., Steps[BiLDOutput | Tensor]],
    model: PreTrainedModel,
    sources: Iterable[Any],
    *,
    batch_size: int = 8,
    generator: torch.Generator | None = None,
    **generate_kwargs: Any,
) -> Iterator[BiLDOutput | Tensor]:
    """`greedy_many` or `sample_many`, with `steps` as a model's; `model` as of `rows_alone`."""
    given = sources, batch_size, generator, generate_kwargs
    return generate_many_rows(steps, model, *given, at_a_time=TOKENS_AT_A_TIME)

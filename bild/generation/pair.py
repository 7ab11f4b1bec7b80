"""A small and a large model that generate together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any, overload

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from bild.checkpoints.drafter import BiLDDrafter
from bild.checkpoints.early_exit import exit_layers, load_small, shares_encoder
from bild.checkpoints.loading import load_model
from bild.checkpoints.names import CheckpointName
from bild.checkpoints.vocabulary import input_device, shared_vocab_size
from bild.config import BiLDConfig
from bild.engines import Decoder, Engine, EngineName
from bild.errors import BildError
from bild.generation.copying import with_copies
from bild.generation.decoding import Steps
from bild.generation.generate import pair_steps
from bild.generation.output import BiLDOutput
from bild.generation.pace import Experience
from bild.generation.sequences import MakeSteps, generate_many_rows, generate_rows
from bild.generation.single import SingleModel, greedily, many_rows_alone, rows_alone
from bild.generation.source import make_source, without_states
from bild.generation.steering import BatchExperience, Steering, may_rest
from bild.generation.streams import Stream
from bild.generation.texts import TokenizerHolder, check_texts, default_limit, written_texts
from bild.policy import Writer


class BiLDModel:
    """Two encoder-decoder models that share a tokenizer, and one `generate`.

    Args:
        large, small: the pair. The fast engine arranges their weights for its own use, and again
            when they have changed (but for writes past torch, as through `.data`).
        engine: "transformers" for the library's own forward; "fast" for the static-cache engine
            (T5, mT5, Flan-T5, UMT5); "auto" for "fast" where it covers the model.
        precision: of the weights that the fast engine reads: "float32", "bfloat16" or "int8" (one
            scale a row, activations stay float32); None for the models' own.
        compile: whether the fast engine runs in machine code compiled on this machine (CPU only;
            seconds, once); None for yes, where there is a C++ compiler.
        small_precision: of the small model's weights alone, which decide what is drafted and never
            what the large model makes of it; None for `precision`.
        tokenizer: of both, for `pair("a text")` and for stop strings; one may be set later on.

    Raises:
        BildError: the models cannot be a pair, or the engine cannot run them so; the values that
            do not fit are named.
    """

    def __init__(
        self,
        large: PreTrainedModel,
        small: PreTrainedModel,
        *,
        engine: EngineName = "auto",
        precision: str | None = None,
        compile: bool | None = None,
        small_precision: str | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.vocab_size = shared_vocab_size(large, small)
        self.large = large.eval()
        self.small = small.eval()
        self._holder = TokenizerHolder(self.vocab_size, tokenizer)
        small_too = precision if small_precision is None else small_precision
        self._options: dict[str, Any] = {
            name: {"engine": engine, "precision": asked, "compile": compile}
            for name, asked in (("large", precision), ("small", small_too))
        }
        self._arrange()

    def _arrange(self) -> None:
        self._experience, self._in_batches = Experience(), BatchExperience()
        both: tuple[tuple[Writer, PreTrainedModel], ...] = (
            ("large", self.large),
            ("small", self.small),
        )
        self.models = {
            name: SingleModel(
                model, name, self.vocab_size, tokenizer=self._holder, **self._options[name]
            )
            for name, model in both
        }

    def __repr__(self) -> str:
        models = ", ".join(f"{n}={m.model_and_engine}" for n, m in self.models.items())
        return f"BiLDModel({models}, {self.device})"

    @classmethod
    def from_pretrained(
        cls,
        large: CheckpointName,
        small: CheckpointName,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        engine: EngineName = "auto",
        precision: str | None = None,
        compile: bool | None = None,
        small_precision: str | None = None,
        tokenizer: CheckpointName | None = None,
        allow_pickle: bool = False,
        **kwargs: Any,
    ) -> BiLDModel:
        """Load both models: folders, ids under `BILD_MODELS_ROOT`, or hub ids.

        Args:
            large, small: checkpoints, by names or paths; a hub id may be followed by `@` and a
                revision. The small model may be "early-exit:N", the large one left after N layers
                of its decoder.
            dtype: precision of both models.
            device: where both models go.
            engine, precision, compile, small_precision: as for `BiLDModel`.
            tokenizer: where it is, if not beside the large model; it is loaded when it is needed.
            allow_pickle: take weights that are no safetensors: a pickle can hold code that runs as
                it is read, though what may be in it is restricted here (`weights_only=True`).
            **kwargs: passed on to transformers' `from_pretrained` for both.

        Raises:
            BildError: a checkpoint that cannot be found or is a pickle, or models that cannot be a
                pair.
        """
        first = load_model(large, dtype, device, allow_pickle=allow_pickle, **kwargs)
        pair = cls(
            first,
            load_small(small, first, dtype, device, allow_pickle=allow_pickle, **kwargs),
            engine=engine,
            precision=precision,
            compile=compile,
            small_precision=small_precision,
        )
        tokenizers = (large,) if exit_layers(small) is not None else (large, small)
        pair._holder.checkpoints = tokenizers if tokenizer is None else (tokenizer,)
        return pair

    def with_small(self, small: PreTrainedModel) -> BiLDModel:
        """A pair of the same large model, on the same engine, and another small one.

        Raises:
            BildError: as `BiLDModel`.
        """
        pair = copy(self)
        pair.small, pair.vocab_size = small.eval(), shared_vocab_size(self.large, small)
        large = copy(self.models["large"])
        large.vocab_size = pair.vocab_size
        alone = SingleModel(pair.small, "small", pair.vocab_size, **self._options["small"])
        pair.models = {"large": large, "small": alone}
        pair._experience, pair._in_batches = Experience(), BatchExperience()
        return pair

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of both models.

        Raises:
            BildError: there is none, or it is not theirs.
        """
        found = self._holder.find()
        if found is None:
            raise BildError("this pair has no tokenizer; give BiLDModel(..., tokenizer=)")
        return found

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._holder.put(tokenizer)

    @property
    def device(self) -> torch.device:
        return input_device(self.large)

    @property
    def engine(self) -> Engine:
        """What runs the large model."""
        return self.models["large"].engine

    def to(self, *args: Any, **kwargs: Any) -> BiLDModel:
        """Move or cast both models, as `torch.nn.Module.to`."""
        self.large.to(*args, **kwargs)
        self.small.to(*args, **kwargs)
        self._arrange()
        return self

    @overload
    def __call__(self, texts: str, *args: Any, **kwargs: Any) -> str: ...
    @overload
    def __call__(self, texts: Sequence[str], *args: Any, **kwargs: Any) -> list[str]: ...
    def __call__(
        self,
        texts: str | Sequence[str],
        bild_config: BiLDConfig | None = None,
        *,
        prefix: str = "",
        batch_size: int = 8,
        **generate_kwargs: Any,
    ) -> str | list[str]:
        """Text in, text out.

        Args:
            texts: a source, or several.
            bild_config: thresholds and variant.
            prefix: is put before each source, as "summarize: " of some T5 models.
            batch_size: of several sources, how many are decoded at a time.
            **generate_kwargs: as of `generate`; without a limit of the model's own or one given
                here, an output ends after `NEW_TOKENS` tokens.

        Returns:
            The output's text, or of several sources a list of texts, in their order. Where several
            are sampled of each source, a list of those stands in the place of each text.

        Raises:
            BildError: as `generate`; what is no text; a pair without a tokenizer.
        """
        settings = {**default_limit(self.large, generate_kwargs), **generate_kwargs}
        settings |= {"bild_config": bild_config, "return_dict_in_generate": True}
        tokenizer = self.tokenizer
        inputs = [
            tokenizer(prefix + text, return_tensors="pt").to(self.device)
            for text in check_texts(texts)
        ]
        outputs: Any
        if isinstance(texts, str):
            outputs = [self.generate(**inputs[0], **settings)]
        else:
            outputs = self.generate_many(inputs, batch_size=batch_size, **settings)
        written = [written_texts(tokenizer, output) for output in outputs]
        return written[0] if isinstance(texts, str) else written

    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        bild_config: BiLDConfig | None = None,
        *,
        streamer: BaseStreamer | None = None,
        output_trace: bool = False,
        generator: torch.Generator | None = None,
        **generate_kwargs: Any,
    ) -> BiLDOutput | Tensor:
        """Generate with both models; arguments and defaults of transformers' `generate`.

        Args:
            input_ids: source tokens, (B, S); the rows of a batch are decoded together, each to
                what it is alone.
            attention_mask: (B, S), 1 for tokens and 0 for padding.
            bild_config: thresholds and variant.
            streamer: gets tokens once they can no longer be rolled back; with `output_trace`, one
                that has a method `put_traced` gets lists of `TracedToken`s by it. Of one row.
            output_trace: put a `.trace` of who wrote each token into the output; of one row.
            generator: of the random numbers for `do_sample=True` (`bild.generation.sequences`), on
                the CPU; without it torch's own, which `torch.manual_seed` seeds.
            **generate_kwargs: `max_new_tokens`, `logits_processor`, `stopping_criteria`,
                `generation_config`, `output_scores` and so on; `stop_strings` with `tokenizer`;
                `encoder_outputs` of the large model, `small_encoder_outputs` of the small one, and
                with both no `input_ids`; and what both encoders read besides
                (`bild.generation.plan.ENCODER_INPUTS`). Logits processors and criteria may keep
                a state between their calls, if it can be pickled (`bild.generation.rewinding`).

        Returns:
            A `BiLDOutput` with `.sequences`, `.stats` and, of each row, `.row_stats`; with
            `return_dict_in_generate=False` the sequences alone, (B, prompt + generated).

        Raises:
            BildError: an unsupported keyword or setting, by name and value; a source that is not
                a sequence of token ids.
        """
        own = {"streamer": streamer, "output_trace": output_trace, "bild_config": bild_config}
        given = input_ids, attention_mask, generator, {**own, **generate_kwargs}
        return generate_rows(self.steps, self.large, *given, together=self.steering())

    def generate_many(
        self,
        sources: Iterable[Any],
        bild_config: BiLDConfig | None = None,
        *,
        batch_size: int = 8,
        generator: torch.Generator | None = None,
        **generate_kwargs: Any,
    ) -> Iterator[BiLDOutput | Tensor]:
        """Generate from many sources, of which a fixed number is decoded at a time.

        Where one is done the next begins, so that short outputs do not wait for long ones. Each
        gets what `generate` gives it alone; sources are taken when there is room for them.

        Args:
            sources: each the token ids of a source, as a list or a tensor (S,) or (1, S), or what
                a tokenizer returns for one text (`input_ids`, `attention_mask`).
            bild_config: as of `generate`, of all.
            batch_size: outputs decoded at a time.
            generator, **generate_kwargs: as of `generate`, of all.

        Returns:
            What `generate` returns for each, in their order.

        Raises:
            BildError: as `generate`; a batch size below 1.
        """
        given = sources, batch_size, generator, {"bild_config": bild_config, **generate_kwargs}
        return generate_many_rows(self.steps, self.large, *given, together=self.steering())

    def steering(self) -> Steering:
        """What steers rows that are decoded together (`steps`)."""
        return Steering(self._in_batches)

    def steps(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        bild_config: BiLDConfig | None = None,
        *,
        streamer: BaseStreamer | None = None,
        output_trace: bool = False,
        together: Steering | None = None,
        generator: torch.Generator | None = None,
        encoded: dict[str, Any] | None = None,
        **generate_kwargs: Any,
    ) -> Steps[BiLDOutput | Tensor]:
        """`generate` of one row, as it asks its models; with others that have one `steering` it
        decodes `together`; `encoded` as of `SingleModel.steps`."""
        encoded = {} if encoded is None else encoded
        models = {"large": self.large, "small": self.small}
        source = make_source(models, input_ids, attention_mask, generate_kwargs)
        plan = self.models["large"].plan(source, without_states(models, generate_kwargs))
        with (
            self.models["large"].reading(source, encoded.get("large")) as large,
            self.models["small"].reading(
                source, self._states_for_small(large, encoded), later=may_rest(bild_config)
            ) as small,
        ):
            encoded |= {"large": large.encoder_outputs, "small": small.encoder_outputs}
            drafter = with_copies(small, source.ids, bild_config, output_trace)
            experience = self._experience if together is None else together
            told = Stream(streamer), output_trace, experience, generator
            return (yield from pair_steps(plan, large, drafter, bild_config, *told))

    def _states_for_small(self, large: Decoder, encoded: Mapping[str, Any]) -> Any:
        """What the small model is given of the source: the states of an encoder that both read, or
        what another row has made of it."""
        shared = isinstance(self.small, BiLDDrafter) or shares_encoder(self.large, self.small)
        return large.encoder_outputs if shared else encoded.get("small")

    def greedy(
        self, input_ids: Tensor | None = None, *, which: Writer = "large", **kwargs: Any
    ) -> BiLDOutput | Tensor:
        """Generate with one of the models alone, on its engine: the baseline of `generate`.

        Args:
            which: "large" or "small".

        Other arguments, results and errors as of `SingleModel.greedy`. It writes only ids that
        both models know.
        """
        return rows_alone(*self._alone(which), input_ids, **greedily(kwargs))

    def greedy_many(
        self, sources: Iterable[Any], *, which: Writer = "large", **kwargs: Any
    ) -> Iterator[BiLDOutput | Tensor]:
        """`generate_many` with one of the models alone; arguments and results as there."""
        return many_rows_alone(*self._alone(which), sources, **greedily(kwargs))

    def sample(
        self, input_ids: Tensor | None = None, *, which: Writer = "large", **kwargs: Any
    ) -> BiLDOutput | Tensor:
        """Draw outputs of one of the models alone; arguments as of `SingleModel.sample`."""
        given = {**kwargs, "do_sample": True}
        return rows_alone(*self._alone(which), input_ids, **given)

    def sample_many(
        self, sources: Iterable[Any], *, which: Writer = "large", **kwargs: Any
    ) -> Iterator[BiLDOutput | Tensor]:
        """`generate_many`, drawn with one of the models alone; arguments and results as there."""
        return many_rows_alone(*self._alone(which), sources, **{**kwargs, "do_sample": True})

    def _alone(self, which: Writer) -> tuple[MakeSteps, PreTrainedModel]:
        """One row with one of the models, and that model."""
        if which not in self.models:
            raise BildError(f"which must be large or small, got {which!r}")
        if which == "small" and isinstance(self.small, BiLDDrafter):
            return self._drafter_steps, self.small
        return self.models[which].steps, self.models[which].model

    def _drafter_steps(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        **kwargs: Any,
    ) -> Steps[BiLDOutput | Tensor]:
        """A drafter's, over the states that the large model's encoder makes."""
        states = {**kwargs, "encoder_outputs": encoder_outputs}
        source = make_source({"large": self.large}, input_ids, attention_mask, states)
        with self.models["large"].reading(source) as large:
            kwargs["encoder_outputs"] = large.encoder_outputs
            return (yield from self.models["small"].steps(input_ids, attention_mask, **kwargs))

"""A small and a large model that generate together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, overload

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from bild.checkpoints.drafter import BiLDDrafter
from bild.checkpoints.loading import load_model
from bild.checkpoints.names import Checkpoint
from bild.checkpoints.vocabulary import input_device, output_rows, shared_vocab_size
from bild.config import BiLDConfig
from bild.engines import Decoder, Engine, EngineName, make_engine
from bild.errors import BildError
from bild.generation.generate import BiLDOutput, Stream, decode_alone, decode_with_pair
from bild.generation.lookahead import Prices
from bild.generation.plan import ENCODER_INPUTS, Plan, Planner
from bild.generation.source import Source, check_states, make_source
from bild.generation.texts import TokenizerHolder, check_texts, default_limit, describe
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
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.vocab_size = shared_vocab_size(large, small)
        self.large = large.eval()
        self.small = small.eval()
        self._holder = TokenizerHolder(self.vocab_size, tokenizer)
        self._options: Any = {"engine": engine, "precision": precision, "compile": compile}
        self._arrange()

    def _arrange(self) -> None:
        self._prices = Prices()
        both: tuple[tuple[Writer, PreTrainedModel], ...] = (
            ("large", self.large),
            ("small", self.small),
        )
        self.models = {
            name: SingleModel(model, name, self.vocab_size, tokenizer=self._holder, **self._options)
            for name, model in both
        }

    def __repr__(self) -> str:
        models = ", ".join(f"{n}={m.model_and_engine}" for n, m in self.models.items())
        return f"BiLDModel({models}, {self.device})"

    @classmethod
    def from_pretrained(
        cls,
        large: str | Checkpoint,
        small: str | Checkpoint,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        engine: EngineName = "auto",
        precision: str | None = None,
        compile: bool | None = None,
        tokenizer: str | Checkpoint | None = None,
        **kwargs: Any,
    ) -> BiLDModel:
        """Load both models: folders, ids under `BILD_MODELS_ROOT`, or hub ids.

        Args:
            large, small: checkpoints; a hub id may be followed by `@` and a revision.
            dtype: precision of both models.
            device: where both models go.
            engine, precision, compile: as for `BiLDModel`.
            tokenizer: where it is, if not beside the large model; it is loaded when it is needed.
            **kwargs: passed on to transformers' `from_pretrained` for both.

        Raises:
            BildError: a checkpoint that cannot be found, or models that cannot be a pair.
        """
        models = (load_model(name, dtype, device, **kwargs) for name in (large, small))
        pair = cls(*models, engine=engine, precision=precision, compile=compile)
        pair._holder.checkpoints = (large, small) if tokenizer is None else (tokenizer,)
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
        alone = SingleModel(pair.small, "small", pair.vocab_size, **self._options)
        pair.models = {"large": large, "small": alone}
        pair._prices = Prices()
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
        **generate_kwargs: Any,
    ) -> str | list[str]:
        """Text in, text out.

        Args:
            texts: a source, or several.
            bild_config: thresholds and variant.
            prefix: is put before each source, as "summarize: " of some T5 models.
            **generate_kwargs: as of `generate`; without a limit of the model's own or one given
                here, an output ends after `NEW_TOKENS` tokens.

        Returns:
            The output's text, or of several sources a list of texts, in their order.

        Raises:
            BildError: as `generate`; what is no text; a pair without a tokenizer.
        """
        settings = {**default_limit(self.large, generate_kwargs), **generate_kwargs}
        settings["return_dict_in_generate"] = True
        written = []
        for text in check_texts(texts):
            inputs = self.tokenizer(prefix + text, return_tensors="pt").to(self.device)
            output: Any = self.generate(**inputs, bild_config=bild_config, **settings)
            written.append(self.tokenizer.decode(output.sequences[0], skip_special_tokens=True))
        return written[0] if isinstance(texts, str) else written

    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        bild_config: BiLDConfig | None = None,
        *,
        streamer: BaseStreamer | None = None,
        output_trace: bool = False,
        **generate_kwargs: Any,
    ) -> BiLDOutput | Tensor:
        """Generate with both models; arguments and defaults of transformers' `generate`.

        Args:
            input_ids: source tokens, (1, S).
            attention_mask: (1, S), 1 for tokens and 0 for padding.
            bild_config: thresholds and variant.
            streamer: gets tokens once they can no longer be rolled back; with `output_trace`, one
                that has a method `put_traced` gets lists of `TracedToken`s by it.
            output_trace: put a `.trace` of who wrote each token into the output.
            **generate_kwargs: `max_new_tokens`, `logits_processor`, `stopping_criteria`,
                `generation_config`, `output_scores` and so on; `stop_strings` with `tokenizer`;
                `encoder_outputs` of the large model; and what both encoders read besides
                (`bild.generation.plan.ENCODER_INPUTS`). Logits processors and criteria may keep
                a state between their calls, if it can be pickled (`bild.generation.rewinding`).

        Returns:
            A `BiLDOutput` with `.sequences` and `.stats`; with `return_dict_in_generate=False`
            the sequences alone, (1, prompt + generated).

        Raises:
            BildError: an unsupported keyword or setting, by name and value; a source that is not
                one sequence of token ids.
        """
        models = {"large": self.large, "small": self.small}
        source = make_source(models, input_ids, attention_mask, generate_kwargs)
        given = generate_kwargs.pop("encoder_outputs", None)
        plan = self.models["large"].plan(source, generate_kwargs)
        with (
            self.models["large"].reading(source, given) as large,
            self.models["small"].reading(source, self._states_for_small(large)) as small,
        ):
            return decode_with_pair(
                plan, large, small, bild_config, Stream(streamer), output_trace, self._prices
            )

    def _states_for_small(self, large: Decoder) -> Any:
        """What the small model is given of the source: a drafter the large encoder's states."""
        return large.encoder_outputs if isinstance(self.small, BiLDDrafter) else None

    def greedy(
        self, input_ids: Tensor | None = None, *, which: Writer = "large", **kwargs: Any
    ) -> BiLDOutput | Tensor:
        """Generate with one of the models alone, on its engine: the baseline of `generate`.

        Args:
            which: "large" or "small".

        Other arguments, results and errors as of `SingleModel.greedy`. It writes only ids that
        both models know.
        """
        if which not in self.models:
            raise BildError(f"which must be large or small, got {which!r}")
        if which == "small" and isinstance(self.small, BiLDDrafter):
            return self._drafter_alone(input_ids, **kwargs)
        return self.models[which].greedy(input_ids, **kwargs)

    def _drafter_alone(
        self, input_ids: Tensor | None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BiLDOutput | Tensor:
        """What a drafter writes alone, over the states that the large model's encoder makes."""
        large = self.models["large"]
        source = make_source({"large": self.large}, input_ids, attention_mask, kwargs)
        with large.reading(source, kwargs.pop("encoder_outputs", None)) as decoder:
            return self.models["small"].greedy(
                input_ids, attention_mask, encoder_outputs=decoder.encoder_outputs, **kwargs
            )


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
        source = make_source({self.name: self.model}, input_ids, attention_mask, generate_kwargs)
        given = generate_kwargs.pop("encoder_outputs", None)
        plan = self.plan(source, generate_kwargs)
        with self.reading(source, given) as decoder:
            return decode_alone(plan, decoder, Stream(streamer), output_trace)

    @contextmanager
    def reading(self, source: Source, encoder_outputs: Any = None) -> Iterator[Decoder]:
        """A decoder that has read the source; it is the engine's again afterwards.

        Args:
            source: what the encoder reads.
            encoder_outputs: what it would make of that, where it is there already.
        """
        check_states(self.model, source, encoder_outputs)
        decoder = self.engine.decoder(self.name, self.vocab_size)
        try:
            decoder.read(source.ids, source.mask, encoder_outputs, **source.inputs)
            yield decoder
        finally:
            decoder.release()

    def plan(self, source: Source, keywords: dict[str, Any]) -> Plan:
        """What transformers makes of `generate`'s keywords."""
        settings = {k: v for k, v in keywords.items() if k not in ENCODER_INPUTS}
        return self._planner(source.ids, settings)

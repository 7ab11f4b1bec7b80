"""A small and a large model that generate together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation import BaseStreamer

from bild.checkpoints.loading import load_model
from bild.checkpoints.names import Checkpoint
from bild.checkpoints.vocabulary import input_device, shared_vocab_size
from bild.config import BiLDConfig
from bild.engines import Decoder, Engine, EngineName, make_engine
from bild.errors import BildError
from bild.fallback import Adaptive
from bild.generation.generate import BiLDOutput, Stream, decode_alone, decode_with_pair
from bild.generation.pace import Experience
from bild.generation.plan import ENCODER_INPUTS, Plan, Planner
from bild.generation.source import Source, check_states, make_source
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
    ) -> None:
        self.vocab_size = shared_vocab_size(large, small)
        self.large = large.eval()
        self.small = small.eval()
        self._options: Any = {"engine": engine, "precision": precision, "compile": compile}
        self._arrange()

    def _arrange(self) -> None:
        self._experience = Experience()
        both: tuple[tuple[Writer, PreTrainedModel], ...] = (
            ("large", self.large),
            ("small", self.small),
        )
        self.models = {
            name: SingleModel(model, name, self.vocab_size, **self._options) for name, model in both
        }

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
        **kwargs: Any,
    ) -> BiLDModel:
        """Load both models: folders, ids under `BILD_MODELS_ROOT`, or hub ids.

        Args:
            large, small: checkpoints; a hub id may be followed by `@` and a revision.
            dtype: precision of both models.
            device: where both models go.
            engine, precision, compile: as for `BiLDModel`.
            **kwargs: passed on to transformers' `from_pretrained` for both.

        Raises:
            BildError: a checkpoint that cannot be found, or models that cannot be a pair.
        """
        models = (load_model(name, dtype, device, **kwargs) for name in (large, small))
        return cls(*models, engine=engine, precision=precision, compile=compile)

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
        pair._experience = Experience()
        return pair

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
            streamer: gets tokens once they can no longer be rolled back.
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
            self.models["small"].reading(source, later=_may_rest(bild_config)) as small,
        ):
            return decode_with_pair(
                plan, large, small, bild_config, Stream(streamer), output_trace, self._experience
            )

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
        return self.models[which].greedy(input_ids, **kwargs)


class SingleModel:
    """One encoder-decoder model on an engine.

    Args:
        model: the model, in evaluation mode.
        name: "large" or "small": what messages call it, and as whose its forwards are counted.
        vocab_size: write only the first so many ids; None for all.
        engine, precision, compile: as for `BiLDModel`.
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
    ) -> None:
        self.model, self.name, self.vocab_size = model, name, vocab_size
        self.engine = make_engine(model, engine, precision, compile)
        self._planner = Planner(model)

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
    def reading(
        self, source: Source, encoder_outputs: Any = None, *, later: bool = False
    ) -> Iterator[Decoder]:
        """A decoder that has read the source; it is the engine's again afterwards.

        Args:
            source: what the encoder reads.
            encoder_outputs: what it would make of that, where it is there already.
            later: read only once the decoder is asked to write.
        """
        check_states(self.model, source, encoder_outputs)
        decoder = self.engine.decoder(self.name, self.vocab_size)
        try:
            if later:
                decoder.read_later(source.ids, source.mask, **source.inputs)
            else:
                decoder.read(source.ids, source.mask, encoder_outputs, **source.inputs)
            yield decoder
        finally:
            decoder.release()

    def plan(self, source: Source, keywords: dict[str, Any]) -> Plan:
        """What transformers makes of `generate`'s keywords."""
        settings = {k: v for k, v in keywords.items() if k not in ENCODER_INPUTS}
        return self._planner(source.ids, settings)


def _may_rest(config: BiLDConfig | None) -> bool:
    """Whether the small model may have nothing to do with an output."""
    return isinstance(config, BiLDConfig) and isinstance(config.fallback_rule, Adaptive)

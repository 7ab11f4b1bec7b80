"""A small and a large model that generate together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
)
from transformers.generation import BaseStreamer
from transformers.modeling_outputs import BaseModelOutput

from bild.checkpoints.loading import load_model
from bild.checkpoints.vocabulary import input_device, shared_vocab_size
from bild.config import BiLDConfig
from bild.engines import Decoder, Engine, EngineName, make_engine
from bild.errors import BildError
from bild.generation.generate import (
    BiLDOutput,
    Plan,
    check_source,
    decode_alone,
    decode_with_pair,
    make_plan,
)
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
        self.models = {
            name: SingleModel(model, name, self.vocab_size, **self._options)
            for name, model in (("large", self.large), ("small", self.small))
        }

    @classmethod
    def from_pretrained(
        cls,
        large: str,
        small: str,
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
            large, small: checkpoints.
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
                `generation_config`, `output_scores` and so on.

        Returns:
            A `BiLDOutput` with `.sequences` and `.stats`; with `return_dict_in_generate=False`
            the sequences alone, (1, prompt + generated).

        Raises:
            BildError: an unsupported setting, by name and value.
        """
        source = check_source(input_ids)
        plan = self.models["large"].plan(source, generate_kwargs)
        large, small = self.models["large"], self.models["small"]
        with (
            large.reading(source, attention_mask) as verifier,
            small.reading(source, attention_mask) as drafter,
        ):
            return decode_with_pair(plan, verifier, drafter, bild_config, streamer, output_trace)

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
        name: what messages call it.
        vocab_size: write only the first so many ids; None for all.
        engine, precision, compile: as for `BiLDModel`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        name: str = "large",
        vocab_size: int | None = None,
        *,
        engine: EngineName = "auto",
        precision: str | None = None,
        compile: bool | None = None,
    ) -> None:
        self.model, self.name, self.vocab_size = model, name, vocab_size
        self.engine = make_engine(model, engine, precision, compile)
        self._plans: dict[Any, tuple[dict[str, Any], Plan]] = {}

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

        Its forwards are counted as the large model's.
        """
        source = check_source(input_ids)
        plan = self.plan(source, generate_kwargs)
        with self.reading(source, attention_mask) as decoder:
            return decode_alone(plan, decoder, streamer, output_trace)

    @contextmanager
    def reading(self, source: Tensor, attention_mask: Tensor | None) -> Iterator[Decoder]:
        """A decoder that has read the source, (1, S); it is the engine's again afterwards."""
        decoder = self.engine.decoder(self.name, self.vocab_size)
        try:
            decoder.read(source, attention_mask)
            yield decoder
        finally:
            decoder.release()

    def plan(self, source: Tensor, kwargs: dict[str, Any]) -> Plan:
        """What transformers makes of `generate`'s keywords; remembered, for it takes 2 ms.

        Only where nothing but plain settings is given and nothing but lengths and end of sequence
        stops the output, so that no plan depends on an input.
        """
        kwargs = {"return_dict_in_generate": True, **kwargs}
        plain = all(v is None or isinstance(v, (bool, int, float)) for v in kwargs.values())
        key = tuple(sorted(kwargs.items())) if plain else None
        settings = dict(vars(self.model.generation_config))
        known = self._plans.get(key)
        if known is not None and known[0] == settings:
            return known[1]
        nothing = BaseModelOutput(last_hidden_state=torch.empty(*source.shape, 0))
        plan: Plan = self.model.generate(
            input_ids=source, encoder_outputs=nothing, custom_generate=make_plan, **kwargs
        )
        if plain and not plan.processors and not plan.stopping.criteria:
            self._plans[key] = settings, plan
        return plan

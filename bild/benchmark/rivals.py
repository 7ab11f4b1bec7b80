"""The arms that are not ours: transformers' own `generate` in several ways, and CTranslate2."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from bild.benchmark.kit import Kit
from bild.benchmark.profile import ModelTime, Profile, profile_modules
from bild.checkpoints.drafter import BiLDDrafter
from bild.errors import BildError
from bild.evaluation.arms import ArmId, BatchCase, Case, Outcome, limits
from bild.evaluation.timing import timed
from bild.files import write_atomically


class TransformersArm:
    """transformers' `generate`; BiLD has no part in it.

    Args:
        kit: the models.
        id: which arm this is.
        which: the model that writes, "large" or "small".
        schedule: of assisted generation, with the small model; None for none.
        compiled: a static cache and torch.compile.
    """

    def __init__(
        self,
        kit: Kit,
        id: ArmId,
        which: str = "large",
        schedule: str | None = None,
        compiled: bool = False,
    ) -> None:
        self.id, self.device = id, kit.device
        large, small = kit.models(id.precision)
        if isinstance(small, BiLDDrafter) and (which == "small" or schedule is not None):
            raise BildError("a drafter has no encoder, and transformers cannot draft with it")
        # Copies that share the weights, so that settings of this arm are not those of another.
        self.models = {"large": copy.copy(large), "small": copy.copy(small)}
        self.model = self.models[which]
        self.options: dict[str, Any] = {}
        if schedule is not None:
            # The drafts' settings are read from the small model; all but this one are defaults.
            draft = self.models["small"]
            draft.generation_config = copy.deepcopy(draft.generation_config)
            draft.generation_config.num_assistant_tokens_schedule = schedule
            self.options["assistant_model"] = draft
        if compiled:
            self.model.forward = _compiled_steps(self.model)
            # On a GPU `generate` would compile as well, but the whole call, hooks and all.
            self.options |= {"cache_implementation": "static", "disable_compile": True}

    @property
    def built(self) -> str:
        return f"transformers' generate, {self.id.precision}"

    def run(self, case: Case) -> Outcome:
        if isinstance(case, BatchCase):
            return self._run_batches(case)
        output, seconds = timed(self.device, self._decoder(case))
        return Outcome(output[0, 1:].tolist(), seconds)

    def _run_batches(self, case: BatchCase) -> Outcome:
        """Batches of sources of about one length, padded: the way to use it."""
        order = sorted(range(len(case.sources)), key=lambda i: -case.sources[i].shape[1])
        pad, size = self.model.generation_config.pad_token_id or 0, case.batch_size
        batches = []
        for start in range(0, len(order), size):
            rows = [case.sources[i][0] for i in order[start : start + size]]
            ids = pad_sequence(rows, batch_first=True, padding_value=pad)
            mask = pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
            batches.append((ids.to(self.device), mask.to(self.device)))
        options = {**limits(case, self.model), **self.options}

        def decode() -> list[Any]:
            return [
                self.model.generate(
                    input_ids=ids, attention_mask=mask, do_sample=False, num_beams=1, **options
                )
                for ids, mask in batches
            ]

        outputs, seconds = timed(self.device, decode)
        ends = limits(case, self.model).get("eos_token_id", self.model.config.eos_token_id)
        found = [_without_padding(row, ends) for rows in outputs for row in rows[:, 1:].tolist()]
        in_order = [tokens for _, tokens in sorted(zip(order, found, strict=True))]
        return Outcome([token for tokens in in_order for token in tokens], seconds)

    def profile(self, case: Case) -> Profile:
        """A decoding taken apart, with hooks in the models."""
        return profile_modules(self.models, self.device, self._decoder(case))

    def _decoder(self, case: Case) -> Callable[[], Any]:
        ids = case.input_ids.to(self.device)
        return lambda: self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=1,
            **limits(case, self.model),
            **self.options,
        )


def _without_padding(tokens: list[int], end: int) -> list[int]:
    """An output up to its end of sequence."""
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def _compiled_steps(model: PreTrainedModel) -> Callable[..., Any]:
    """A model's `forward` with all decoding steps but the first compiled.

    As `generate` has it by itself, though on a GPU alone.
    """
    eager = model.forward
    compiled = torch.compile(eager)

    def forward(**kwargs: Any) -> Any:
        first = not kwargs["past_key_values"].is_updated.get(0)
        return (eager if first else compiled)(**kwargs)

    return forward


class CTranslate2Arm:
    """CTranslate2's greedy search with the large model, converted once into the kit's cache.

    Its weights are in memory only while it decodes. Loading them is not timed.

    Raises:
        BildError: it is not installed, or has no such precision here.
    """

    def __init__(self, kit: Kit, id: ArmId) -> None:
        try:
            import ctranslate2
        except ImportError:
            raise BildError(
                "ctranslate2 is not installed; run pip install -e '.[bench]' in this repository"
            ) from None
        self.id, device = id, kit.device.type
        known = ctranslate2.get_supported_compute_types(device)
        if id.precision not in known:
            raise BildError(
                f"CTranslate2 has no {id.precision} on this {device}, only "
                f"{', '.join(sorted(known))}"
            )
        self.built = f"CTranslate2 {ctranslate2.__version__}, {id.precision}"
        folder = kit.cache / f"{kit.fingerprint[:16]}-{id.precision}"
        if not (folder / "complete").exists():
            large = kit.models("float32")[0]
            # It quantizes in place.
            _convert(copy.deepcopy(large) if id.precision == "int8" else large, folder, id)
        self.translator = ctranslate2.Translator(
            str(folder),
            device=device,
            compute_type=id.precision,
            inter_threads=1,
            intra_threads=torch.get_num_threads(),
        )
        self.translator.unload_model()

    def run(self, case: Case) -> Outcome:
        sources = case.sources if isinstance(case, BatchCase) else (case.input_ids,)
        size = case.batch_size if isinstance(case, BatchCase) else 0
        tokens, seconds, _ = self._translate(case, sources, max_batch_size=size)
        return Outcome(tokens, seconds)

    def profile(self, case: Case) -> Profile:
        """A decoding taken apart: it says when each token is written, and nothing else."""
        moments: list[float] = []
        _, seconds, _ = self._translate(
            case, (case.input_ids,), callback=lambda _: moments.append(time.perf_counter())
        )
        # So all steps but the first can be timed, and the first took as long as the others.
        rest = len(moments) - 1
        decoder = (moments[-1] - moments[0]) * len(moments) / rest if rest else seconds
        large = ModelTime(max(0.0, seconds - decoder), min(decoder, seconds), len(moments))
        return Profile(seconds, {"large": large})

    def _translate(
        self, case: Case, sources: Sequence[torch.Tensor], **options: Any
    ) -> tuple[list[int], float, Any]:
        texts = [[str(token) for token in ids[0].tolist()] for ids in sources]
        self.translator.load_model()
        start = time.perf_counter()
        # Of several it makes batches itself, of sources of about one length.
        results = self.translator.translate_batch(
            texts,
            beam_size=1,
            max_input_length=0,
            max_decoding_length=case.max_new_tokens,
            min_decoding_length=case.max_new_tokens if case.exact else 0,
            return_end_token=True,
            **options,
        )
        seconds = time.perf_counter() - start
        self.translator.unload_model()
        tokens = [int(token) for result in results for token in result.hypotheses[0]]
        return tokens, seconds, results


def _convert(model: PreTrainedModel, folder: Path, id: ArmId) -> None:
    """Write a model for CTranslate2; its tokens are called by their numbers."""
    from ctranslate2.converters import TransformersConverter

    config = model.config

    class Numbers:
        """All that the converter asks of a tokenizer."""

        pad_token = str(config.pad_token_id)
        eos_token = str(config.eos_token_id)
        unk_token = "2"

        def get_vocab(self) -> dict[str, int]:
            return {str(i): i for i in range(config.vocab_size)}

        def convert_ids_to_tokens(self, token: int) -> str:
            return str(token)

    class Loaded(TransformersConverter):
        """Converts the model in memory instead of loading it again."""

        model: PreTrainedModel  # not of the closure: a class lives until garbage is collected

        def load_model(self, *_: Any, **__: Any) -> PreTrainedModel:
            return self.model

        def load_tokenizer(self, *_: Any, **__: Any) -> Numbers:
            return Numbers()

    folder.parent.mkdir(parents=True, exist_ok=True)
    described = folder.with_name(folder.name + "-config")
    config.save_pretrained(described)
    converter = Loaded(str(described))
    converter.model = model
    converter.convert(str(folder), quantization=id.precision, force=True)
    write_atomically(folder / "complete", "")

"""Every engine a user could decode with, behind one interface: the arms of a benchmark.

An arm is named "<kind>@<precision>", such as "bild-fast@int8"; `ARMS` has the kinds.
"""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from bild.benchmark.profile import ForwardClock, ModelTime
from bild.config import BiLDConfig
from bild.engines import Decoder, EngineName
from bild.errors import BildError
from bild.evaluation.timing import timed
from bild.files import write_atomically
from bild.generation.pair import BiLDModel
from bild.generation.stats import DecodeStats

FLOATS = ("float32", "bfloat16", "float16")
PRECISIONS = (*FLOATS, "int8")
COMPILED = ("float32", "bfloat16", "int8")

Models = tuple[PreTrainedModel, PreTrainedModel]  # large, small


@dataclass(frozen=True)
class Case:
    """One thing to decode.

    Attributes:
        input_ids: source tokens, (1, S).
        max_new_tokens: the limit of the output.
        exact: write that many, whatever the model would do.
    """

    input_ids: Tensor
    max_new_tokens: int
    exact: bool = False


@dataclass(frozen=True)
class Outcome:
    """What one arm did with one case.

    Attributes:
        tokens: the output, end of sequence included, decoder start token excluded.
        seconds: wall clock, both encoders included.
        times: of each model that took part, as far as the arm lets look into it.
        stats: of arms that decode with `bild.generation.decoding`.
    """

    tokens: list[int]
    seconds: float
    times: dict[str, ModelTime]
    stats: DecodeStats | None = None

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Outcome:
        """The inverse of `dataclasses.asdict`."""
        times = {name: ModelTime(**t) for name, t in fields["times"].items()}
        stats = fields["stats"]
        return cls(**{**fields, "times": times, "stats": stats and DecodeStats(**stats)})


class Kit:
    """What arms are made from; arms of one precision share the models, of one engine the pair.

    Args:
        models: the pair, in float32.
        bild: thresholds and variant of the BiLD arms.
        device: where all arms run; the models are moved there.
        cache: a folder for converted models.
        fingerprint: of the pair, for the cache.
    """

    def __init__(
        self, models: Models, bild: BiLDConfig, device: torch.device, cache: Path, fingerprint: str
    ) -> None:
        large, small = models
        self._models: dict[str, Models] = {"float32": (large.to(device), small.to(device))}
        self._pairs: dict[tuple[str, EngineName, bool | None], BiLDModel] = {}
        self.bild, self.device = bild, device
        self.cache, self.fingerprint = cache, fingerprint

    def models(self, precision: str) -> Models:
        """The pair with its weights in a precision of `FLOATS`."""
        if precision not in self._models:
            large, small = (_cast(m, getattr(torch, precision)) for m in self._models["float32"])
            self._models[precision] = large, small
        return self._models[precision]

    def pair(self, precision: str, engine: EngineName, compile: bool | None) -> BiLDModel:
        """The pair on one of our engines; the fast one has weights of its own."""
        key = precision, engine, compile
        if key not in self._pairs:
            models = self.models("float32" if precision == "int8" else precision)
            # transformers has the models' own precision.
            asked = precision if engine == "fast" else None
            self._pairs[key] = BiLDModel(*models, engine=engine, precision=asked, compile=compile)
        return self._pairs[key]

    def release(self) -> None:
        """Let go of the models: those that no arm holds give their memory back."""
        self._models = {}
        self._pairs = {}


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy in another precision, without one in the old precision on the way."""
    parameters = list(model.parameters())
    memo = {id(p): nn.Parameter(p.detach().to(dtype), requires_grad=False) for p in parameters}
    return copy.deepcopy(model, memo)


# ------------------------------------------------------------------------------ arms


class Arm(ABC):
    """A way to decode, ready to run: made from a kit and a precision.

    Raises:
        BildError: it cannot run here; the reason is given.
    """

    def __init__(self, kit: Kit, precision: str) -> None:
        self.kit = kit
        self.precision = precision

    @abstractmethod
    def run(self, case: Case) -> Outcome:
        """Decode one case."""

    def decoders(self) -> tuple[Decoder, Decoder] | None:
        """The decoders it runs on (large, small), where it is a pair of ours."""
        return None


class TransformersArm(Arm):
    """transformers' `generate`; BiLD has no part in it.

    Args:
        kit, precision: as `Arm`.
        which: the model that writes.
        schedule: of assisted generation, with the small model; None for none.
        compiled: a static cache and torch.compile.
    """

    def __init__(
        self,
        kit: Kit,
        precision: str,
        which: Literal["large", "small"] = "large",
        schedule: str | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__(kit, precision)
        self.large, self.small = kit.models(precision)
        self.model = self.large if which == "large" else self.small
        self.options: dict[str, Any] = {}
        if schedule is not None:
            # The drafts' settings are read from the small model; all but this one are defaults.
            self.draft = copy.deepcopy(self.small.generation_config)
            self.draft.num_assistant_tokens_schedule = schedule
            self.options["assistant_model"] = self.small
        self.forward = _compiled_steps(self.model) if compiled else None
        if compiled:
            # On a GPU `generate` would compile as well, but the whole call, hooks and all.
            self.options |= {"cache_implementation": "static", "disable_compile": True}

    def run(self, case: Case) -> Outcome:
        models = {"large": self.large, "small": self.small}
        device = self.kit.device
        ids = case.input_ids.to(device)
        with self._settings(), ForwardClock(models, device) as clock:
            output, seconds = timed(
                device,
                lambda: self.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    num_beams=1,
                    **_limits(case, self.model),
                    **self.options,
                ),
            )
        return Outcome(output[0, 1:].tolist(), seconds, clock.times)

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """This arm's settings of models that other arms use as well."""
        before: GenerationConfig = self.small.generation_config
        if "assistant_model" in self.options:
            self.small.generation_config = self.draft
        if self.forward is not None:
            self.model.forward = self.forward
        try:
            yield
        finally:
            self.small.generation_config = before
            if self.forward is not None:
                del self.model.forward


def _limits(case: Case, model: PreTrainedModel) -> dict[str, Any]:
    """A case's limits for `generate`."""
    limits: dict[str, Any] = {"max_new_tokens": case.max_new_tokens}
    if case.exact:
        # One past the last id: no model writes that. (min_new_tokens would do, but is looked at
        # with every token.)
        limits["eos_token_id"] = model.get_output_embeddings().weight.shape[0]
    return limits


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


class BiLDArm(Arm):
    """This package: BiLD, or one model alone, on one of its engines.

    Args:
        kit, precision: as `Arm`.
        what: "bild", or the model that decodes alone.
        engine: "transformers" or "fast".
        compile: for the fast engine.
    """

    def __init__(
        self,
        kit: Kit,
        precision: str,
        what: Literal["bild", "large", "small"],
        engine: EngineName,
        compile: bool | None = None,
    ) -> None:
        super().__init__(kit, precision)
        self.what = what
        self.pair = kit.pair(precision, engine, compile)
        self.models = {"large": self.pair.large, "small": self.pair.small}

    def run(self, case: Case) -> Outcome:
        ids = case.input_ids.to(self.kit.device)
        mask = torch.ones_like(ids)
        limits = _limits(case, self.pair.large)

        def decode() -> Any:
            if self.what == "bild":
                return self.pair.generate(ids, mask, self.kit.bild, **limits)
            return self.pair.greedy(ids, which=self.what, attention_mask=mask, **limits)

        with ForwardClock(self.models, self.kit.device) as clock:
            output, seconds = timed(self.kit.device, decode)
        stats: DecodeStats = output.stats
        times = clock.times
        if self.what == "bild":
            times["large"].forwards = stats.large_forwards
            times["small"].forwards = stats.small_forwards
        else:
            times[self.what].forwards = stats.large_forwards
        return Outcome(output.sequences[0, 1:].tolist(), seconds, times, stats)

    def decoders(self) -> tuple[Decoder, Decoder] | None:
        if self.what != "bild":
            return None
        large, small = (m.engine.decoder(m.name, m.vocab_size) for m in self.pair.models.values())
        return large, small


class CTranslate2Arm(Arm):
    """CTranslate2's greedy search with the large model, converted once into the kit's cache.

    Its weights are in memory only while it decodes. Loading them is not timed.
    """

    def __init__(self, kit: Kit, precision: str) -> None:
        super().__init__(kit, precision)
        try:
            import ctranslate2
        except ImportError:
            raise BildError("ctranslate2 is not installed; pip install -e '.[bench]'") from None
        device = kit.device.type
        known = ctranslate2.get_supported_compute_types(device)
        if precision not in known:
            raise BildError(
                f"CTranslate2 has no {precision} on this {device}, only {', '.join(sorted(known))}"
            )
        folder = kit.cache / f"{kit.fingerprint[:16]}-{precision}"
        if not (folder / "complete").exists():
            large = kit.models("float32")[0]
            # It quantizes in place.
            _convert(copy.deepcopy(large) if precision == "int8" else large, folder, precision)
        self.translator = ctranslate2.Translator(
            str(folder),
            device=device,
            compute_type=precision,
            inter_threads=1,
            intra_threads=torch.get_num_threads(),
        )
        self.translator.unload_model()

    def run(self, case: Case) -> Outcome:
        source = [str(token) for token in case.input_ids[0].tolist()]
        moments: list[float] = []
        self.translator.load_model()
        start = time.perf_counter()
        (result,) = self.translator.translate_batch(
            [source],
            beam_size=1,
            max_input_length=0,
            max_decoding_length=case.max_new_tokens,
            min_decoding_length=case.max_new_tokens if case.exact else 0,
            return_end_token=True,
            callback=lambda _: moments.append(time.perf_counter()),
        )
        seconds = time.perf_counter() - start
        self.translator.unload_model()
        tokens = [int(token) for token in result.hypotheses[0]]
        # It shows when each token is written, so that all steps but the first can be timed.
        rest = len(moments) - 1
        decoder = (moments[-1] - moments[0]) * len(moments) / rest if rest else seconds
        times = {"large": ModelTime(seconds - decoder, decoder, len(moments))}
        return Outcome(tokens, seconds, times)


def _convert(model: PreTrainedModel, folder: Path, precision: str) -> None:
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
    converter.convert(str(folder), quantization=precision, force=True)
    write_atomically(folder / "complete", "")


# ------------------------------------------------------------------------------ names


@dataclass(frozen=True)
class ArmKind:
    """A kind of arm: what it is, the precisions it may have, and how it is made."""

    title: str
    precisions: tuple[str, ...]
    make: Callable[[Kit, str], Arm]


def _ours(title: str, what: Literal["bild", "large", "small"]) -> dict[str, ArmKind]:
    name = {"bild": "bild", "large": "vanilla", "small": "small"}[what]
    on = partial(BiLDArm, what=what)
    return {
        f"{name}-transformers": ArmKind(
            f"{title}, transformers engine", FLOATS, partial(on, engine="transformers")
        ),
        f"{name}-fast": ArmKind(
            f"{title}, fast engine", FLOATS, partial(on, engine="fast", compile=False)
        ),
        f"{name}-compiled": ArmKind(
            f"{title}, fast engine, compiled", COMPILED, partial(on, engine="fast", compile=True)
        ),
    }


ARMS: dict[str, ArmKind] = {
    "greedy": ArmKind("transformers greedy", FLOATS, TransformersArm),
    "assisted-heuristic": ArmKind(
        "transformers assisted, heuristic", FLOATS, partial(TransformersArm, schedule="heuristic")
    ),
    "assisted-constant": ArmKind(
        "transformers assisted, constant", FLOATS, partial(TransformersArm, schedule="constant")
    ),
    "static-compile": ArmKind(
        "transformers static cache, torch.compile", FLOATS, partial(TransformersArm, compiled=True)
    ),
    "greedy-small": ArmKind(
        "transformers greedy, small alone", FLOATS, partial(TransformersArm, which="small")
    ),
    "ctranslate2": ArmKind("CTranslate2 greedy", PRECISIONS, CTranslate2Arm),
    **_ours("large alone", "large"),
    **_ours("small alone", "small"),
    **_ours("BiLD", "bild"),
}


def arm_names(kinds: Iterable[str], precisions: Iterable[str]) -> tuple[str, ...]:
    """Full names: each kind in each of the precisions it may have; full names stay.

    Raises:
        BildError: an unknown kind or precision; those known are listed.
    """
    precisions = list(precisions)
    for precision in precisions:
        _check("precision", precision, PRECISIONS)
    names: dict[str, None] = {}
    for given in kinds:
        kind, at, precision = given.partition("@")
        _check("arm", kind, ARMS)
        if at:
            _check(f"precision of {kind}", precision, ARMS[kind].precisions)
        wanted = [precision] if at else [p for p in precisions if p in ARMS[kind].precisions]
        names.update(dict.fromkeys(f"{kind}@{p}" for p in wanted))
    if not names:
        raise BildError(f"no arm can run in {', '.join(precisions)}; choose another precision")
    return tuple(names)


def make_arm(name: str, kit: Kit) -> Arm:
    """The arm of a full name."""
    kind, _, precision = name.partition("@")
    return ARMS[kind].make(kit, precision)


def title(name: str) -> str:
    """What people call an arm, without its precision."""
    return ARMS[name.partition("@")[0]].title


def _check(what: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise BildError(f"unknown {what} {value!r}; choose from {', '.join(known)}")

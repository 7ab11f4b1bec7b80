"""Which code runs a model: transformers' own, or ours where it can.

An engine is what does not change between sequences; its decoders hold one sequence each.
"""

from __future__ import annotations

import warnings
from typing import Literal, Protocol, get_args

from transformers import PreTrainedModel

from bild.engines import build
from bild.engines.base import Decoder
from bild.engines.coverage import FAMILIES, not_compilable, not_covered
from bild.engines.huggingface import HuggingFaceDecoder
from bild.engines.t5 import T5Engine
from bild.engines.t5_structs import PRECISIONS
from bild.errors import BildError

EngineName = Literal["auto", "fast", "transformers"]


class Engine(Protocol):
    """What runs one model.

    Attributes:
        model: the model.
    """

    model: PreTrainedModel

    @property
    def name(self) -> str:
        """ "fast" or "transformers"."""

    @property
    def precision(self) -> str:
        """Of the weights it reads."""

    @property
    def compiled(self) -> bool:
        """Whether it runs in machine code made on this machine."""

    def decoder(self, name: str, vocab_size: int | None = None) -> Decoder:
        """A decoder for one sequence at a time; arguments as `HuggingFaceDecoder`'s.

        What it needs may be the engine's own, and is for the next one once it is released.
        """

    def __str__(self) -> str:
        """Name, precision of the weights, and whether it is compiled; for records."""


class HuggingFaceEngine:
    """transformers' own forward and caches."""

    name = "transformers"
    compiled = False

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.precision = str(model.dtype).removeprefix("torch.")
        HuggingFaceDecoder(model, "large")  # a model that cannot decode is refused at once

    def decoder(self, name: str, vocab_size: int | None = None) -> Decoder:
        return HuggingFaceDecoder(self.model, name, vocab_size)

    def __str__(self) -> str:
        return f"transformers, {self.precision}"


def make_engine(
    model: PreTrainedModel,
    engine: EngineName = "auto",
    precision: str | None = None,
    compile: bool | None = None,
) -> Engine:
    """The engine that runs `model`.

    Args:
        model: any encoder-decoder model.
        engine: "transformers" for the library's own forward; "fast" for the static-cache engine,
            which covers T5, mT5, Flan-T5 and UMT5; "auto" for "fast" where it covers the model;
            of those families it warns where it does not (an adapter, a hook, quantized weights).
        precision: of the weights that the fast engine reads: "float32", "bfloat16" or, compiled
            only, "int8"; None for the model's own.
        compile: whether the fast engine runs in machine code compiled on this machine (CPU only);
            None for yes, where there is a C++ compiler.

    Raises:
        BildError: a combination that does not exist, with the reason.
    """
    if engine not in get_args(EngineName):
        raise BildError(f"engine must be one of {', '.join(get_args(EngineName))}, got {engine!r}")
    if precision is not None and precision not in PRECISIONS:
        raise BildError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    why_not = not_covered(model)
    if engine == "transformers" or (engine == "auto" and why_not is not None):
        if precision is not None or compile:
            asked = f"precision={precision!r}" if precision is not None else "compile=True"
            reason = "" if why_not is None else f", which does not cover this model: {why_not}"
            raise BildError(f"{asked} needs the fast engine{reason}")
        if engine == "auto" and model.config.model_type in FAMILIES:
            warnings.warn(
                f"the fast engine does not cover this model: {why_not}; it runs on transformers' "
                "own forward, which is slower; merge adapters into their model, or ask for "
                "engine='transformers'",
                stacklevel=2,
            )
        return HuggingFaceEngine(model)
    if why_not is not None:
        raise BildError(
            f"the fast engine does not cover this model: {why_not}; use engine='transformers'"
        )
    return T5Engine(model, precision, _compiled(model, precision, compile))


def _compiled(model: PreTrainedModel, precision: str | None, compile: bool | None) -> bool:
    own = str(model.dtype).removeprefix("torch.")
    needed = precision not in (None, own)
    if compile is False:
        if needed:
            raise BildError(
                f"precision={precision!r} of a {own} model needs the compiled engine; "
                "leave compile=False out"
            )
        return False
    why_not = not_compilable(model)
    if why_not is not None:
        if compile or needed:
            raise BildError(f"the fast engine cannot compile this model: {why_not}")
        return False
    try:
        build.load()
    except BildError as error:
        if compile or needed:
            raise
        warnings.warn(f"the fast engine runs uncompiled: {error}", stacklevel=2)
        return False
    return True

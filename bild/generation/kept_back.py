"""What transformers' `generate` is given and keeps from a decoding method.

To a callable in `custom_generate=` transformers hands neither the streamer, nor the tokenizer, nor
the assistant model, and drops them without a word: whoever reads the streamer would wait for ever,
stop strings could not be looked for. They are read where they still are, in the call of `generate`
that called the method.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import CodeType
from typing import Any

from transformers.generation import BaseStreamer, GenerationMixin

GENERATE: Any = GenerationMixin.generate
CODE: CodeType = inspect.unwrap(GENERATE).__code__


@dataclass(frozen=True)
class KeptBack:
    """Keywords of the call of `generate` that is going on; None where it has not got them.

    Attributes:
        streamer: it has been given the prompt already.
        tokenizer, assistant_model: as they were given.
    """

    streamer: BaseStreamer | None = None
    tokenizer: Any = None
    assistant_model: Any = None


def kept_back() -> KeptBack:
    """What the innermost `generate` that is going on keeps; nothing where none is."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not CODE:
        frame = frame.f_back
    if frame is None:
        return KeptBack()
    kept = {name: frame.f_locals.get(name) for name in ("streamer", "assistant_model")}
    # The tokenizer has been taken out of its keywords, but not out of those of its decorator.
    around = frame.f_back.f_locals if frame.f_back is not None else {}
    keywords = around.get("kwargs")
    tokenizer = keywords.get("tokenizer") if isinstance(keywords, dict) else None
    return KeptBack(**kept, tokenizer=tokenizer)

"""One owner per model and KV cache, spoken to in lengths."""

from bild.engines.base import (
    Decoder,
    Draft,
    Verdict,
    draft_tokens,
    drafting,
    drive,
    judge,
    states_for,
)
from bild.engines.huggingface import HuggingFaceDecoder
from bild.engines.select import Engine, EngineName, HuggingFaceEngine, make_engine

__all__ = [
    "Decoder",
    "Draft",
    "Engine",
    "EngineName",
    "HuggingFaceDecoder",
    "HuggingFaceEngine",
    "Verdict",
    "draft_tokens",
    "drafting",
    "drive",
    "judge",
    "make_engine",
    "states_for",
]

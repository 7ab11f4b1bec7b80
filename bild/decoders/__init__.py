"""One owner per model and KV cache, spoken to in lengths."""

from bild.decoders.base import Decoder, Draft, Verdict, judge
from bild.decoders.engines import Engine, EngineName, HuggingFaceEngine, make_engine
from bild.decoders.huggingface import HuggingFaceDecoder

__all__ = [
    "Decoder",
    "Draft",
    "Engine",
    "EngineName",
    "HuggingFaceDecoder",
    "HuggingFaceEngine",
    "Verdict",
    "judge",
    "make_engine",
]

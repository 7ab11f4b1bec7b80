"""One owner per model and KV cache, spoken to in lengths."""

from bild.decoders.base import Decoder, Verdict, judge
from bild.decoders.huggingface import HuggingFaceDecoder

__all__ = ["Decoder", "HuggingFaceDecoder", "Verdict", "judge"]

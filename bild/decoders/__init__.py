"""One owner per model and KV cache, spoken to in lengths."""

from bild.decoders.base import Decoder, Draft, Verdict, judge
from bild.decoders.huggingface import HuggingFaceDecoder

__all__ = ["Decoder", "Draft", "HuggingFaceDecoder", "Verdict", "judge"]

"""Big Little Decoder: a small model drafts, a large one checks (Kim et al., NeurIPS 2023)."""

from bild._version import __version__
from bild.config import BiLDConfig
from bild.decoding import DecodeStats
from bild.errors import BildError
from bild.generation import BiLDOutput, bild_generate, greedy_generate
from bild.pair import BiLDModel

__all__ = [
    "BiLDConfig",
    "BiLDModel",
    "BiLDOutput",
    "BildError",
    "DecodeStats",
    "__version__",
    "bild_generate",
    "greedy_generate",
]

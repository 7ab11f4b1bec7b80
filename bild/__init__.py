"""Big Little Decoder: a small model drafts, a large one checks (Kim et al., NeurIPS 2023).

The public names are imported when they are first used, so that the scripts can find a mistake in
their arguments before torch and transformers have loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bild._version import __version__

if TYPE_CHECKING:
    from bild.config import BiLDConfig
    from bild.decoding import DecodeStats
    from bild.errors import BildError
    from bild.generation import BiLDOutput, bild_generate, greedy_generate
    from bild.pair import BiLDModel
    from bild.trace import Trace

_HOMES = {
    "BiLDConfig": "bild.config",
    "BiLDModel": "bild.pair",
    "BiLDOutput": "bild.generation",
    "BildError": "bild.errors",
    "DecodeStats": "bild.decoding",
    "Trace": "bild.trace",
    "bild_generate": "bild.generation",
    "greedy_generate": "bild.generation",
}

__all__ = [
    "BiLDConfig",
    "BiLDModel",
    "BiLDOutput",
    "BildError",
    "DecodeStats",
    "Trace",
    "__version__",
    "bild_generate",
    "greedy_generate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bild' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__

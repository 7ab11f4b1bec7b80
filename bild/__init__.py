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
    from bild.errors import BildError
    from bild.generation.generate import bild_generate, greedy_generate
    from bild.generation.output import BiLDOutput
    from bild.generation.pair import BiLDModel
    from bild.generation.stats import DecodeStats
    from bild.generation.trace import Trace

_HOMES = {
    "BiLDConfig": "bild.config",
    "BiLDModel": "bild.generation.pair",
    "BiLDOutput": "bild.generation.output",
    "BildError": "bild.errors",
    "DecodeStats": "bild.generation.stats",
    "Trace": "bild.generation.trace",
    "bild_generate": "bild.generation.generate",
    "greedy_generate": "bild.generation.generate",
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

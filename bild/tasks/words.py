"""How BLEU parts texts into words: part of a metric's name, "bleu:zh", as its value depends on it.

Nothing here imports sacrebleu, so that a missing package is told before models are loaded.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import get_args

from bild.config import BleuTokenize
from bild.errors import BildError

BLEU = "bleu"
USUAL = "13a"  # sacrebleu's default
# What sacrebleu needs for some languages: its extra, and the modules that the extra brings.
NEEDS = {"ja-mecab": ("ja", ("MeCab", "ipadic")), "ko-mecab": ("ko", ("mecab_ko",))}


def bleu_by(tokenize: str, metric: str = BLEU) -> str:
    """The name of BLEU by a tokenization of `bild.config.BleuTokenize`.

    Raises:
        BildError: another metric than BLEU, or a package that is not installed.
    """
    if metric.partition(":")[0] != BLEU:
        raise BildError(f"bleu_tokenize {tokenize!r} goes with the metric bleu, got {metric!r}")
    name = BLEU if tokenize == USUAL else f"{BLEU}:{tokenize}"
    tokenization(name)
    return name


def tokenization(metric: str) -> str | None:
    """The tokenization in the name of a BLEU; None for other metrics.

    Raises:
        BildError: one that is not known, or whose package is not installed.
    """
    name, _, found = metric.partition(":")
    if name != BLEU:
        return None
    tokenize = USUAL if metric == BLEU else found
    known = get_args(BleuTokenize)
    if tokenize not in known:
        raise BildError(f"bleu_tokenize must be one of {', '.join(known)}, got {tokenize!r}")
    extra, modules = NEEDS.get(tokenize, ("", ()))
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise BildError(
            f"bleu_tokenize {tokenize!r} needs {' and '.join(missing)}, not installed here; "
            f"pip install 'sacrebleu[{extra}]' brings what is missing, or choose char"
        )
    return tokenize

"""How close texts come to a training corpus: exact repeats, and similarity by character trigrams.

The similarity of two texts is the Jaccard index of the sets of their trigrams, 0 to 1, after
lower-casing and dropping all but letters, digits and single spaces.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bild.errors import BildError
from bild.tasks.data import checksum
from bild.tasks.reading import Example

MANY_WORDS = 3  # a repeat of fewer words says nothing


def compare(
    ours: Sequence[Example], corpus: Sequence[Example], limit: float
) -> tuple[dict[str, Any], list[str]]:
    """Compare every sentence of ours with every text of a corpus, sources and targets apart.

    Args:
        ours, corpus: pairs.
        limit: similarity from which on a text is too close, 0 to 1.

    Returns:
        A report, and the texts that are too close: those of more than `MANY_WORDS` words that are
        in the corpus, and those that are as similar as `limit`.

    Raises:
        BildError: a limit outside its range.
    """
    if not 0 <= limit <= 1:
        raise BildError(f"limit must be between 0 and 1, got {limit}")
    report: dict[str, Any] = {
        "file": {"sha256": checksum(ours), "records": len(ours)},
        "corpus": {"sha256": checksum(corpus), "records": len(corpus)},
        "limit": limit,
    }
    offenders: list[str] = []
    for language, side in (("de", "source"), ("en", "target")):
        texts = {s for e in ours for s in sentences(getattr(e, side))}
        near = nearest(texts, (normalize(getattr(e, side)) for e in corpus))
        similarities = [s for s, _ in near.values()]
        exact = [t for t, (_, other) in near.items() if t == other and len(t.split()) > MANY_WORDS]
        report[language] = {
            "sentences": len(texts),
            "exact": len(exact),
            "highest": round(max(similarities, default=0.0), 3),
            "at_least_0.7": sum(s >= 0.7 for s in similarities),
        }
        offenders += exact + [t for t, (s, _) in near.items() if s >= limit]
    return report, offenders


def normalize(text: str) -> str:
    """Lower case, letters, digits and single spaces; empty where there are none."""
    return re.sub(r"\s+", " ", re.sub(r"[^\w\s]", "", text.lower())).strip()


def sentences(text: str) -> set[str]:
    """The whole text and each of its sentences, normalized."""
    return {normalize(text), *(normalize(s) for s in re.split(r"(?<=[.!?])\s+", text))} - {""}


def trigrams(text: str) -> set[str]:
    """All strings of three neighbouring characters; the text itself where it is shorter."""
    return {text[i : i + 3] for i in range(max(1, len(text) - 2))}


def nearest(ours: Iterable[str], theirs: Iterable[str]) -> dict[str, tuple[float, str]]:
    """For each of our texts the most similar of theirs, by an inverted index over trigrams."""
    corpus = sorted(set(theirs) - {""})
    sizes = np.array([len(trigrams(text)) for text in corpus])
    postings: dict[str, list[int]] = defaultdict(list)
    for number, text in enumerate(corpus):
        for gram in trigrams(text):
            postings[gram].append(number)
    index = {gram: np.array(numbers) for gram, numbers in postings.items()}
    found = {}
    for text in ours:
        grams = trigrams(text)
        hits = [index[gram] for gram in grams if gram in index]
        if not hits:
            found[text] = (0.0, "")
            continue
        shared = np.bincount(np.concatenate(hits), minlength=len(corpus))
        similarity = shared / (len(grams) + sizes - shared)
        best = int(similarity.argmax())
        found[text] = (float(similarity[best]), corpus[best])
    return found

"""How close our sentences come to a training corpus: exact matches and character trigrams.

    python scripts/check_duplicates.py demo/sentences.jsonl --corpus out/tatoeba/train.jsonl \\
        --record results/demo/near_duplicates.json

Every sentence of every record is compared with every sentence of the corpora, both languages apart,
after lower-casing and dropping all but letters, digits and single spaces. The similarity of two
texts is the Jaccard index of their character trigrams. Ends with exit code 2 when a text of more
than three words is in the corpus, or one is as similar as --limit.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bild.cli import Parser, run
from bild.errors import BildError
from bild.files import check_writable, write_atomically
from bild.tasks.data import checksum, read_jsonl


def normalize(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"[^\w\s]", "", text.lower())).strip()


def sentences(text: str) -> set[str]:
    return {normalize(text), *(normalize(s) for s in re.split(r"(?<=[.!?])\s+", text))} - {""}


def trigrams(text: str) -> set[str]:
    return {text[i : i + 3] for i in range(max(1, len(text) - 2))}


def nearest(ours: Iterable[str], theirs: Iterable[str]) -> dict[str, tuple[float, str]]:
    """For each of our texts the most similar of theirs, by an inverted index over trigrams."""
    corpus = sorted(set(theirs))
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
        shared = np.bincount(np.concatenate(hits or [np.array([0])]), minlength=len(corpus))
        similarity = shared / (len(grams) + sizes - shared)
        best = int(similarity.argmax())
        found[text] = (float(similarity[best]), corpus[best])
    return found


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("file", type=Path, help='JSON Lines with "de" and "en"')
    corpora = {"type": Path, "nargs": "+", "required": True, "metavar": "FILE"}
    parser.add_argument("--corpus", **corpora, help="JSON Lines (.gz) to compare with")
    parser.add_argument("--limit", type=float, default=0.9, metavar="X", help="similarity")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the figures here")
    a = parser.parse_args()
    if a.record is not None:
        check_writable(a.record.parent)
    ours = read_jsonl(a.file, "de", "en")
    corpus = [e for path in a.corpus for e in read_jsonl(path, "de", "en")]
    report: dict[str, Any] = {
        "file": {"sha256": checksum(ours), "records": len(ours)},
        "corpus": {"sha256": checksum(corpus), "records": len(corpus)},
        "limit": a.limit,
    }
    offenders = []
    for language, side in (("de", "source"), ("en", "target")):
        texts = {s for e in ours for s in sentences(getattr(e, side))}
        near = nearest(texts, (normalize(getattr(e, side)) for e in corpus))
        similarities = [s for s, _ in near.values()]
        exact = [t for t, (_, other) in near.items() if t == other and len(t.split()) > 3]
        report[language] = {
            "sentences": len(texts),
            "exact": len(exact),
            "highest": round(max(similarities), 3),
            "at_least_0.7": sum(s >= 0.7 for s in similarities),
        }
        offenders += exact + [t for t, (s, _) in near.items() if s >= a.limit]
        print(language, report[language])
    if a.record is not None:
        write_atomically(a.record, json.dumps(report, indent=1) + "\n")
    if offenders:
        raise BildError(f"{len(offenders)} texts are too close to the corpus: {offenders[0]!r}")


if __name__ == "__main__":
    run(main)

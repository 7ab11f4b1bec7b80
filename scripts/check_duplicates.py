"""How close our sentences come to a training corpus: exact matches and character trigrams.

    python scripts/check_duplicates.py demo/sentences.jsonl --corpus out/tatoeba/train.jsonl \\
        --record results/demo/near_duplicates.json

Every sentence of every record is compared with every sentence of the corpora, both languages apart,
after lower-casing and dropping all but letters, digits and single spaces. The similarity of two
texts is the Jaccard index of their character trigrams. Ends with exit code 2 when a text of more
than three words is in the corpus, or one is as similar as --limit.
"""

from __future__ import annotations

from pathlib import Path

from bild.cli import run
from bild.errors import BildError
from bild.files import check_file, write_json
from bild.parser import Parser
from bild.tasks.reading import read_jsonl
from bild.training.duplicates import compare


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("file", type=Path, help='JSON Lines with "de" and "en"')
    corpora = {"type": Path, "nargs": "+", "required": True, "metavar": "FILE"}
    parser.add_argument("--corpus", **corpora, help="JSON Lines (.gz) to compare with")
    parser.add_argument("--limit", type=float, default=0.9, metavar="X", help="similarity")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the figures here")
    a = parser.parse_args()
    if a.record is not None:
        check_file(a.record, "--record")
    ours = read_jsonl(a.file, "de", "en")
    corpus = [e for path in a.corpus for e in read_jsonl(path, "de", "en")]
    report, offenders = compare(ours, corpus, a.limit)
    for language in ("de", "en"):
        print(language, report[language])
    if a.record is not None:
        write_json(a.record, report)
    if offenders:
        raise BildError(f"{len(offenders)} texts are too close to the corpus: {offenders[0]!r}")


if __name__ == "__main__":
    run(main)

"""Split a German-English corpus for the shipped pair and train its tokenizer.

    python scripts/make_demo_data.py --corpus tatoeba/train.jsonl.gz --output-dir out/tatoeba

    # with further training pairs; validation and test stay what they are without
    python scripts/make_demo_data.py --corpus tatoeba/train.jsonl.gz \\
        --extra news-commentary.jsonl.gz --output-dir out/more

Reads JSON Lines with "de" and "en". Writes train.jsonl, validation.jsonl and test.jsonl (2,000
pairs each held out; no sentence stands on two sides), the same joined one to four at a time
(train_lines.jsonl and so on), and tokenizer/. Of --extra, pairs that repeat one and those that hold
a sentence of validation or test are left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bild.cli import run
from bild.files import check_writable, write_atomically
from bild.parser import Parser
from bild.tasks.reading import read_jsonl
from bild.training.corpus import Pair, concatenate, joining_pairs, split_by_sentence


def read_pairs(path: Path) -> list[Pair]:
    return [(e.source, e.target) for e in read_jsonl(path, "de", "en")]


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    lines = (json.dumps({"de": s, "en": t}, ensure_ascii=False) + "\n" for s, t in pairs)
    write_atomically(path, "".join(lines))
    print(f"{path}: {len(pairs)} lines")


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="JSON Lines (.gz)")
    parser.add_argument(
        "--extra",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="further corpora, for training alone",
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="where the files go")
    parser.add_argument("--held-out", type=int, default=2000, metavar="N", help="pairs a side")
    parser.add_argument("--vocab-size", type=int, default=4096, metavar="N", help="pieces")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the split")
    a = parser.parse_args()
    pairs, *further = (read_pairs(path) for path in (a.corpus, *a.extra))
    check_writable(a.output_dir)
    train, validation, test = split_by_sentence(pairs, a.held_out, a.seed)
    for path, more in zip(a.extra, further, strict=True):
        joining = joining_pairs(train, [*validation, *test], more)
        print(f"{path}: {len(joining)} of {len(more)} pairs join the training part")
        train += joining
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        write_pairs(a.output_dir / f"{name}.jsonl", part)
        write_pairs(a.output_dir / f"{name}_lines.jsonl", concatenate(part, a.seed))

    # Only now: this imports transformers, which takes seconds.
    from bild.training.tokenizer import train_tokenizer

    texts = (text for pair in train for text in pair)
    tokenizer = train_tokenizer(texts, a.vocab_size, a.output_dir / "tokenizer")
    print(f"{a.output_dir / 'tokenizer'}: {len(tokenizer)} tokens")


if __name__ == "__main__":
    run(main)

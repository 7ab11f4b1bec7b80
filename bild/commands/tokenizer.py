"""Train a tokenizer for a pair from nothing, on both sides of a training file.

    bild tokenizer --data-file java_api/train.jsonl.gz \\
        --source-key description --target-key api --output-dir out/api/tokenizer

A SentencePiece unigram model in the form of a T5 tokenizer, as that of the shipped pair.
"""

from __future__ import annotations

from pathlib import Path

from bild.cli import add_data_keys
from bild.files import check_writable
from bild.parser import Parser
from bild.tasks.reading import read_examples


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--data-file", type=Path, required=True, help="JSON Lines (.gz)")
    parser.add_argument("--output-dir", type=Path, required=True, help="the tokenizer")
    add_data_keys(parser)
    parser.add_argument("--vocab-size", type=int, default=4096, metavar="N", help="pieces")
    return parser


def main() -> None:
    a = make_parser().parse_args()
    examples = read_examples(a.data_file, a.source_key, a.target_key)
    check_writable(a.output_dir)

    from bild.training.tokenizer import train_tokenizer

    texts = (text for e in examples for text in (e.source, e.target))
    tokenizer = train_tokenizer(texts, a.vocab_size, a.output_dir)
    print(f"{a.output_dir}: {len(tokenizer)} tokens")

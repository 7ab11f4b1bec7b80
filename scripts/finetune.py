"""Train one model of a pair, from nothing or from a checkpoint.

    # the shipped large model, from nothing
    python scripts/finetune.py demo-large --output-dir out/demo-large \\
        --train-file out/tatoeba/train.jsonl --validation-file out/tatoeba/validation.jsonl \\
        --tokenizer out/tatoeba/tokenizer

    # a further one, from a checkpoint
    python scripts/finetune.py finetune --init-from demo/large --output-dir out/my-large \\
        --train-file train.jsonl --validation-file validation.jsonl

Data are JSON Lines (.gz) with "de" and "en", or with --source-key and --target-key. A training that
was stopped goes on from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

from pathlib import Path

import torch

from bild.cli import Parser, quiet_loading, run
from bild.config import DTYPES
from bild.data import read_jsonl
from bild.errors import BildError
from bild.files import check_writable
from bild.hub import resolve_model, resolve_tokenizer
from bild.training import PRESETS, train


def main() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add(
        "preset",
        choices=PRESETS,
        help="; ".join(f"{n}: {p.description}" for n, p in PRESETS.items()),
    )
    add("--train-file", type=Path, required=True)
    add("--validation-file", type=Path, required=True)
    add("--output-dir", type=Path, required=True)
    add("--init-from", help="checkpoint to start from: a folder or a hub id")
    add("--tokenizer", help="folder or hub id (default: the checkpoint's)")
    add("--source-key", default="de")
    add("--target-key", default="en")
    add("--max-steps", type=int, metavar="N", help="optimizer steps (default: the preset's)")
    add("--max-length", type=int, default=128, metavar="N", help="tokens a side (default: 128)")
    add("--save-steps", type=int, default=250, metavar="N", help="between checkpoints")
    add("--save-dtype", default="float16", choices=DTYPES, help="of the finished weights")
    add("--seed", type=int, default=0)
    a = parser.parse_args()
    for name in ("max_steps", "max_length", "save_steps"):
        value = getattr(a, name)
        if value is not None and value < 1:
            raise BildError(f"{name} must be at least 1, got {value}")
    tokenizer = a.init_from if a.tokenizer is None else a.tokenizer
    if tokenizer is None:
        raise BildError("a model from nothing needs a tokenizer: name one with --tokenizer")
    pairs = [
        [(e.source, e.target) for e in read_jsonl(path, a.source_key, a.target_key)]
        for path in (a.train_file, a.validation_file)
    ]
    check_writable(a.output_dir)
    quiet_loading()
    facts = train(
        PRESETS[a.preset],
        *pairs,
        resolve_tokenizer(tokenizer),
        a.output_dir,
        init_from=None if a.init_from is None else resolve_model(a.init_from),
        max_steps=a.max_steps,
        max_length=a.max_length,
        seed=a.seed,
        save_steps=a.save_steps,
        save_dtype=getattr(torch, a.save_dtype),
    )
    for name, value in facts.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    run(main)

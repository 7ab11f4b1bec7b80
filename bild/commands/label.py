"""Label a training set with the large model: a calibration set, to align a small model with.

    bild label --large demo/large --data-file train.jsonl \\
        --output out/calibration.jsonl
    accelerate launch --multi_gpu --num_processes 2 scripts/make_calibration.py \\
        --large kssteven/T5-large-xsum --tokenizer google-t5/t5-small --num-beams 4 \\
        --data-file train.jsonl --source-key document --target-key summary \\
        --prefix "summarize: " --output out/xsum.jsonl

Writes JSON Lines with the same keys, in the same order, the targets replaced, and beside it a
card: model, settings, counts, sha256. A run that was stopped goes on when the same command is given
again; one process or several write the same file. (--multi_gpu is how accelerate starts several
processes, on CPUs too.)
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from bild.cli import add_output_flags, is_silent, print_facts, quiet_loading
from bild.files import check_file
from bild.flags import add_fields, read_fields
from bild.parser import Parser, add_allow_pickle
from bild.tasks.data import load_file
from bild.training.config import LabelConfig

NAMES = [field.name for field in fields(LabelConfig)]


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--large", required=True, help="folder or hub id of the model that labels")
    add("--tokenizer", help="folder or hub id (default: the model's)")
    add("--data-file", type=Path, required=True, metavar="FILE", help="JSON Lines (.gz)")
    add("--output", type=Path, required=True, metavar="FILE", help="the .jsonl to write")
    add_fields(parser, LabelConfig, *NAMES)
    add_output_flags(parser)
    add_allow_pickle(parser)
    return parser


def main() -> None:
    a = make_parser().parse_args()
    config = LabelConfig(**read_fields(a, *NAMES))
    data = load_file(a.data_file, a.source_key, a.target_key, "train")
    check_file(a.output, "--output")

    # Only now: this imports torch and transformers, which takes seconds.
    from bild.training.labelling import label

    quiet_loading()
    shown = not is_silent(a)
    card = label(a.large, data, a.output, config, tokenizer=a.tokenizer, progress=shown)
    facts = {**card["counts"], "sha256": card["sha256"], "output": str(a.output)}
    print_facts(facts, a)

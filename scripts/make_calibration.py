"""Label a training set with the large model: a calibration set, to align a small model with.

    python scripts/make_calibration.py --large demo/large --data-file train.jsonl \\
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

from bild.cli import Parser, print_facts, quiet_loading, run
from bild.config import DTYPES
from bild.files import check_file
from bild.tasks.data import load_file
from bild.training.config import LabelConfig


def main() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--large", required=True, help="folder or hub id of the model that labels")
    add("--tokenizer", help="folder or hub id (default: the model's)")
    add("--data-file", type=Path, required=True, help="JSON Lines (.gz)")
    add("--output", type=Path, required=True, help="the .jsonl to write")
    add("--source-key", default="de")
    add("--target-key", default="en")
    add("--prefix", default="", help='put before every source, as "summarize: "')
    add("--num-beams", type=int, default=1, metavar="N", help="1 for greedy (default)")
    add("--max-source-tokens", type=int, default=1024, metavar="N", help="(default: 1024)")
    add("--max-new-tokens", type=int, default=128, metavar="N", help="(default: 128)")
    add("--batch-size", type=int, default=64, metavar="N", help="(default: 64)")
    add("--chunk-size", type=int, default=1024, metavar="N", help="written at once (default: 1024)")
    add("--dtype", default="float32", choices=DTYPES)
    a = parser.parse_args()
    config = LabelConfig(**{f.name: getattr(a, f.name) for f in fields(LabelConfig)})
    data = load_file(a.data_file, a.source_key, a.target_key, "train")
    check_file(a.output, "--output")

    # Only now: this imports torch and transformers, which takes seconds.
    from bild.training.labelling import label

    quiet_loading()
    card = label(a.large, data, a.output, config, tokenizer=a.tokenizer)
    print_facts({**card["counts"], "sha256": card["sha256"], "output": a.output})


if __name__ == "__main__":
    run(main, resumes=True)

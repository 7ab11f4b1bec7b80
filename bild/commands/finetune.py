"""Train one model of a pair, from nothing or from a checkpoint, on references or a calibration set.

    # the shipped large model, from nothing
    bild finetune demo-large --output-dir out/demo-large \\
        --train-file out/tatoeba/train.jsonl --validation-file out/tatoeba/validation.jsonl \\
        --tokenizer out/tatoeba/tokenizer

    # a further one, from a checkpoint
    bild finetune finetune --init-from demo/large --output-dir out/my-large \\
        --train-file train.jsonl --validation-file validation.jsonl

    # the reproduction's recipe, on two GPUs
    accelerate launch --multi_gpu --num_processes 2 scripts/finetune.py reproduction \\
        --init-from google-t5/t5-small --prefix "summarize: " --best-by rougeL \\
        --source-key document --target-key summary --max-source-length 1024 \\
        --train-file train.jsonl --validation-file validation.jsonl --output-dir out/xsum-small

Data are JSON Lines (.gz) with "de" and "en", or with --source-key and --target-key. The output
folder gets the model, a model card, a learning curve and training.json. A training that was stopped
goes on from its last checkpoint when the same command is given again, with any number of processes
that divides the batch.
"""

from __future__ import annotations

from bild.cli import print_facts, quiet_loading
from bild.commands.training_flags import add_training_arguments, training_job
from bild.parser import Parser


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    add_training_arguments(parser)
    return parser


def main() -> None:
    job = training_job(make_parser().parse_args())

    from bild.training.trainer import train

    quiet_loading()
    print_facts(train(job))

"""Align a small model with a large one, or train a drafter for it.

    # the paper's recipe: the large model labels the training set, the small one is trained on that
    bild align align --large demo/large --init-from demo/small \\
        --train-file train.jsonl --validation-file validation.jsonl --output-dir out/small-aligned

    # DistillSpec: towards the large model's distribution, on the small one's own outputs
    bild align align --method on-policy --large demo/large --init-from demo/small \\
        --train-file train.jsonl --validation-file validation.jsonl --output-dir out/small-on-policy

    # a drafter on the large model's own encoder; needs no small model and no references
    bild align drafter --method drafter --large demo/large --train-file train.jsonl \\
        --validation-file validation.jsonl --output-dir out/drafter

    # the unaligned control: as many further steps on the references
    bild finetune align --init-from demo/small \\
        --train-file train.jsonl --validation-file validation.jsonl --output-dir out/small-control

All arguments of scripts/finetune.py; goes on where it was stopped; `accelerate launch` starts
several processes. With --method sequence the calibration set stays in the output folder; --method
on-policy takes references or a calibration set of scripts/make_calibration.py as --train-file.
"""

from __future__ import annotations

from dataclasses import fields

from bild.cli import print_facts, quiet_loading
from bild.commands.training_flags import add_training_arguments, training_job
from bild.flags import add_fields, read_fields
from bild.parser import Parser
from bild.training.config import DrafterOptions, LabelConfig, OnPolicyConfig

METHODS = ("sequence", "on-policy", "drafter")
ON_POLICY_OPTIONS = ("divergence", "own_share", "temperature")
DRAFTER_OPTIONS = tuple(field.name for field in fields(DrafterOptions))


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    add_training_arguments(parser)
    add = parser.add_argument
    add("--large", required=True, help="folder or hub id of the model to align with")
    add("--method", default="sequence", choices=METHODS, help="how to align")
    add_fields(parser, OnPolicyConfig, "max_new_tokens")
    labels = parser.add_argument_group("--method sequence, drafter: what the large model writes")
    size = {"flag": "--label-batch-size"}
    add_fields(labels, LabelConfig, "num_beams", "batch_size", batch_size=size)
    policy = parser.add_argument_group("--method on-policy, drafter: the loss")
    share = {"default": None, "help": "share of the steps, 0 to 1, whose targets the small model "
             "writes itself (default: 0.5; of a drafter 0)"}  # fmt: skip
    add_fields(policy, OnPolicyConfig, *ON_POLICY_OPTIONS, own_share=share)
    add_fields(parser.add_argument_group("--method drafter"), DrafterOptions, *DRAFTER_OPTIONS)
    return parser


def main() -> None:
    a = make_parser().parse_args()
    if a.own_share is None:
        a.own_share = 0.0 if a.method == "drafter" else 0.5
    on_policy_config = OnPolicyConfig(**read_fields(a, *ON_POLICY_OPTIONS, "max_new_tokens"))
    drafter_options = DrafterOptions(**read_fields(a, *DRAFTER_OPTIONS))
    label_config = LabelConfig(
        max_source_tokens=a.max_length if a.max_source_length is None else a.max_source_length,
        **read_fields(
            a, "source_key", "target_key", "prefix", "num_beams", "max_new_tokens", "batch_size"
        ),
    )
    if a.method == "drafter" and a.tokenizer is None:
        a.tokenizer = a.large
    job = training_job(a)

    # Only now: these import torch and transformers, which takes seconds.
    from bild.training.alignment import align_by_sequence, align_on_policy
    from bild.training.drafting import train_drafter

    quiet_loading()
    if a.method == "sequence":
        print_facts(align_by_sequence(a.large, job, label_config))
    elif a.method == "on-policy":
        print_facts(align_on_policy(a.large, job, on_policy_config))
    else:
        print_facts(train_drafter(a.large, job, drafter_options, label_config, on_policy_config))

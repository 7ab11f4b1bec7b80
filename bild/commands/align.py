"""Align a small model with a large one.

    # the paper's recipe: the large model labels the training set, the small one is trained on that
    bild align align --large demo/large --init-from demo/small \\
        --train-file train.jsonl --validation-file validation.jsonl --output-dir out/small-aligned

    # DistillSpec: towards the large model's distribution, on the small one's own outputs
    bild align align --method on-policy --large demo/large --init-from demo/small \\
        --train-file train.jsonl --validation-file validation.jsonl --output-dir out/small-on-policy

    # the unaligned control: as many further steps on the references
    bild finetune align --init-from demo/small \\
        --train-file train.jsonl --validation-file validation.jsonl --output-dir out/small-control

All arguments of scripts/finetune.py; goes on where it was stopped; `accelerate launch` starts
several processes. With --method sequence the calibration set stays in the output folder; --method
on-policy takes references or a calibration set of scripts/make_calibration.py as --train-file.
"""

from __future__ import annotations

from bild.cli import add_training_arguments, print_facts, quiet_loading, training_job
from bild.flags import add_fields, read_fields
from bild.parser import Parser
from bild.training.config import LabelConfig, OnPolicyConfig

ON_POLICY_OPTIONS = ("divergence", "own_share", "temperature")


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    add_training_arguments(parser)
    add = parser.add_argument
    add("--large", required=True, help="folder or hub id of the model to align with")
    add("--method", default="sequence", choices=("sequence", "on-policy"), help="how to align")
    add_fields(parser, OnPolicyConfig, "max_new_tokens")
    sequence = parser.add_argument_group("--method sequence")
    size = {"flag": "--label-batch-size"}
    add_fields(sequence, LabelConfig, "num_beams", "batch_size", batch_size=size)
    on_policy = parser.add_argument_group("--method on-policy")
    add_fields(on_policy, OnPolicyConfig, *ON_POLICY_OPTIONS)
    return parser


def main() -> None:
    a = make_parser().parse_args()
    on_policy_config = OnPolicyConfig(**read_fields(a, *ON_POLICY_OPTIONS, "max_new_tokens"))
    label_config = LabelConfig(
        max_source_tokens=a.max_length if a.max_source_length is None else a.max_source_length,
        **read_fields(
            a, "source_key", "target_key", "prefix", "num_beams", "max_new_tokens", "batch_size"
        ),
    )
    job = training_job(a)

    # Only now: these import torch and transformers, which takes seconds.
    from bild.training.alignment import align_by_sequence, align_on_policy

    quiet_loading()
    if a.method == "sequence":
        print_facts(align_by_sequence(a.large, job, label_config))
    else:
        print_facts(align_on_policy(a.large, job, on_policy_config))

"""Align a small model with a large one.

    # the paper's recipe: the large model labels the training set, the small one is trained on that
    python scripts/align.py align --large demo/large --init-from demo/small \\
        --train-file train.jsonl --validation-file validation.jsonl --output-dir out/small-aligned

    # DistillSpec: towards the large model's distribution, on the small one's own outputs
    python scripts/align.py align --method on-policy --large demo/large --init-from demo/small \\
        --train-file train.jsonl --validation-file validation.jsonl --output-dir out/small-on-policy

    # the unaligned control: as many further steps on the references
    python scripts/finetune.py align --init-from demo/small \\
        --train-file train.jsonl --validation-file validation.jsonl --output-dir out/small-control

All arguments of scripts/finetune.py; goes on where it was stopped; `accelerate launch` starts
several processes. With --method sequence the calibration set stays in the output folder; --method
on-policy takes references or a calibration set of scripts/make_calibration.py as --train-file.
"""

from __future__ import annotations

from bild.cli import Parser, add_training_arguments, print_facts, quiet_loading, run, training_job
from bild.training.config import DIVERGENCES, LabelConfig, OnPolicyConfig


def main() -> None:
    own = OnPolicyConfig()
    parser = Parser(__doc__)
    add_training_arguments(parser)
    add = parser.add_argument
    add("--large", required=True, help="folder or hub id of the model to align with")
    add("--method", default="sequence", choices=("sequence", "on-policy"))
    add("--max-new-tokens", type=int, default=128, metavar="N", help="of outputs (default: 128)")
    sequence = parser.add_argument_group("--method sequence").add_argument
    sequence("--num-beams", type=int, default=1, metavar="N", help="1 for greedy (default)")
    sequence("--label-batch-size", type=int, default=64, metavar="N", help="(default: 64)")
    on_policy = parser.add_argument_group("--method on-policy").add_argument
    on_policy("--divergence", default=own.divergence, choices=DIVERGENCES)
    on_policy(
        "--own-share",
        type=float,
        default=own.own_share,
        metavar="X",
        help="share of the steps on the small model's own outputs (default: 0.5)",
    )
    on_policy(
        "--temperature",
        type=float,
        default=own.temperature,
        metavar="X",
        help="of its sampling, 0 for greedy (default: 1)",
    )
    a = parser.parse_args()
    on_policy_config = OnPolicyConfig(a.divergence, a.own_share, a.temperature, a.max_new_tokens)
    label_config = LabelConfig(
        source_key=a.source_key,
        target_key=a.target_key,
        prefix=a.prefix,
        num_beams=a.num_beams,
        max_source_tokens=a.max_length if a.max_source_length is None else a.max_source_length,
        max_new_tokens=a.max_new_tokens,
        batch_size=a.label_batch_size,
    )
    job = training_job(a)

    # Only now: these import torch and transformers, which takes seconds.
    from bild.training.alignment import align_by_sequence, align_on_policy

    quiet_loading()
    if a.method == "sequence":
        print_facts(align_by_sequence(a.large, job, label_config))
    else:
        print_facts(align_on_policy(a.large, job, on_policy_config))


if __name__ == "__main__":
    run(main, resumes=True)

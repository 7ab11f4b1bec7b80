"""Evaluate one task: the large model alone, the pair under BiLD, and the small model alone.

    python scripts/run_eval.py demo
    python scripts/run_eval.py iwslt2017 aligned 0.9 3 888 --device cuda
    python scripts/run_eval.py xsum vanilla --max-eval-samples 100
    python scripts/run_eval.py demo unaligned --large my/large --small my/small --data-file my.jsonl

The launchers run_<task>.sh call this with the task filled in. Models and data come from
BILD_MODELS_ROOT and BILD_DATA_ROOT if set, else from the hub. Results go to
out/<task>/<time>/run.json and samples.jsonl; a run that was stopped goes on when started again.
"""

from __future__ import annotations

from pathlib import Path

from bild.cli import (
    Parser,
    add_run_options,
    add_task,
    add_thresholds,
    check_record,
    chosen_thresholds,
    quiet_loading,
    rule_options,
    run,
    run_options,
)
from bild.config import BiLDConfig, EvalConfig
from bild.errors import BildError
from bild.files import check_writable
from bild.flags import add_fields, read_fields
from bild.tasks.registry import MODES
from bild.tasks.sources import locate


def parse() -> tuple[EvalConfig, Path, Path | None]:
    parser = Parser(__doc__)
    add = parser.add_argument
    add_task(parser, MODES)
    add("first", nargs="?", type=float, metavar="fallback", help="as --fallback")
    add("second", nargs="?", type=float, metavar="rollback", help="as --rollback")
    add("third", nargs="?", type=int, metavar="max_eval_samples", help="as --max-eval-samples")
    add_thresholds(parser)
    add_run_options(parser)
    add_fields(parser, EvalConfig, "small_alone")
    a = parser.parse_args()

    for place, name in (("first", "fallback"), ("second", "rollback"), ("third", "max_samples")):
        given, flagged = getattr(a, place), getattr(a, name)
        if None not in (given, flagged) and given != flagged:
            raise BildError(f"two values of {name} were given, {given:g} and {flagged:g}; keep one")
        setattr(a, name, flagged if given is None else given)
    thresholds = chosen_thresholds(a.task, a.mode, a.fallback, a.rollback)
    bild = BiLDConfig(**thresholds, **rule_options(a))  # also where no small model is: its checks
    config = EvalConfig(
        bild=None if a.mode == "vanilla" else bild,
        **run_options(a),
        **read_fields(a, "small_alone"),
    )
    return config, a.output_dir, a.record


def main() -> None:
    config, output_dir, copy = parse()
    check_writable(output_dir / config.task)
    check_record(copy)
    sources = locate(config)

    # Only now: these import torch and transformers, which takes seconds.
    from bild.evaluation.run import evaluate, read_samples
    from bild.show.tables import examples_text, published_table, run_table

    quiet_loading()
    record, path = evaluate(config, output_dir, sources=sources)
    if copy is not None:
        record.save(copy)
    samples = read_samples(path.with_name("samples.jsonl"))
    print(f"\n{examples_text(samples, count=3)}")
    print(f"\n{config.task}, {config.mode}", end="")
    if config.bild is not None:
        bild = config.bild
        print(
            f", fallback {bild.fallback_threshold:g}, rollback {bild.rollback_threshold:g}, "
            f"{bild.variant} rules",
            end="",
        )
    print(f", {record.data['samples']} examples, {record.env['dtype']}, {record.env['device']}\n")
    print(run_table(record))
    published = published_table(config.task, config.mode)
    if published:
        print(f"\n{published}")
    print(f"\n{path}")


if __name__ == "__main__":
    run(main, resumes=True)

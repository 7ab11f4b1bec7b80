"""Evaluate one task: the large model alone, the pair under BiLD, and the small model alone.

    python scripts/run_eval.py demo
    python scripts/run_eval.py iwslt2017 aligned 0.9 3 888 --device cuda
    python scripts/run_eval.py xsum vanilla --max-eval-samples 100
    python scripts/run_eval.py demo unaligned --large my/large --small my/small --data-file my.jsonl
    python scripts/run_eval.py demo --rule typical:eps=0.3,delta=0.09 --drafting margin:least=0.3
    python scripts/run_eval.py demo --repeat 3 --threads 2 --record results/my/run.json

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
    chosen_thresholds,
    quiet_loading,
    rule_options,
    run,
    run_options,
)
from bild.config import BiLDConfig, EvalConfig
from bild.errors import BildError
from bild.evaluation.record import check_record
from bild.files import check_writable
from bild.flags import add_fields, read_fields
from bild.tasks.registry import MODES
from bild.tasks.sources import locate

REPEATED = ("small_alone", "repeat")


def parse() -> tuple[EvalConfig, Path, Path | None]:
    parser = Parser(__doc__)
    add = parser.add_argument
    add_task(parser, MODES)
    add("first", nargs="?", type=float, metavar="fallback", help="as --fallback")
    add("second", nargs="?", type=float, metavar="rollback", help="as --rollback")
    add("third", nargs="?", type=int, metavar="max_eval_samples", help="as --max-eval-samples")
    add_thresholds(parser)
    add_run_options(parser)
    add_fields(parser, EvalConfig, *REPEATED)
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
        **read_fields(a, *REPEATED),
    )
    return config, a.output_dir, a.record


def main() -> None:
    config, output_dir, copy = parse()
    check_writable(output_dir / config.task)
    check_record(copy, config)
    sources = locate(config)

    # Only now: these import torch and transformers, which takes seconds.
    from bild.evaluation.run import evaluate_loaded, prepare
    from bild.show.tables import run_report

    quiet_loading()
    work = prepare(config, sources)
    print(work.heading, flush=True)
    evaluate_loaded(work, output_dir, report=run_report(copy))


if __name__ == "__main__":
    run(main, resumes=True)

"""Evaluate one task: the large model alone, the pair under BiLD, and the small model alone.

    python scripts/run_eval.py demo
    python scripts/run_eval.py iwslt2017 aligned 0.9 3 888 --device cuda
    python scripts/run_eval.py xsum vanilla --max-eval-samples 100
    python scripts/run_eval.py demo unaligned --large my/large --small my/small --data-file my.jsonl
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
    quiet_loading,
    rule_options,
    run,
    run_options,
)
from bild.config import BiLDConfig, EvalConfig
from bild.errors import BildError
from bild.evaluation.record import check_record
from bild.files import check_writable
from bild.tasks.registry import MODES, get
from bild.tasks.sources import locate


def parse() -> tuple[EvalConfig, Path, Path | None]:
    defaults = BiLDConfig()
    parser = Parser(__doc__)
    add = parser.add_argument
    add_task(parser, MODES)
    add("fallback", nargs="?", type=float, help="fallback threshold (default: the published one)")
    add("rollback", nargs="?", type=float, help="rollback threshold (default: the published one)")
    add("max_eval_samples", nargs="?", type=int, help="as --max-eval-samples")
    add_run_options(parser)
    add("--no-small-alone", action="store_true", help="leave out the small model alone")
    add("--repeat", type=int, default=1, metavar="K", help="passes over the examples (default: 1)")
    a = parser.parse_args()

    preset = get(a.task).default_thresholds(a.mode)
    fallback = defaults.fallback_threshold if preset is None else preset.fallback
    rollback = defaults.rollback_threshold if preset is None else preset.rollback
    bild = BiLDConfig(  # also where the mode is vanilla, for its checks
        fallback_threshold=fallback if a.fallback is None else a.fallback,
        rollback_threshold=rollback if a.rollback is None else a.rollback,
        **rule_options(a),
    )
    if a.max_samples is not None and a.max_eval_samples not in (None, a.max_samples):
        raise BildError(
            f"two numbers of samples were given, {a.max_eval_samples} and {a.max_samples}; keep one"
        )
    options = run_options(a)
    if a.max_samples is None:
        options["max_samples"] = a.max_eval_samples
    config = EvalConfig(
        **options,
        bild=None if preset is None else bild,
        small_alone=not a.no_small_alone,
        repeat=a.repeat,
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

"""Evaluate one task: the large model alone, the pair under BiLD, and the small model alone.

    bild eval demo
    bild eval iwslt2017 aligned 0.9 3 888 --device cuda
    bild eval xsum vanilla --max-eval-samples 100
    bild eval demo unaligned --large my/large --small my/small --data-file my.jsonl
    bild eval --task-file my/task.yaml unaligned 0.6 2
    bild eval demo --rule typical:eps=0.3,delta=0.09 --drafting margin:least=0.3
    bild eval demo --repeat 3 --threads 2 --record results/my/run.json
    bild eval demo --do-sample --temperature 0.7 --seed 1 --batch-size 4

The launchers run_<task>.sh call this with the task filled in. Models and data come from
BILD_MODELS_ROOT and BILD_DATA_ROOT if set, else from the hub. Results go to
out/<task>/<time>/run.json and samples.jsonl; a run that was stopped goes on when started again.
Under `accelerate launch --multi_gpu --num_processes 2 scripts/run_eval.py ...` the processes share
the examples (docs/cluster.md).
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bild.cli import (
    add_run_options,
    add_task,
    add_thresholds,
    chosen_thresholds,
    is_silent,
    quiet_loading,
    rule_options,
    run_options,
    tell,
)
from bild.commands.drawn import add_drawing, for_drawing, refuse_drawing
from bild.config import BiLDConfig, EvalConfig
from bild.drawing import Distribution
from bild.errors import BildError
from bild.evaluation.record import check_record
from bild.files import check_writable
from bild.flags import add_fields, read_fields
from bild.parser import Parser
from bild.processes import launch
from bild.tasks.registry import MODES
from bild.tasks.sources import locate

if TYPE_CHECKING:
    from bild.evaluation.loop import Sample
    from bild.evaluation.record import RunRecord

REPEATED = ("small_alone", "repeat", "batch_size")
DRAWING = ("temperature", "top_k", "top_p")


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add_task(parser, MODES)
    add("first", nargs="?", type=float, metavar="fallback", help="as --fallback")
    add("second", nargs="?", type=float, metavar="rollback", help="as --rollback")
    add("third", nargs="?", type=int, metavar="max_eval_samples", help="as --max-eval-samples")
    add_thresholds(parser)
    add_run_options(parser)
    add_fields(parser, EvalConfig, *REPEATED)
    add_drawing(parser, "all arms draw their tokens", Distribution, DRAWING)
    return parser


def parse() -> tuple[EvalConfig, Namespace]:
    parser = make_parser()
    a = parser.parse_args()
    for place, name in (("first", "fallback"), ("second", "rollback"), ("third", "max_samples")):
        given, flagged = getattr(a, place), getattr(a, name)
        if given is None:
            continue
        # A file's value is no second one: what stands on the command line wins.
        if flagged not in (None, given, parser.get_default(name)):
            raise BildError(f"two values of {name} were given, {given:g} and {flagged:g}; keep one")
        setattr(a, name, given)
    thresholds = chosen_thresholds(a.task, a.mode, a.fallback, a.rollback)
    bild = BiLDConfig(**thresholds, **rule_options(a))  # also where no small model is: its checks
    drawn = read_drawn(a)
    if drawn is not None:
        bild = for_drawing(bild, a)
    config = EvalConfig(
        bild=None if a.mode == "vanilla" else bild,
        drawn=drawn,
        **run_options(a),
        **read_fields(a, *REPEATED),
    )
    return config, a


def read_drawn(a: Namespace) -> Distribution | None:
    """What tokens are drawn from; None where outputs are greedy.

    Raises:
        BildError: settings without --do-sample.
    """
    drawn = Distribution(**read_fields(a, *DRAWING))
    if a.do_sample:
        return drawn
    refuse_drawing(a, drawn, DRAWING)
    return None


def main() -> None:
    config, a = parse()
    check_writable(a.output_dir / config.task)
    check_record(a.record, config)
    sources = locate(config)

    # Only now: these import torch and transformers, which takes seconds.
    from bild.evaluation.run import evaluate_loaded, prepare
    from bild.generation.sampled_rules import sampling_rule
    from bild.show.tables import run_text

    quiet_loading()
    if config.drawn is not None and config.bild is not None:
        sampling_rule(config.bild)  # refuses what it cannot draw by
    work = prepare(config, sources)
    if not is_silent(a) and launch().is_first:
        print(work.heading, flush=True)

    def report(record: RunRecord, samples: Sequence[Sample], path: Path) -> None:
        if a.record is not None:
            record.save(a.record)
        tell(a, record, path, run_text(record, samples))

    evaluate_loaded(work, a.output_dir, report=report, progress=not is_silent(a))

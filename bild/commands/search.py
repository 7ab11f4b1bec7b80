"""Find the fastest thresholds that lose at most so much quality.

    bild search demo --max-loss 1
    bild search iwslt2017 aligned --max-loss 2% --confidence 0.9 \\
        --max-eval-samples 400 --check-file iwslt2017/test.jsonl --device cuda
    bild search demo --large my/large --small my/small \\
        --data-file my/validation.jsonl --check-file my/test.jsonl --record results/my/search.json
    bild search --task-file my/task.yaml
    bild search demo --method grid
    bild search demo --rule lenient:share=0.3

The confidence holds for the choice, however many thresholds there were to choose from
(`bild.tuning.verdict`). Choose on validation examples and check on others all the same: the fastest
of many look faster on the examples they were chosen on. Models are loaded once and the large model
alone decodes once; thresholds are given up as soon as it is clear that they lose too much or are
too slow. Everything is kept in out/<task>/search-..., so that a search that was stopped goes on
when started again, and another goal, or the grid, decodes only what is new. How speed is told, and
why not by the clock alone: `bild.tuning.prices`. Under `accelerate launch` several processes share
the grid, and choose what one would. With --storage every start of the command, on any machine, is a
worker of one search (docs/cluster.md):

    bild search demo --storage sqlite:///search.db --trials 20
"""

from __future__ import annotations

import shlex
from argparse import Namespace
from pathlib import Path
from typing import Any

from bild.cli import (
    PAIR_OPTIONS,
    RULE_FLAGS,
    RULE_OPTIONS,
    add_run_options,
    add_task,
    is_silent,
    quiet_loading,
    rule_options,
    run_options,
    tell,
)
from bild.config import BiLDConfig, EvalConfig, SearchConfig
from bild.errors import BildError
from bild.evaluation.record import check_record
from bild.files import check_writable
from bild.flags import add_fields, read_fields
from bild.parser import Parser
from bild.processes import launch
from bild.tasks.data import load_examples
from bild.tasks.registry import MODES, get
from bild.tasks.sources import locate
from bild.tuning.record import TriedPoint
from bild.tuning.study import study_config

SEARCH_OPTIONS = ("confidence", "method", "speed", "fallbacks", "rollbacks", "budget")
# What decides how a pair decodes, apart from its thresholds.
PAIR_FLAGS = ("variant", "threads", *RULE_OPTIONS, *PAIR_OPTIONS)
# And of a task of one's own, what it is.
OWN_FLAGS = ("data_file", "target_file", "source_key", "target_key", "metric", "bleu_tokenize")


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add_task(parser, MODES[1:])
    add(
        "--max-loss",
        default="1",
        metavar="X",
        help="points of the metric, or 2%% for percent of the large model's score",
    )
    two = {"metavar": ("LOW", "HIGH")}
    add_fields(parser, SearchConfig, *SEARCH_OPTIONS, fallbacks=two, rollbacks=two)
    add("--check-file", metavar="FILE", help="other examples, to time the choice on")
    add(
        "--storage",
        metavar="URL",
        help="database in which several workers share what Optuna proposes, as SQLAlchemy has it: "
        "sqlite:///search.db, postgresql://user@host/name",
    )
    add(
        "--trials",
        type=int,
        metavar="N",
        help="thresholds that all workers of --storage try together (default: as many as --budget "
        "pays for when each is decoded to the end)",
    )
    add_run_options(parser)
    return parser


def parse() -> tuple[Namespace, EvalConfig, SearchConfig, dict[str, Any]]:
    """The arguments, the settings made of them, and those of `PAIR_FLAGS` that were changed."""
    parser = make_parser()
    a = parser.parse_args()
    number = a.max_loss.removesuffix("%")
    try:
        max_loss = float(number)
    except ValueError:
        raise BildError(
            f"--max-loss must be points, as 0.5, or a percentage, as 2%, got {a.max_loss!r}"
        ) from None
    flags = (*OWN_FLAGS, *PAIR_FLAGS) if get(a.task).is_own else PAIR_FLAGS
    given = {name: getattr(a, name) for name in flags}
    # A rule of another name has no such threshold: one value stands for all.
    for rule, axis in (("acceptance", "rollbacks"), ("drafting", "fallbacks")):
        if getattr(a, rule) is not None:
            setattr(a, axis, getattr(a, axis)[:1] * 2)
    return (
        a,
        EvalConfig(**run_options(a), bild=BiLDConfig(**rule_options(a))),
        SearchConfig(
            max_loss=max_loss,
            percent=number != a.max_loss,
            **read_fields(a, *SEARCH_OPTIONS),
        ),
        {name: value for name, value in given.items() if parser.changed(name, value)},
    )


def launch_command(a: Namespace, changed: dict[str, Any], point: TriedPoint) -> str:
    """The command that decodes with thresholds as they were searched for."""
    if a.task_file is not None:
        command = ["bild", "eval", "--task-file", str(a.task_file)]
    else:
        command = ["bild", "eval", a.task] if get(a.task).is_own else ["bash", f"run_{a.task}.sh"]
    command += [a.mode, f"{point.fallback:g}", f"{point.rollback:g}"]
    for name, value in changed.items():
        flag = RULE_FLAGS.get(name, "--" + name.replace("_", "-"))
        if isinstance(value, bool):
            command.append(flag if value else f"--no-{flag.removeprefix('--')}")
        else:
            command += [flag, str(value)]
    return shlex.join(command)


def main() -> None:
    a, config, search, changed = parse()
    shared = None
    if a.storage is not None:
        shared = study_config(a.storage, a.trials, search)
    elif a.trials is not None:
        raise BildError(f"--trials {a.trials} is of workers that share a --storage; name one")
    check_writable(a.output_dir / config.task)
    check_record(a.record, config)
    sources = locate(config)
    check = None
    if a.check_file is not None:
        check = load_examples(sources.task, None, Path(a.check_file))

    # Only now: these import torch and transformers, which takes seconds.
    from bild.evaluation.run import prepare
    from bild.show.tables import search_table
    from bild.tuning.search import search_thresholds, share_grid
    from bild.tuning.workers import search_together

    quiet_loading()
    work = prepare(config, sources)
    shown = not is_silent(a) and launch().is_first
    if shared is None:
        if launch().count > 1 and not share_grid(work, search, a.output_dir):
            return
        record, path = search_thresholds(work, search, a.output_dir, check=check, progress=shown)
    else:
        made = search_together(work, search, shared, a.output_dir, check=check, progress=shown)
        if made is None:
            return  # another worker makes the record, and tells of it
        record, path = made
    if a.record is not None:
        record.save(a.record)
    text = search_table(record)
    if record.chosen is not None:
        text += f"\n\n{launch_command(a, changed, record.points[record.chosen])}"
    tell(a, record, path, text)

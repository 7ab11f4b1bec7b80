"""Compare small models beside one large model: quality and speed over a grid of thresholds.

    bild compare demo --large demo/large \\
        --small unaligned=demo/small control=out/small-control aligned=demo/small-aligned \\
        --data-file validation.jsonl --test-file test.jsonl --max-eval-samples 300 \\
        --record out/small-models.json
    bild compare api --large my/large --tokenizer my/tokenizer \\
        --small unaligned=my/small aligned=my/aligned \\
        --data-file validation.jsonl --test-file test.jsonl --fallbacks 0.3 0.6 --rollbacks 2 4

Every small model is decoded with all thresholds of the grid, on the validation examples and on the
test examples; the large model alone is decoded once. On the validation examples two operating
points a small model are chosen: the fastest that loses nothing, and the fastest that loses at most
one point. They are timed on the test examples, beside the large model and each small model alone.
The small model named last is compared with the others. On many test examples the grid takes long:
--no-on-test decodes them with the chosen points alone.

Everything is kept in out/<task>/small-models-...: a comparison that was stopped goes on when
started again, and another small model or other thresholds decode only what is new. Under
`accelerate launch` several processes share all of it (docs/cluster.md).
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from bild.checkpoints.names import resolve_model
from bild.cli import (
    add_run_options,
    add_task,
    is_silent,
    quiet_loading,
    rule_options,
    run_options,
    tell,
)
from bild.config import BiLDConfig, EvalConfig, GridConfig
from bild.evaluation.record import check_record
from bild.files import check_writable
from bild.flags import add_fields, named_models, read_fields
from bild.parser import Parser
from bild.processes import launch
from bild.tasks.data import load_examples
from bild.tasks.sources import locate

GRID_OPTIONS = ("fallbacks", "rollbacks", "on_test")


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add_task(parser, ("unaligned",), skipped=("small",))
    add_fields(parser, GridConfig, *GRID_OPTIONS)
    add("--test-file", type=Path, required=True, metavar="FILE", help="as --data-file, to test on")
    add("--max-test-samples", type=int, metavar="N", help="the first so many (default: all)")
    add_run_options(parser, several_small=True)
    return parser


def parse() -> tuple[Namespace, EvalConfig, dict[str, str], GridConfig]:
    a = make_parser().parse_args()
    models = named_models(a.small)
    options = {**run_options(a), "small": next(iter(models.values()))}
    config = EvalConfig(**options, bild=BiLDConfig(**rule_options(a)))
    return a, config, models, GridConfig(**read_fields(a, *GRID_OPTIONS))


def main() -> None:
    a, config, models, grid = parse()
    check_writable(a.output_dir / config.task)
    check_record(a.record, config)
    sources = locate(config)
    for model in models.values():
        resolve_model(model)
    test = load_examples(sources.task, a.max_test_samples, a.test_file)

    # Only now: these import torch and transformers, which takes seconds.
    from bild.show.tables import small_models_table
    from bild.tuning.small_models import compare_small_models, prepare_small_models

    quiet_loading()
    works = prepare_small_models(config, sources, models)
    shown = not is_silent(a) and launch().is_first
    made = compare_small_models(works, test, grid, a.output_dir, progress=shown)
    if made is None:
        return  # the first of several processes has the record
    record, path = made
    if a.record is not None:
        record.save(a.record)
    tell(a, record, path, small_models_table(record))

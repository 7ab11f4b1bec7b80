"""Decode a file of texts with a pair: one text a line in, one output a line out.

    bild generate sentences.txt -o translations.txt          # the shipped pair, in a checkout
    bild generate articles.jsonl -o summaries.jsonl.gz --source-key article \\
        --large my/large --small my/small --prefix "summarize: " --stats
    bild generate input.txt -o output.txt --task xsum --mode aligned --device cuda
    bild generate input.txt -o output.txt --large my/large --small my/small --search search.json
    cat input.txt | bild generate - -o -
    bild generate sentences.txt -o drawn.jsonl --do-sample --temperature 0.7 --seed 1

The input is plain text, a text a line, or JSON Lines (.jsonl), also .gz; "-" is the standard input.
The order is kept, and every line has one, an empty one for an empty text. JSON objects keep what
they hold and get "output"; with --stats also what happened. Outputs are those of
`BiLDModel.generate`, token for token.

Finished lines gather in OUTPUT.partial; when all are there, the file moves into place. A run that
was stopped, however it was, goes on when the same command is given again, and when all is done it
says so; another command is refused. Through pipes nothing can go on. Under `accelerate launch
--multi_gpu --num_processes 2 -m bild generate ...` the processes share the lines; it goes on with
any number of them.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import get_args

from bild.checkpoints.names import REPOSITORY_ROOT
from bild.cli import add_pair_flags, pair_config, quiet_loading
from bild.commands.drawn import add_drawing, for_drawing, refuse_drawing
from bild.config import BiLDConfig, EvalConfig
from bild.errors import BildError
from bild.flags import add_fields, read_fields
from bild.outputs.drawing import Drawing
from bild.outputs.reading import PIPE, FileJob, Form, form_of
from bild.outputs.writing import check_output
from bild.parser import Parser
from bild.tasks.registry import get
from bild.tasks.sources import locate_models

LARGEST_BATCH = 4096
DRAWING = ("temperature", "top_k", "top_p", "seed", "num_return_sequences")


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("input", metavar="INPUT", help='file of texts, or "-" for the standard input')
    add("-o", "--output", required=True, metavar="OUTPUT", help='file to write, or "-"')
    forms = get_args(Form)
    add("--input-format", choices=forms, help="(default: jsonl for .jsonl[.gz], else text)")
    add("--output-format", choices=forms, help="(default: as its name; the input's for a pipe)")
    add("--source-key", metavar="KEY", help="key of the text in an object (default: the task's)")
    add("--output-key", default="output", metavar="KEY", help="key of the output in an object")
    add(
        "--stats", action="store_true", help="put counts into each object: fallbacks, forwards, ..."
    )
    add("--batch-size", type=int, default=1, metavar="N", help="texts decoded at a time")
    add("--overwrite", action="store_true", help="replace a finished output")
    add("--quiet", action="store_true", help="no progress")
    add(
        "--search",
        type=Path,
        metavar="RECORD",
        help="thresholds and rules that `bild search` has chosen",
    )
    add_pair_flags(parser)
    add_fields(parser, EvalConfig, "threads")
    add_drawing(parser, "draw tokens; else outputs are greedy", Drawing, DRAWING)
    return parser


def main() -> None:
    a = make_parser().parse_args()
    config, job = read(a)
    drawing = read_drawing(a, job)
    if job.output != PIPE:
        check_output(Path(job.output).expanduser(), a.overwrite, job.source == PIPE)
    _check_pair(a)
    found = locate_models(config)

    # Only now: these import torch and transformers, which takes seconds.
    from bild.outputs.run import Decoding, generate_file

    quiet_loading()
    generate_file(Decoding.load(config, found, drawing), job)


def read(a: Namespace) -> tuple[EvalConfig, FileJob]:
    """The settings of a command line, checked.

    Raises:
        BildError: values that do not go together, or a search without a choice.
    """
    config, bild = pair_config(a)
    if a.search is not None:
        if (a.fallback, a.rollback) != (None, None):
            raise BildError("--search gives the thresholds; leave out --fallback and --rollback")
        bild = searched(a.search)
    source_form = form_of(a.input, a.input_format)
    output_form = form_of(a.output, a.output_format, source_form)
    if a.stats and output_form == "text":
        raise BildError(
            "--stats needs JSON Lines: name the output .jsonl, or --output-format jsonl"
        )
    key = get(a.task).source_key if a.source_key is None else a.source_key
    if not 1 <= a.batch_size <= LARGEST_BATCH:
        raise BildError(f"batch_size must be from 1 to {LARGEST_BATCH}, got {a.batch_size}")
    job = FileJob(
        *(a.input, a.output, source_form, output_form, key),
        **read_fields(a, "output_key", "stats", "quiet", "batch_size", "overwrite"),
    )
    if a.do_sample:
        bild = for_drawing(bild, a)
    return replace(config, bild=bild, **read_fields(a, "threads")), job


def read_drawing(a: Namespace, job: FileJob) -> Drawing | None:
    """How a command line wants outputs drawn; None for greedy ones.

    Raises:
        BildError: settings without --do-sample, or several outputs of a text in a file of lines.
    """
    drawing = Drawing(**read_fields(a, *DRAWING))
    if a.do_sample:
        if drawing.num_return_sequences > 1 and job.output_form == "text":
            raise BildError(
                "--num-return-sequences needs JSON Lines, with a list in each object: name the "
                "output .jsonl, or --output-format jsonl"
            )
        return drawing
    refuse_drawing(a, drawing, DRAWING)
    return None


def searched(path: Path) -> BiLDConfig:
    """The rules and thresholds that a search has chosen.

    Raises:
        BildError: no record of a search, or one that found nothing.
    """
    from bild.tuning.record import SearchRecord

    record = SearchRecord.load(path)
    if record.chosen is None or record.config.bild is None:
        raise BildError(f"the search in {path} has chosen no thresholds; allow more loss")
    point = record.points[record.chosen]
    return replace(
        record.config.bild,
        fallback_threshold=point.fallback,
        rollback_threshold=point.rollback,
    )


def _check_pair(a: Namespace) -> None:
    """Say what to do where the shipped pair is meant and is not here.

    Raises:
        BildError: half a pair, or none.
    """
    if (a.large is None) != (a.small is None):
        given, other = ("--large", "--small") if a.small is None else ("--small", "--large")
        if a.task == "demo":
            raise BildError(f"{given} is given without {other}; name both models of your pair")
    here = (Path("demo/large"), REPOSITORY_ROOT / "demo/large")
    if a.large is None and a.task == "demo" and not any(path.is_dir() for path in here):
        raise BildError(
            "the shipped pair comes with a checkout and is not here; name yours with --large and "
            "--small, or a task whose models are on the hub with --task"
        )

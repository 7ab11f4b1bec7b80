"""Measure how often small models agree with the large one, and whether their confidence tells.

    bild agreement --large demo/large --small demo/small out/small-aligned \\
        --data-file test.jsonl

On held-out text, position by position, on the references' prefixes and on those of the large
model's own greedy outputs: the share of positions where the most likely tokens are the same, and of
each bin of the small model's probability the share that agrees. Writes the record and, beside it, a
reliability diagram (.svg). It goes on where it was stopped; under `accelerate launch --multi_gpu
--num_processes 2 scripts/measure_agreement.py ...` the processes share the batches.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from bild.cli import add_data_keys, add_output_flags, is_silent, quiet_loading, tell
from bild.errors import BildError
from bild.evaluation.record import check_record
from bild.files import check_writable
from bild.flags import add_fields, read_fields
from bild.parser import Parser, add_allow_pickle
from bild.tasks.data import load_file
from bild.training.config import AgreementConfig

if TYPE_CHECKING:
    from bild.training.record import AgreementRecord

NAMES = [field.name for field in fields(AgreementConfig)]


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--large", required=True, help="folder or hub id of the large model")
    add("--small", required=True, nargs="+", help="folders or hub ids of small models")
    add("--tokenizer", help="folder or hub id (default: the large model's)")
    add("--data-file", type=Path, required=True, metavar="FILE", help="held-out JSON Lines (.gz)")
    add("--output-dir", type=Path, default=Path("out/agreement"), help="(default: out/agreement)")
    add("--record", type=Path, metavar="FILE.json", help="also write record and picture here")
    add_data_keys(parser)
    add_fields(parser, AgreementConfig, *NAMES)
    add_output_flags(parser)
    add_allow_pickle(parser)
    return parser


def main() -> None:
    a = make_parser().parse_args()
    if a.record is not None and a.record.suffix != ".json":
        raise BildError(f"--record must end in .json, got {str(a.record)!r}")
    config = AgreementConfig(**read_fields(a, *NAMES))
    data = load_file(a.data_file, a.source_key, a.target_key, "test")
    check_writable(a.output_dir)
    check_record(a.record, config)

    # Only now: these import torch and transformers, which takes seconds.
    from bild.pictures import save
    from bild.show.reliability import draw_reliability
    from bild.show.tables import agreement_table
    from bild.training.agreement import measure

    quiet_loading()

    def report(record: AgreementRecord) -> None:
        for path in (a.output_dir / "agreement.json", a.record):
            if path is not None:
                record.save(path)
                save(draw_reliability(record.results), path.with_suffix(".svg"), "Reliability")
        tell(a, record, a.output_dir / "agreement.json", agreement_table(record))

    where = {"folder": a.output_dir, "tokenizer": a.tokenizer}
    measure(a.large, a.small, data, config, **where, progress=not is_silent(a), report=report)

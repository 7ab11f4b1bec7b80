"""Measure how often small models agree with the large one, and whether their confidence tells.

    python scripts/measure_agreement.py --large demo/large --small demo/small out/small-aligned \\
        --data-file test.jsonl --record results/agreement.json

On held-out text, position by position, on the references' prefixes and on those of the large
model's own greedy outputs: the share of positions where the most likely tokens are the same, and of
each bin of the small model's probability the share that agrees. Writes the record and, beside it, a
reliability diagram (.svg).
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from bild.cli import Parser, add_data_keys, quiet_loading, run
from bild.errors import BildError
from bild.files import check_file, write_json
from bild.flags import add_fields, read_fields
from bild.tasks.data import load_file
from bild.training.config import AgreementConfig


def main() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--large", required=True, help="folder or hub id of the large model")
    add("--small", required=True, nargs="+", help="folders or hub ids of small models")
    add("--tokenizer", help="folder or hub id (default: the large model's)")
    add("--data-file", type=Path, required=True, metavar="FILE", help="held-out JSON Lines (.gz)")
    add("--record", type=Path, required=True, metavar="FILE", help="the .json to write")
    add_data_keys(parser)
    names = [field.name for field in fields(AgreementConfig)]
    add_fields(parser, AgreementConfig, *names)
    a = parser.parse_args()
    if a.record.suffix != ".json":
        raise BildError(f"--record must end in .json, got {str(a.record)!r}")
    config = AgreementConfig(**read_fields(a, *names))
    data = load_file(a.data_file, a.source_key, a.target_key, "test")
    check_file(a.record, "--record")

    from bild.show.tables import agreement_table
    from bild.training.agreement import measure
    from bild.training.curves import reliability_diagram

    quiet_loading()
    record = measure(a.large, a.small, data, config, tokenizer=a.tokenizer)
    write_json(a.record, record)
    reliability_diagram(record["results"], a.record.with_suffix(".svg"))
    print(agreement_table(record))


if __name__ == "__main__":
    run(main)

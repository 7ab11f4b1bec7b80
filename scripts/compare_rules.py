"""Compare rules for drafting and accepting on one pair: quality against seconds.

    python scripts/compare_rules.py demo
    python scripts/compare_rules.py demo drafter --threads 1 --repeat 2 --record out/rules.json
    python scripts/compare_rules.py demo --rules exact lenient:share=0.2 --draftings adaptive
    python scripts/compare_rules.py demo --rules bild:threshold=1 bild:threshold=2 --draftings

Every acceptance rule decodes with the pair's own fallback threshold, every way of drafting with the
exact rule, where the text is the large model's and only speed can differ. All arms decode each
example one after the other in a random order. What the rules are: docs/rules.md.
"""

from __future__ import annotations

from bild.cli import (
    add_run_options,
    add_task,
    add_thresholds,
    chosen_thresholds,
    is_silent,
    quiet_loading,
    rule_options,
    run,
    run_options,
    tell,
)
from bild.config import BiLDConfig, EvalConfig
from bild.evaluation.record import check_record
from bild.files import check_writable
from bild.flags import add_fields, read_fields
from bild.parser import Parser
from bild.processes import require_alone
from bild.tasks.registry import MODES
from bild.tasks.sources import locate


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    add_task(parser, MODES[1:])
    rules = {"nargs": "*", "metavar": "RULE"}
    parser.add_argument("--rules", help="acceptance rules (default: a choice of each)", **rules)
    parser.add_argument("--draftings", help="ways to draft (default: a choice of each)", **rules)
    add_thresholds(parser)
    add_run_options(parser)
    add_fields(parser, EvalConfig, "repeat")
    return parser


def main() -> None:
    a = make_parser().parse_args()
    require_alone()
    thresholds = chosen_thresholds(a.task, a.mode, a.fallback, a.rollback)
    base = BiLDConfig(**thresholds, **rule_options(a))
    config = EvalConfig(bild=base, **run_options(a), **read_fields(a, "repeat"))
    check_writable(a.output_dir / config.task)
    check_record(a.record, config)
    sources = locate(config)

    # Only now: these import torch and transformers, which takes seconds.
    from bild.evaluation.run import prepare
    from bild.show.rules import rules_table
    from bild.tuning import rules

    acceptance = rules.ACCEPTANCE if a.rules is None else a.rules
    drafting = rules.DRAFTING if a.draftings is None else a.draftings
    settings = rules.rule_settings(base, acceptance, drafting)
    quiet_loading()
    work = prepare(config, sources)
    record, path = rules.compare_rules(work, settings, a.output_dir, progress=not is_silent(a))
    if a.record is not None:
        record.save(a.record)
    tell(a, record, path, rules_table(record))


if __name__ == "__main__":
    run(main, resumes=True)

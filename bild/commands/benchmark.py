"""Benchmark every engine a user could pick, side by side: ours, transformers' and CTranslate2.

    bild benchmark
    bild benchmark --samples 50 --arms greedy,ctranslate2,bild-compiled \\
        --precisions float32,int8 --repeat 3
    bild benchmark --pair t5-large/t5-small --rates cnndm --mode aligned \\
        --precisions bfloat16,int8
    bild benchmark --pair mt5-large/mt5-small --rates iwslt2017 --lengths 32,128,512 \\
        --arms bild-compiled --samples 3
    bild benchmark --samples 64 --batch-sizes 1,2,4,8,16,32 --repeat 3 \\
        --arms greedy,ctranslate2,vanilla-compiled,bild-compiled

Without --pair it decodes a task's data with a real pair. With it, with models of the published
sizes that have random weights and planted outputs, so that fallbacks and rollbacks happen at the
recorded rates: simulated acceptance. Arms are kinds, which run in each precision they may have, or
full names such as bild-compiled@int8. CTranslate2 needs pip install -e '.[bench]'; the models it
converts stay in out/benchmark/ctranslate2. The arm static-compile takes minutes to compile.

Results go to out/benchmark/<time>/run.json and samples.jsonl; a run that was stopped goes on when
started again.
"""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bild.benchmark.config import OF_TASKS, BenchmarkConfig
from bild.cli import (
    DATA_OPTIONS,
    MODEL_OPTIONS,
    add_model_options,
    add_record_options,
    add_task_file,
    chosen_variant,
    quiet_loading,
    tell,
)
from bild.config import BiLDConfig, EvalConfig
from bild.errors import BildError
from bild.evaluation.record import check_record
from bild.files import check_writable
from bild.flags import add_fields, read_fields
from bild.parser import Parser
from bild.processes import require_alone
from bild.tasks.registry import MODES, Thresholds, get, task_names

if TYPE_CHECKING:
    from bild.benchmark.record import BenchmarkRecord
    from bild.evaluation.loop import Sample

KEYS_AND_METRIC = (
    "source_key", "target_key", "prefix", "metric", "bleu_tokenize", "max_source_tokens",
)  # fmt: skip
OWN_OPTIONS = ("samples", "source_tokens", "lengths", "batch_sizes", "threads", "repeat")
SAME = (
    *OWN_OPTIONS,
    *DATA_OPTIONS,
    *KEYS_AND_METRIC,
    *(name for name in MODEL_OPTIONS if name != "small"),
)


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in _list(text))
    except ValueError:
        raise ArgumentTypeError(f"expected whole numbers as in 32,128, got {text!r}") from None


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--arms", type=_list, metavar="A,B", help="kinds or full names (default: all kinds)")
    add("--precisions", type=_list, default=("float32",), metavar="P,Q", help="default: float32")
    add("--pair", help="planted models: t5-large/t5-small or mt5-large/mt5-small")
    add("--rates", metavar="TASK", help="of a planted pair (default: cnndm)")
    add("--mode", default="unaligned", choices=MODES[1:], help="thresholds or rates of this mode")
    add("--task", choices=task_names(), help="of a real pair (default: demo)")
    add_task_file(parser, refused=("forced_bos",))  # CTranslate2's arms would not heed it
    add("--fallback", type=float, help="threshold (default: the first published or recorded one)")
    add("--rollback", type=float, help="threshold (default: as --fallback)")
    guesses = {"default": "auto", "help": "how often the arms with guesses go on behind one in a "
               "row: a whole number or auto"}  # fmt: skip
    add_fields(parser, BiLDConfig, "start", "lookahead", lookahead=guesses)
    add_fields(parser, BenchmarkConfig, "guess_share", guess_share={"default": None})
    numbers = {"type": _numbers, "nargs": None, "metavar": "N,M"}
    own: dict[str, Any] = {"samples": {"default": 8}, "lengths": numbers, "batch_sizes": numbers}
    add_fields(parser, BenchmarkConfig, *OWN_OPTIONS, **own)
    add_model_options(parser)
    add_fields(parser, EvalConfig, *KEYS_AND_METRIC)
    add_record_options(parser)
    return parser


def parse() -> Namespace:
    a = make_parser().parse_args()
    real = {n: getattr(a, n) for n in ("large", "small", "tokenizer", "task", *OF_TASKS)}
    planted = {"rates": a.rates, "source_tokens": a.source_tokens, "guess_share": a.guess_share}
    for name, value in (planted if a.pair is None else real).items():
        if value is not None:
            flag = "--" + name.replace("_", "-")
            other = "needs --pair" if a.pair is None else "does not go with --pair"
            raise BildError(f"{flag} {value} {other}")
    if (a.fallback is None) != (a.rollback is None):
        raise BildError("give both --fallback and --rollback, or neither")
    return a


def main() -> None:
    a = parse()
    require_alone()
    check_writable(a.output_dir)
    check_record(a.record)

    # Only now: these import torch and transformers, which takes seconds.
    from bild.benchmark.kinds import KINDS, parse_arms
    from bild.benchmark.plan import recorded_rates, thresholds_of
    from bild.benchmark.run import run_benchmark
    from bild.show.speed_tables import benchmark_text, heading

    thresholds = None if a.fallback is None else Thresholds(a.fallback, a.rollback)
    rates, small = None, a.small
    if a.pair is None:
        task = "demo" if a.task is None else a.task
        if thresholds is None:
            thresholds = get(task).default_thresholds(a.mode)
        if small is None:
            small = get(task).small_model(a.mode)
    else:
        task = "cnndm" if a.rates is None else a.rates
        rates = recorded_rates(task, a.mode, thresholds)
        thresholds = thresholds_of(rates)
    assert thresholds is not None  # every mode here has a small model
    config = BenchmarkConfig(
        arms=parse_arms(KINDS if a.arms is None else a.arms, a.precisions),
        bild=BiLDConfig(
            thresholds.fallback,
            thresholds.rollback,
            variant=chosen_variant(a.variant, task),
            start=a.start,
            lookahead=a.lookahead,
        ),
        task=task,
        small=small,
        planted=a.pair,
        rates=rates,
        guess_share=0.5 if a.guess_share is None else a.guess_share,
        **read_fields(a, *SAME),
    )
    check_record(a.record, config)
    quiet_loading()

    def report(record: BenchmarkRecord, samples: Sequence[Sample], path: Path) -> None:
        if a.record is not None:
            record.save(a.record)
        tell(a, record, path, f"{heading(record)}\n\n{benchmark_text(record)}")

    run_benchmark(config, a.output_dir, report=report)

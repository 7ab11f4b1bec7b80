"""Evaluate one task: the large model alone, the pair under BiLD, and the small model alone.

    python scripts/run_eval.py demo
    python scripts/run_eval.py iwslt2017 aligned 0.9 3 888 --device cuda
    python scripts/run_eval.py xsum vanilla --max-eval-samples 100
    python scripts/run_eval.py demo unaligned --large my/large --small my/small --data-file my.jsonl

The launchers run_<task>.sh call this with the task filled in. Models and data come from
BILD_MODELS_ROOT and BILD_DATA_ROOT if set, else from the hub. Results go to
out/<task>/<time>/run.json and samples.jsonl; a run that was stopped goes on when started again.
"""

from __future__ import annotations

from pathlib import Path

from bild.benchmarks import BENCHMARKS, MODES, get
from bild.cli import Parser, add_engine_options, engine_options, quiet_loading, run
from bild.config import DTYPES, BiLDConfig, EvalConfig
from bild.errors import BildError
from bild.files import check_writable
from bild.sources import locate


def parse() -> tuple[EvalConfig, Path, Path | None]:
    defaults = BiLDConfig()
    parser = Parser(__doc__)
    add = parser.add_argument
    add("task", choices=BENCHMARKS)
    add("mode", nargs="?", default="unaligned", choices=MODES)
    add("fallback", nargs="?", type=float, help="fallback threshold (default: the published one)")
    add("rollback", nargs="?", type=float, help="rollback threshold (default: the published one)")
    add("max_eval_samples", nargs="?", type=int, help="the first so many examples (default: all)")
    add("--max-eval-samples", dest="max_samples", type=int, metavar="N", help="the same, by name")
    add("--variant", default=defaults.variant, help="authors, paper or verified")
    add("--start", default=defaults.start, help="who writes the first token: large or small")
    add(
        "--num-small-iters",
        type=float,
        default=defaults.num_small_iters,
        metavar="N",
        help="tokens the small model may write in a row (default: 10; inf for no limit)",
    )
    add("--large", help="folder or hub id of the large model")
    add("--small", help="folder or hub id of the small model")
    add("--tokenizer", help="folder or hub id of the tokenizer")
    add("--data-file", help="JSON Lines (.gz) with the task's keys")
    add("--max-source-tokens", type=int, metavar="N")
    add("--max-new-tokens", type=int, metavar="N")
    add("--dtype", default="float32", help=", ".join(DTYPES))
    add("--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    add_engine_options(parser)
    add("--no-small-alone", action="store_true", help="leave out the small model alone")
    add("--warmup", type=int, default=2, metavar="N", help="untimed examples (default: 2)")
    add("--seed", type=int, default=0)
    add("--output-dir", type=Path, default=Path("out"))
    add("--record", type=Path, metavar="FILE", help="also write the record here")
    a = parser.parse_args()  # fmt: skip

    preset = get(a.task).default_thresholds(a.mode)
    fallback = defaults.fallback_threshold if preset is None else preset.fallback
    rollback = defaults.rollback_threshold if preset is None else preset.rollback
    bild = BiLDConfig(  # also where the mode is vanilla, for its checks
        fallback_threshold=fallback if a.fallback is None else a.fallback,
        rollback_threshold=rollback if a.rollback is None else a.rollback,
        num_small_iters=a.num_small_iters,
        variant=a.variant,
        start=a.start,
    )
    if a.max_samples is not None and a.max_eval_samples not in (None, a.max_samples):
        raise BildError(
            f"two numbers of samples were given, {a.max_eval_samples} and {a.max_samples}; keep one"
        )
    return (
        EvalConfig(
            task=a.task,
            mode=a.mode,
            bild=None if preset is None else bild,
            max_samples=a.max_eval_samples if a.max_samples is None else a.max_samples,
            large=a.large,
            small=a.small,
            tokenizer=a.tokenizer,
            data_file=a.data_file,
            max_source_tokens=a.max_source_tokens,
            max_new_tokens=a.max_new_tokens,
            dtype=a.dtype,
            device=a.device,
            **engine_options(a),
            small_alone=not a.no_small_alone,
            warmup=a.warmup,
            seed=a.seed,
        ),
        a.output_dir,
        a.record,
    )


def main() -> None:
    config, output_dir, copy = parse()
    check_writable(output_dir / config.task)
    if copy is not None:
        check_writable(copy.parent)
        if copy.is_dir():
            raise BildError(f"--record {str(copy)!r} is a folder; name a file")
    sources = locate(config)

    # Only now: these import torch and transformers, which takes seconds.
    from bild.evaluation import evaluate, read_samples
    from bild.tables import examples_text, published_table, run_table

    quiet_loading()
    record, path = evaluate(config, output_dir, sources=sources)
    if copy is not None:
        record.save(copy)
    samples = read_samples(path.with_name("samples.jsonl"))
    print(f"\n{examples_text(samples, count=3)}")
    print(f"\n{config.task}, {config.mode}", end="")
    if config.bild is not None:
        bild = config.bild
        print(
            f", fallback {bild.fallback_threshold:g}, rollback {bild.rollback_threshold:g}, "
            f"{bild.variant} rules",
            end="",
        )
    print(f", {record.data['samples']} examples, {record.env['dtype']}, {record.env['device']}\n")
    print(run_table(record))
    published = published_table(config.task, config.mode)
    if published:
        print(f"\n{published}")
    print(f"\n{path}")


if __name__ == "__main__":
    run(main)

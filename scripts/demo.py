"""The shipped pair at work: who wrote which word of three sentences, then one table and its sense.

    make demo                                 # sets up .venv and calls this
    python scripts/demo.py --samples 30
    python scripts/demo.py --threads 2 --repeat 3 --seed 1

Three of the shipped sentences, drawn by --seed, are translated by the large model alone and by the
pair; the writer of each word is shown in colour, or in brackets where there are no colours (a pipe,
NO_COLOR). Then the first --samples sentences are timed under four arms of scripts/benchmark.py: the
large model by transformers, the large one, the small one and the pair on the engine of this
package. It works offline, in about a minute on two cores. One thread is the default: the models are
too small to share, and threads that wait for each other make a busy machine many times slower.

Results go to out/benchmark/<time>/; a run that was stopped goes on when started again.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from bild.benchmark.config import BenchmarkConfig
from bild.cli import quiet_loading, run
from bild.config import EvalConfig
from bild.evaluation.record import check_record
from bild.files import check_writable
from bild.flags import add_fields, read_fields
from bild.parser import Parser
from bild.show.front import (
    BEST,
    FrontRecord,
    Shown,
    drawn,
    examples_text,
    figures_text,
    front_config,
    shown,
)
from bild.tasks.sources import locate

if TYPE_CHECKING:
    from bild.benchmark.record import BenchmarkRecord

OPTIONS = ("samples", "threads", "repeat", "seed")


def main() -> None:
    parser = Parser(__doc__)
    add_fields(parser, BenchmarkConfig, *OPTIONS, samples={"default": 100}, threads={"default": 1})
    add = parser.add_argument
    add("--output-dir", type=Path, default=Path("out"), help="where results go")
    add("--record", type=Path, metavar="FILE", help="also write the record here")
    a = parser.parse_args()
    check_writable(a.output_dir)
    check_record(a.record)

    asked = read_fields(a, *OPTIONS)
    config = front_config(BEST, compiled=True, **asked)

    # Only now: these import torch and transformers, which takes seconds.
    from bild.benchmark.run import run_benchmark
    from bild.show.race import Racer

    quiet_loading()
    pair = EvalConfig(
        "demo", BEST.mode, config.bild, max_samples=a.samples, small=config.small,
        threads=a.threads, precision=BEST.precision,
    )  # fmt: skip
    examples = locate(pair).data.examples
    racer = Racer.load(pair)
    if not racer.pair.engine.compiled:
        config = front_config(BEST, compiled=False, **asked)
    check_record(a.record, config)
    console = Console()
    columns = shutil.get_terminal_size((100, 24)).columns
    colour = console.is_terminal and not console.no_color
    print(f"Large and small model of demo/, engine {racer.pair.engine}\n", flush=True)
    sentences = []
    for place in drawn(len(examples), a.seed):
        *_, race = racer.run(examples[place].source, config.bild)
        special = frozenset(racer.tokenizer.all_special_ids)
        sentences.append(shown(race, examples[place].target, special))
    console.print(examples_text(sentences, columns, colour=colour), soft_wrap=True)
    print(f"\nTiming {len(examples)} sentences in four ways ...", flush=True)
    report = _report(a.record, sentences, columns)
    run_benchmark(config, a.output_dir, report=report, progress=sys.stderr.isatty())


def _report(
    copy: Path | None, sentences: Sequence[Shown], columns: int
) -> Callable[[BenchmarkRecord, object, Path], None]:
    """What shows the finished benchmark, and writes it with the sentences where it was asked to."""

    def report(record: BenchmarkRecord, _: object, path: Path) -> None:
        front = FrontRecord.of(record, sentences)
        if copy is not None:
            front.save(copy)
        print(f"\n{figures_text(front, columns)}\n\n{path}")

    return report


if __name__ == "__main__":
    run(main, resumes=True)

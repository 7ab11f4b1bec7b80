"""What the scripts share: one sentence and exit code 2 for a user's mistake, no stack trace."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from bild.benchmarks import BENCHMARKS
from bild.config import DTYPES, BiLDConfig
from bild.errors import BildError
from bild.files import check_writable


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose description is the script's docstring, shown as it stands."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see --help)\n")


def add_task(parser: argparse.ArgumentParser, modes: tuple[str, ...]) -> None:
    """The first two arguments of every script that decodes: a task and a mode."""
    parser.add_argument("task", choices=BENCHMARKS)
    parser.add_argument("mode", nargs="?", default="unaligned", choices=modes)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The flags that say which pair decodes which examples, and how; read by `run_options`."""
    defaults = BiLDConfig()
    add = parser.add_argument
    add(
        "--max-eval-samples",
        dest="max_samples",
        type=int,
        metavar="N",
        help="the first so many examples (default: all)",
    )
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
    add("--warmup", type=int, default=2, metavar="N", help="untimed examples (default: 2)")
    add("--seed", type=int, default=0)
    add("--output-dir", type=Path, default=Path("out"))
    add("--record", type=Path, metavar="FILE", help="also write the record here")


def run_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The `EvalConfig` fields that the flags of `add_run_options` set, without thresholds."""
    names = (
        "task", "mode", "max_samples", "large", "small", "tokenizer", "data_file",
        "max_source_tokens", "max_new_tokens", "dtype", "device", "warmup", "seed",
    )  # fmt: skip
    return {name: getattr(arguments, name) for name in names}


def rule_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The `BiLDConfig` fields that the flags of `add_run_options` set: all but the thresholds."""
    return {name: getattr(arguments, name) for name in ("num_small_iters", "variant", "start")}


def check_record(path: Path | None) -> None:
    """Refuse, before any work is done, a `--record` that cannot be written."""
    if path is not None:
        check_writable(path.parent)
        if path.is_dir():
            raise BildError(f"--record {str(path)!r} is a folder; name a file")


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`: mistakes of the user end with one sentence and exit code 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        main()
    except BildError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def quiet_loading() -> None:
    """No progress bar for the loading of weights; downloads keep theirs."""
    import transformers
    from huggingface_hub.utils.tqdm import enable_progress_bars

    transformers.utils.logging.disable_progress_bar()
    enable_progress_bars()

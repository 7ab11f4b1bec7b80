"""What the scripts share: one sentence and exit code 2 for a user's mistake, no stack trace."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bild.benchmarks import BENCHMARKS, MODES, get
from bild.config import DTYPES, BiLDConfig, EvalConfig
from bild.errors import BildError
from bild.files import check_writable

if TYPE_CHECKING:
    from bild.training import TrainingJob


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose description is the script's docstring, shown as it stands."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see --help)\n")


def add_pair_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that choose a pair and its thresholds, for `pair_config`; by default the shipped."""
    defaults = BiLDConfig()
    add = parser.add_argument
    add("--task", default="demo", choices=BENCHMARKS, help="whose pair, prefix and limits to take")
    add("--mode", default="unaligned", choices=MODES[1:], help="which of its small models")
    add("--large", help="folder or hub id of another large model")
    add("--small", help="folder or hub id of another small model")
    add("--tokenizer", help="folder or hub id of another tokenizer")
    add("--fallback", type=float, help="fallback threshold (default: the task's)")
    add("--rollback", type=float, help="rollback threshold (default: the task's)")
    add("--variant", default=defaults.variant, help="authors, paper or verified")
    add("--start", default=defaults.start, help="who writes the first token: large or small")
    add(
        "--num-small-iters",
        type=float,
        default=defaults.num_small_iters,
        metavar="N",
        help="tokens the small model may write in a row (default: 10; inf for no limit)",
    )
    add("--max-source-tokens", type=int, metavar="N")
    add("--max-new-tokens", type=int, metavar="N")
    add("--dtype", default="float32", help=", ".join(DTYPES))
    add("--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    add_engine_options(parser)


def pair_config(a: argparse.Namespace) -> tuple[EvalConfig, BiLDConfig]:
    """The settings that `add_pair_flags` has read, checked."""
    preset = get(a.task).default_thresholds(a.mode)
    assert preset is not None
    bild = BiLDConfig(
        fallback_threshold=preset.fallback if a.fallback is None else a.fallback,
        rollback_threshold=preset.rollback if a.rollback is None else a.rollback,
        num_small_iters=a.num_small_iters,
        variant=a.variant,
        start=a.start,
    )
    config = EvalConfig(
        task=a.task,
        mode=a.mode,
        bild=bild,
        large=a.large,
        small=a.small,
        tokenizer=a.tokenizer,
        max_source_tokens=a.max_source_tokens,
        max_new_tokens=a.max_new_tokens,
        dtype=a.dtype,
        device=a.device,
        **engine_options(a),
    )
    return config, bild


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """The flags that say which code runs the models; read by `engine_options`."""
    add = parser.add_argument
    add("--engine", default="auto", help="auto, fast or transformers (default: fast where it can)")
    add("--precision", help="float32, bfloat16 or int8 weights in the fast engine")
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="fast engine in machine code (default: where there is a C++ compiler)",
    )


def engine_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the flags of `add_engine_options` set, by the names of `BiLDModel`'s arguments."""
    return {name: getattr(arguments, name) for name in ("engine", "precision", "compile")}


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


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every script that trains; `training_job` reads them."""
    from bild.metrics import METRICS
    from bild.training import PRESETS

    add = parser.add_argument
    add(
        "preset",
        choices=PRESETS,
        help="; ".join(f"{n}: {p.description}" for n, p in PRESETS.items()),
    )
    add("--train-file", type=Path, required=True)
    add("--validation-file", type=Path, required=True)
    add("--output-dir", type=Path, required=True)
    add("--init-from", help="checkpoint to start from: a folder or a hub id")
    add("--tokenizer", help="folder or hub id (default: the checkpoint's)")
    add("--source-key", default="de")
    add("--target-key", default="en")
    add("--prefix", default="", help='put before every source, as "summarize: "')
    add("--max-steps", type=int, metavar="N", help="optimizer steps (default: the preset's)")
    add("--max-length", type=int, default=128, metavar="N", help="tokens a side (default: 128)")
    add(
        "--max-source-length",
        type=int,
        metavar="N",
        help="tokens of a source (default: --max-length)",
    )
    add("--save-steps", type=int, default=250, metavar="N", help="between checkpoints")
    add(
        "--best-by",
        choices=("last", *METRICS),
        help="keep the checkpoint with the best validation score, or the last (default: the "
        "preset's)",
    )
    add(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        help="autocast to bfloat16 (default: where it is faster)",
    )
    add("--save-dtype", default="float16", choices=DTYPES, help="of the finished weights")
    add("--seed", type=int, default=0)


def training_job(a: argparse.Namespace) -> TrainingJob:
    """The training that was asked for.

    Raises:
        BildError: a value, file or folder that cannot be used.
    """
    import torch

    from bild.data import load_file
    from bild.training import PRESETS, TrainingJob

    tokenizer = a.init_from if a.tokenizer is None else a.tokenizer
    if tokenizer is None:
        raise BildError("a model from nothing needs a tokenizer: name one with --tokenizer")
    preset = PRESETS[a.preset]
    if a.max_steps is not None:
        preset = preset.for_steps(a.max_steps)
    if a.best_by is not None:
        preset = replace(preset, best_by=None if a.best_by == "last" else a.best_by)
    job = TrainingJob(
        preset,
        load_file(a.train_file, a.source_key, a.target_key, "train"),
        load_file(a.validation_file, a.source_key, a.target_key, "validation"),
        tokenizer,
        a.output_dir,
        init_from=a.init_from,
        prefix=a.prefix,
        max_length=a.max_length,
        max_source_length=a.max_source_length,
        save_steps=a.save_steps,
        save_dtype=getattr(torch, a.save_dtype),
        bf16=a.bf16,
        seed=a.seed,
    )
    check_writable(a.output_dir)
    return job


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print the plain values of a result, one a line; the first process alone."""
    if os.environ.get("RANK", "0") == "0":
        for name, value in facts.items():
            if not isinstance(value, dict):
                print(f"{name}: {value}")

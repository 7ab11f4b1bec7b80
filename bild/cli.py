"""What the scripts share: one sentence and exit code 2 for a user's mistake, no stack trace."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bild.config import DTYPES, BiLDConfig, EvalConfig
from bild.errors import BildError
from bild.files import check_writable
from bild.policy import RULES
from bild.tasks.registry import MODES, TASKS, get

if TYPE_CHECKING:
    from bild.training.config import TrainingJob


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose description is the script's docstring, shown as it stands."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see --help)\n")


def add_task(parser: argparse.ArgumentParser, modes: tuple[str, ...]) -> None:
    """The first two arguments of every script that decodes a data set: a task and a mode."""
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("mode", nargs="?", default="unaligned", choices=modes)


def add_run_options(parser: argparse.ArgumentParser, *, several_small: bool = False) -> None:
    """The flags that say which pair decodes which examples, and how; read by `run_options`.

    Args:
        several_small: --small takes several models, label=model, which `small_models` reads.
    """
    add = parser.add_argument
    add(
        "--max-eval-samples",
        dest="max_samples",
        type=int,
        metavar="N",
        help="the first so many examples (default: all)",
    )
    add("--threads", type=int, metavar="N", help="of the CPU (default: as torch chooses)")
    _add_pair_options(parser, several_small)
    add_record_options(parser)


def add_record_options(parser: argparse.ArgumentParser) -> None:
    """The flags of every script that times a data set: what is decoded, and where results go."""
    add = parser.add_argument
    add("--data-file", help="JSON Lines (.gz) with the task's keys")
    add("--warmup", type=int, default=2, metavar="N", help="untimed examples (default: 2)")
    add("--seed", type=int, default=0)
    add("--output-dir", type=Path, default=Path("out"))
    add("--record", type=Path, metavar="FILE", help="also write the record here")


def run_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The `EvalConfig` fields that the flags of `add_run_options` set, without thresholds."""
    names = ("task", "mode", "max_samples", "data_file", "warmup", "threads", "seed")
    return {**{name: getattr(arguments, name) for name in names}, **_pair_options(arguments)}


def rule_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The `BiLDConfig` fields that the flags set: all but the thresholds."""
    options = {name: getattr(arguments, name) for name in ("num_small_iters", "start")}
    return {**options, "variant": chosen_variant(arguments.variant, arguments.task)}


def chosen_variant(given: str | None, task: str) -> str:
    """The rules that --variant names; without it the task's own."""
    return get(task).variant if given is None else given


def add_pair_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that choose a pair and its thresholds, for `pair_config`; by default the shipped."""
    add = parser.add_argument
    add("--task", default="demo", choices=TASKS, help="whose pair, prefix and limits to take")
    add("--mode", default="unaligned", choices=MODES[1:], help="which of its small models")
    add("--fallback", type=float, help="fallback threshold (default: the task's)")
    add("--rollback", type=float, help="rollback threshold (default: the task's)")
    _add_pair_options(parser)


def pair_config(a: argparse.Namespace) -> tuple[EvalConfig, BiLDConfig]:
    """The settings that `add_pair_flags` has read, checked."""
    preset = get(a.task).default_thresholds(a.mode)
    assert preset is not None
    bild = BiLDConfig(
        fallback_threshold=preset.fallback if a.fallback is None else a.fallback,
        rollback_threshold=preset.rollback if a.rollback is None else a.rollback,
        **rule_options(a),
    )
    return EvalConfig(task=a.task, mode=a.mode, bild=bild, **_pair_options(a)), bild


PAIR_OPTIONS = (
    "large", "small", "tokenizer", "max_source_tokens", "max_new_tokens", "dtype", "device",
    "engine", "precision", "compile",
)  # fmt: skip


def add_model_options(parser: argparse.ArgumentParser, several_small: bool = False) -> None:
    """The flags of every script that decodes with a pair: its models, rules and device."""
    add = parser.add_argument
    add("--variant", help=f"rules: {', '.join(RULES)} (default: the task's)")
    add("--large", help="folder or hub id of the large model")
    if several_small:
        add(
            "--small",
            nargs="+",
            required=True,
            metavar="LABEL=MODEL",
            help="small models, each a folder or hub id with a name for it",
        )
    else:
        add("--small", help="folder or hub id of the small model")
    add("--tokenizer", help="folder or hub id of the tokenizer")
    add("--max-new-tokens", type=int, metavar="N", help="longest output (default: the task's)")
    add("--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU if there is one)")


def _add_pair_options(parser: argparse.ArgumentParser, several_small: bool = False) -> None:
    defaults = BiLDConfig()
    add_model_options(parser, several_small)
    add = parser.add_argument
    add("--start", default=defaults.start, help="who writes the first token: large or small")
    add(
        "--num-small-iters",
        type=float,
        default=defaults.num_small_iters,
        metavar="N",
        help="tokens the small model may write in a row (default: 10; inf for no limit)",
    )
    add("--max-source-tokens", type=int, metavar="N", help="longest source (default: the task's)")
    add("--dtype", default="float32", help=", ".join(DTYPES))
    add("--engine", default="auto", help="auto, fast or transformers (default: fast where it can)")
    add("--precision", help="float32, bfloat16 or int8 weights in the fast engine")
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="fast engine in machine code (default: where there is a C++ compiler)",
    )


def small_models(given: Sequence[str]) -> dict[str, str]:
    """The models of --small by label, in their order.

    Raises:
        BildError: one that is not label=model, or a label given twice.
    """
    models: dict[str, str] = {}
    for text in given:
        label, equals, model = text.partition("=")
        if not (equals and model and re.fullmatch(r"[\w.-]+", label)):
            raise BildError(f"--small must be label=model, as aligned=my/aligned, got {text!r}")
        if label in models:
            raise BildError(f"--small has the label {label!r} twice; give each model its own")
        models[label] = model
    return models


def _pair_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in PAIR_OPTIONS}


def run(main: Callable[[], None], *, resumes: bool = False) -> None:
    """Run a script's `main`: mistakes of the user end with one sentence and exit code 2.

    Args:
        main: the script.
        resumes: whether the same command, given again after it was interrupted, goes on where it
            stopped; only then is that said.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        main()
    except BildError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        more = "; the same command goes on from here" if resumes else ""
        print(f"\nstopped{more}", file=sys.stderr)
        sys.exit(130)


def quiet_loading() -> None:
    """No progress bar for the loading of weights; downloads keep theirs."""
    import transformers
    from huggingface_hub.utils.tqdm import enable_progress_bars

    transformers.utils.logging.disable_progress_bar()
    enable_progress_bars()


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every script that trains; `training_job` reads them."""
    from bild.tasks.metrics import METRICS
    from bild.training.presets import PRESETS

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
    from bild.tasks.data import load_file
    from bild.training.config import TrainingJob
    from bild.training.presets import PRESETS

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
        save_dtype=a.save_dtype,
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

"""What the commands share: one sentence and exit code 2 for a user's mistake, no stack trace."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bild import stopping

stopping.listen()  # before anything else is imported, which takes its time

# ruff: noqa: E402
from bild.config import BiLDConfig, EvalConfig
from bild.errors import BildError, is_no_room
from bild.files import as_json
from bild.flags import add_fields, device_name, read_fields
from bild.imports import why_not_imported
from bild.parser import Parser, TaskFiles, add_allow_pickle
from bild.policy import RULES
from bild.shortage import advice, is_out_of_memory
from bild.tasks.registry import MODES, OWN, Thresholds, get, task_names
from bild.visible import sentence, show_any_text

if TYPE_CHECKING:
    from bild.evaluation.record import Record

# What the machine refuses, not the program: no right, a folder or disk that is gone or broken.
ENVIRONMENT = (
    errno.ENOENT, errno.ENOTDIR, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
    errno.EMFILE, errno.ENFILE, errno.EFBIG, errno.ENODEV, errno.ENXIO,
    errno.ESTALE, errno.ENOTCONN,
)  # fmt: skip

TASK_OPTIONS = ("task", "mode")
RUN_OPTIONS = (
    "max_samples", "data_revision", "threads", "source_key", "target_key", "metric",
    "bleu_tokenize",
)  # fmt: skip
MODEL_OPTIONS = ("large", "small", "tokenizer", "max_new_tokens", "device")
ENGINE_OPTIONS = ("dtype", "engine", "precision", "small_precision", "compile")
PAIR_OPTIONS = (*MODEL_OPTIONS, "prefix", "forced_bos", "max_source_tokens", *ENGINE_OPTIONS)
DATA_OPTIONS = ("data_file", "target_file", "warmup", "seed")
RULE_OPTIONS = ("num_small_iters", "start", "lookahead", "acceptance", "drafting", "copying")
RULE_FLAGS = {"acceptance": "--rule"}  # of fields whose flag has another name


# What a file of --task-file may say besides the task's name, in the words of the flags.
FILES_OF_TASKS = ("data_file", "target_file", "large", "small", "tokenizer")
SAID_OF_TASKS = (
    *FILES_OF_TASKS, "source_key", "target_key", "prefix", "metric", "bleu_tokenize", "forced_bos",
    "max_source_tokens", "max_new_tokens", "variant", "fallback", "rollback",
)  # fmt: skip


def add_task(parser: Parser, modes: tuple[str, ...], *, skipped: tuple[str, ...] = ()) -> None:
    """The first arguments of every script that decodes a data set: a task and a mode.

    Args:
        parser: gets them.
        modes: with one alone, no mode is asked for.
        skipped: of `SAID_OF_TASKS`, what means something else in this script.
    """
    add = parser.add_argument
    add("task", choices=task_names(), help="whose data, models and limits to take")
    add_task_file(parser, skipped)
    if len(modes) == 1:
        parser.set_defaults(mode=modes[0])
        return
    add("mode", nargs="?", default="unaligned", choices=modes, help="which small model")


def add_task_file(
    parser: Parser, skipped: tuple[str, ...] = (), refused: tuple[str, ...] = ()
) -> None:
    """--task-file, which stands for a task; arguments as of `add_task`, and `refused` settings."""
    parser.add_argument(
        "--task-file",
        type=Path,
        metavar="FILE",
        help="YAML that describes a task of yours (docs/own-data.md), instead of a task's name",
    )
    keys = tuple(key for key in SAID_OF_TASKS if key not in refused)
    parser.task_files = TaskFiles(OWN.name, keys, FILES_OF_TASKS, skipped, place_of)


def place_of(folder: Path, key: str, text: str) -> str:
    """A path in a task's file as it is seen from here.

    Data lie beside the file, or where an absolute path says; so may models, and a name that is no
    folder there is a hub id.
    """
    beside = folder / Path(text).expanduser()
    is_data = key.replace("-", "_").endswith("file")
    return str(beside) if is_data or beside.is_dir() else text


def add_run_options(parser: argparse.ArgumentParser, *, several_small: bool = False) -> None:
    """The flags that say which pair decodes which examples, and how; read by `run_options`.

    Args:
        several_small: --small takes several models, label=model, which `named_models` reads.
    """
    limit = {"flag": "--max-eval-samples"}
    add_fields(parser, EvalConfig, *RUN_OPTIONS, max_samples=limit)
    _add_pair_options(parser, several_small)
    add_record_options(parser)


def add_record_options(parser: argparse.ArgumentParser) -> None:
    """The flags of every script that times a data set: what is decoded, and where results go."""
    add_fields(parser, EvalConfig, *DATA_OPTIONS)
    add = parser.add_argument
    add("--output-dir", type=Path, default=Path("out"), help="where results go")
    add("--record", type=Path, metavar="FILE", help="also write the record here")
    add_output_flags(parser)


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """--quiet and --json, of every command that ends with a result; see `tell`."""
    add = parser.add_argument
    add("--quiet", action="store_true", help="no progress; print the path of the results alone")
    add("--json", action="store_true", help="print the results as one JSON object, nothing else")


def is_silent(arguments: argparse.Namespace) -> bool:
    """Whether nothing but the end result may be said: with --quiet and with --json."""
    return bool(arguments.quiet or arguments.json)


def tell(arguments: argparse.Namespace, record: Record, path: Path, text: str) -> None:
    """Print what a finished command found, as --quiet and --json ask for it.

    Args:
        arguments: read by `add_output_flags`.
        record: the result.
        path: of the file that holds it.
        text: the result for people; the path stands below it.
    """
    if arguments.json:
        print(as_json(record.content()))
    elif arguments.quiet:
        print(path)
    else:
        print(f"\n{text}\n\n{path}")


def run_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The `EvalConfig` fields that the flags of `add_run_options` set, without thresholds."""
    return read_fields(arguments, *TASK_OPTIONS, *RUN_OPTIONS, *PAIR_OPTIONS, *DATA_OPTIONS)


def rule_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The `BiLDConfig` fields that the flags set: all but the thresholds."""
    variant = chosen_variant(arguments.variant, arguments.task)
    return {**read_fields(arguments, *RULE_OPTIONS), "variant": variant}


def chosen_variant(given: str | None, task: str) -> str:
    """The rules that --variant names; without it the task's own."""
    return get(task).variant if given is None else given


def add_thresholds(parser: argparse.ArgumentParser) -> None:
    """--fallback and --rollback; without them the task's, see `chosen_thresholds`."""
    add = parser.add_argument
    add("--fallback", type=float, metavar="X", help="fallback threshold (default: the task's)")
    add("--rollback", type=float, metavar="X", help="rollback threshold (default: the task's)")


def chosen_thresholds(
    task: str, mode: str, fallback: float | None, rollback: float | None
) -> dict[str, Any]:
    """The thresholds of `BiLDConfig`: those given, without them the task's own of a mode."""
    preset = get(task).default_thresholds(mode)
    if preset is None:  # no small model: BiLDConfig's checks alone want thresholds
        preset = Thresholds(BiLDConfig.fallback_threshold, BiLDConfig.rollback_threshold)
    return {
        "fallback_threshold": preset.fallback if fallback is None else fallback,
        "rollback_threshold": preset.rollback if rollback is None else rollback,
    }


def add_pair_flags(parser: Parser) -> None:
    """Flags that choose a pair and its thresholds, for `pair_config`; by default the shipped."""
    add = parser.add_argument
    add(
        "--task", default="demo", choices=task_names(), help="whose pair, prefix and limits to take"
    )
    add_task_file(parser)
    add("--mode", default="unaligned", choices=MODES[1:], help="which of its small models")
    add_thresholds(parser)
    _add_pair_options(parser)


def pair_config(a: argparse.Namespace) -> tuple[EvalConfig, BiLDConfig]:
    """The settings that `add_pair_flags` has read, checked."""
    thresholds = chosen_thresholds(a.task, a.mode, a.fallback, a.rollback)
    bild = BiLDConfig(**thresholds, **rule_options(a))
    return EvalConfig(bild=bild, **read_fields(a, *TASK_OPTIONS, *PAIR_OPTIONS)), bild


def add_model_options(parser: argparse.ArgumentParser, several_small: bool = False) -> None:
    """The flags of every script that decodes with a pair: its models, rules and device."""
    several = {
        "nargs": "+",
        "required": True,
        "metavar": "LABEL=MODEL",
        "help": "small models, each a folder or hub id with a name for it",
    }
    add_fields(
        parser,
        EvalConfig,
        *MODEL_OPTIONS,
        small=several if several_small else {},
        device={"type": device_name},
    )
    parser.add_argument("--variant", choices=tuple(RULES), help="rules (default: the task's)")
    add_allow_pickle(parser)


def _add_pair_options(parser: argparse.ArgumentParser, several_small: bool = False) -> None:
    add_model_options(parser, several_small)
    rest = (name for name in PAIR_OPTIONS if name not in MODEL_OPTIONS)
    add_fields(parser, EvalConfig, *rest)
    as_text = {"type": str, "metavar": "NAME[:SETTING=X,...]"}
    rule = {"flag": RULE_FLAGS["acceptance"], **as_text}
    add_fields(parser, BiLDConfig, *RULE_OPTIONS, acceptance=rule, drafting=as_text)


def run(main: Callable[[], None], *, resumes: bool = False) -> None:
    """Run a script's `main`: mistakes of the user end with one sentence and exit code 2.

    Args:
        main: the script.
        resumes: whether the same command, given again after it was interrupted, goes on where it
            stopped; only then is that said.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    show_any_text()
    with stopping.watched(resumes):
        try:
            main()
            sys.stdout.flush()
        except BildError as error:
            _refuse(error)
        except BrokenPipeError:
            _leave_a_closed_pipe()
        except Exception as error:
            _explain(error, resumes)
            raise
        except KeyboardInterrupt as stop:
            _stop(stop)


def _explain(error: Exception, resumes: bool) -> None:
    """Refuse in one sentence what is the machine's fault, not the program's."""
    if is_out_of_memory(error):
        _refuse(BildError(advice(error, resumes, Parser.flags)))
    if (why := why_not_imported(error)) is not None:
        _refuse(BildError(why))
    where = getattr(error, "filename", None)
    if is_no_room(error):
        said, way_out = "No space left on device", "make room"
    elif isinstance(error, OSError) and error.errno in ENVIRONMENT:
        said, way_out = str(error.strerror), "set that right"
    else:
        return
    place = "" if where is None else f" ({where})"
    more = f"; {way_out}, and the same command goes on from here" if resumes else ""
    _refuse(BildError(f"{said}{place}{more}"))


def _refuse(error: BildError) -> NoReturn:
    print(f"error: {sentence(error)}", file=sys.stderr)
    sys.exit(2)


def _stop(stop: KeyboardInterrupt) -> NoReturn:
    stopping.tell(tuple(getattr(stop, "__notes__", ())))
    stopping.leave(stop)


def _leave_a_closed_pipe() -> NoReturn:
    """Nobody reads on, as after `| head`: no word of it, and none when Python closes stdout."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)


def _while_importing(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """What a script says of what it cannot import, or of Ctrl+C, before `run` is reached."""
    if isinstance(error, BildError):
        _refuse(error)
    if isinstance(error, KeyboardInterrupt):
        _stop(error)
    if isinstance(error, ImportError | ValueError):
        _explain(error, resumes=False)
    sys.__excepthook__(kind, error, trace)


sys.excepthook = _while_importing


def quiet_loading() -> None:
    """No progress bar for the loading of weights; downloads keep theirs."""
    import transformers
    from huggingface_hub.utils.tqdm import enable_progress_bars

    transformers.utils.logging.disable_progress_bar()
    enable_progress_bars()


def add_data_keys(parser: argparse.ArgumentParser) -> None:
    """The flags that say how a file's records are read."""
    add = parser.add_argument
    add("--source-key", default="de", metavar="KEY", help="key of the source in a record")
    add("--target-key", default="en", metavar="KEY", help="key of the reference in a record")


def print_facts(facts: Mapping[str, Any], a: argparse.Namespace | None = None) -> None:
    """Print the plain values of a result, one a line, or as `tell`; the first process alone."""
    if os.environ.get("RANK", "0") != "0":
        return
    if a is not None and is_silent(a):
        print(as_json(dict(facts)) if a.json else facts["output"])
    else:
        for name, value in facts.items():
            if not isinstance(value, dict):
                print(f"{name}: {value}")

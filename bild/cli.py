"""What the scripts share: one sentence and exit code 2 for a user's mistake, no stack trace."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from bild.errors import BildError


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose description is the script's docstring, shown as it stands."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see --help)\n")


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

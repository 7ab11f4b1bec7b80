"""What the scripts share: one sentence and exit code 2 for a user's mistake, no stack trace."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from bild.errors import BildError


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose description is the script's docstring, shown as it stands."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see --help)\n")


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

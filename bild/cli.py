"""What the scripts share: one sentence and exit code 2 for a user's mistake, no stack trace."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

import transformers

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
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        main()
    except BildError as error:
        sys.exit(_fail(error))
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _fail(error: BildError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2

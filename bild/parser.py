"""One style of command line: help with examples and defaults, flags from files, short errors."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from bild.errors import BildError
from bild.visible import sentence
from bild.yaml_files import read_yaml, yes_or_no

ALLOW_PICKLE = "BILD_ALLOW_PICKLE"  # 1: what --allow-pickle says, for a whole environment
LONGEST_NAME = 255  # bytes of a part of a path
SENTENCES = ("sentence", "prefix")  # arguments that are no names
NOT_IN_FILES = ("help", "config")


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that shows the command's docstring as it stands, and every default.

    With `--config FILE` a YAML file gives flags by their names, `max-new-tokens: 64`; what stands
    on the command line wins.

    Args:
        description: the docstring.
    """

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=_Help, allow_abbrev=False)
        self.own_defaults: dict[str, Any] = {}  # where --config has put others in their place
        self.add_argument(
            "--config", type=Path, metavar="FILE", help="YAML with flags as keys, name: value"
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The arguments; text that no file system and no hub takes is refused here."""
        given = sys.argv[1:] if args is None else list(args)
        path = _config_of(given)
        if path is not None:
            try:
                self._take(path)
            except BildError as error:
                self.exit(2, f"error: {sentence(error)}\n")
        found = super().parse_args(given, namespace)
        if getattr(found, "allow_pickle", False):
            os.environ[ALLOW_PICKLE] = "1"  # for all that this process and its children load
        for name, value in vars(found).items():
            for text in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(text, (str, Path)) and (fault := _fault(name, str(text))):
                    self.error(f"{name.replace('_', '-')} {str(text)!r:.60} {fault}")
        return found

    def changed(self, name: str, value: Any) -> bool:
        """Whether a value is another than without any flag or file."""
        default = self.own_defaults.get(name, self.get_default(name))
        return bool(value != default)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {sentence(message)} (see --help)\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """In the words of the settings' own refusals, the same under every Python."""
        if action.choices is not None and value not in action.choices:
            choices = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(action, f"must be one of {choices}, got {value!r}")

    # --------------------------------------------------------------------------- --config

    def _take(self, path: Path) -> None:
        """Make what a file says the default of its flags."""
        named = {
            option.lstrip("-").replace("-", "_"): action
            for action in self._actions
            for option in action.option_strings or (action.dest,)
            if not option.startswith("--no-") and action.dest not in NOT_IN_FILES
        }
        for key, value in read_yaml(path, "--config").items():
            name = key.replace("-", "_")
            if name not in named:
                near = difflib.get_close_matches(name, named, 1)
                meant = f"; did you mean {near[0].replace('_', '-')}?" if near else " (see --help)"
                raise BildError(
                    f"--config {str(path)!r} has the key {key!r:.60}, which is no flag of "
                    f"{self.prog}{meant}"
                )
            action = named[name]
            try:
                default = self._value_of(action, value)
            except argparse.ArgumentError as error:
                raise BildError(f"--config {str(path)!r}: {error}") from None
            self.own_defaults.setdefault(action.dest, action.default)
            action.default, action.required = default, False
            if not action.option_strings and action.nargs is None:
                action.nargs = "?"

    def _value_of(self, action: argparse.Action, value: Any) -> Any:
        """What a flag makes of a value of a file."""
        if isinstance(action, (argparse.BooleanOptionalAction, argparse._StoreTrueAction)):
            try:
                return yes_or_no(value)
            except (ValueError, AttributeError):
                message = f"must be true or false, got {value!r}"
                raise argparse.ArgumentError(action, message) from None
        several = action.nargs not in (None, "?")
        values = value if isinstance(value, list) and several else [value]
        if any(not isinstance(v, str) for v in values):
            raise argparse.ArgumentError(action, f"must be a plain value, got {value!r:.60}")
        if isinstance(action.nargs, int) and len(values) != action.nargs:
            message = f"must be a list of {action.nargs} values, got {len(values)}"
            raise argparse.ArgumentError(action, message)
        read = [self._get_value(action, v) for v in values]
        for each in read:
            self._check_value(action, each)
        return read if several else read[0]


def add_allow_pickle(parser: argparse.ArgumentParser) -> None:
    """The flag of every command that loads models."""
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="load weights that are no safetensors too: a pickle can hold code that runs as it is "
        "read, so take only those of somebody you trust",
    )


def _config_of(given: Sequence[str]) -> Path | None:
    """The file that --config names on a command line."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", type=Path)
    try:
        found: Path | None = finder.parse_known_args(given)[0].config
    except argparse.ArgumentError:
        return None  # the parser itself says what is wrong
    return found


def _fault(name: str, text: str) -> str:
    """Why a text cannot be the value of an argument; empty where it can."""
    if "\0" in text:
        return "holds a zero byte"
    try:
        parts = [part.encode("utf-8") for part in text.split("/")]
    except UnicodeEncodeError:
        return "is not UTF-8"
    is_name = name not in SENTENCES
    return "is too long for a name" if is_name and max(map(len, parts)) > LONGEST_NAME else ""


class _Help(argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help, action.default
        nothing = (None, "", (), argparse.SUPPRESS)
        if not text or default in nothing or default is False or "default" in text:
            return text
        values = default if isinstance(default, (tuple, list)) else (default,)
        shown = " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
        return f"{text} (default: {shown.replace('%', '%%')})"

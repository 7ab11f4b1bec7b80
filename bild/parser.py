"""One style of command line: help with examples and defaults, flags from files, short errors."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from bild.errors import BildError
from bild.visible import sentence
from bild.yaml_files import Entry, read_yaml, yes_or_no

ALLOW_PICKLE = "BILD_ALLOW_PICKLE"  # 1: what --allow-pickle says, for a whole environment
LONGEST_NAME = 255  # bytes of a part of a path
SENTENCES = ("sentence", "prefix")  # arguments that are no names
NOT_IN_FILES = ("help", "config")


@dataclass(frozen=True)
class TaskFiles:
    """What the files of --task-file may say.

    Attributes:
        prefix: of the names of their tasks.
        keys: names of flags; of those that a command does not have it takes no notice.
        paths: of these, names of files and folders.
        skipped: of these, what means something else in this command.
        place: a path in a file, given the file's folder, the key and the text.
    """

    prefix: str
    keys: tuple[str, ...]
    paths: tuple[str, ...]
    skipped: tuple[str, ...]
    place: Callable[[Path, str, str], str]


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that shows the command's docstring as it stands, and every default.

    With `--config FILE` a YAML file gives flags by their names, `max-new-tokens: 64`; what stands
    on the command line wins.

    Args:
        description: the docstring.

    Attributes:
        flags: of the command that this process runs.
    """

    flags: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=_Help, allow_abbrev=False)
        self.own_defaults: dict[str, Any] = {}  # where a file has put others in their place
        self.task_files: TaskFiles | None = None
        self.add_argument(
            "--config", type=Path, metavar="FILE", help="YAML with flags as keys, name: value"
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The arguments; text that no file system and no hub takes is refused here."""
        given = sys.argv[1:] if args is None else list(args)
        try:
            task = self._take_files(given)
        except BildError as error:
            self.exit(2, f"error: {sentence(error)}\n")
        Parser.flags = frozenset(self._option_string_actions)
        found = super().parse_args(given, namespace)
        if getattr(found, "allow_pickle", False):
            os.environ[ALLOW_PICKLE] = "1"  # for all that this process and its children load
        if task is not None and found.task != task:
            self.error(f"give --task {found.task} or --task-file, not both")
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

    # --------------------------------------------------------------------------- files

    def _take_files(self, given: Sequence[str]) -> str | None:
        """Make what --task-file and --config say the defaults of flags; the name of the task."""
        config = _file_of(given, "--config")
        settings = {} if config is None else read_yaml(config, "--config")
        task = None
        if self.task_files is not None:
            path = _file_of(given, "--task-file")
            named = [e.value for key, e in settings.items() if key.replace("-", "_") == "task_file"]
            if path is None and named and isinstance(named[0], str):
                path = Path(named[0])
            if path is not None:
                task = self._take_task(path, self.task_files, given[:1])
        if config is not None:
            self._take(f"--config {str(config)!r}", settings, self._flags(), f"flag of {self.prog}")
        return task

    def _take_task(self, path: Path, files: TaskFiles, first: Sequence[str]) -> str:
        """Make what a task's file says the defaults of flags, and set the task argument aside."""
        settings = read_yaml(path, "--task-file")
        named = settings.pop("name", None)
        name = path.stem if named is None else named.value
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,60}", name):
            raise BildError(
                f"--task-file {str(path)!r} names the task {name!r:.80}; a name is of letters, "
                "digits, hyphens, dots and underscores, 61 at most"
            )
        for key, entry in settings.items():
            text = entry.value
            if key.replace("-", "_") in files.paths and isinstance(text, str) and text:
                settings[key] = entry._replace(value=files.place(path.parent, key, text))
        flags = {key: a for key, a in self._flags().items() if key not in files.skipped}
        known = {key: flags.get(key) for key in files.keys}
        self._take(
            f"--task-file {str(path)!r}",
            settings,
            known,
            f"setting of a task that {self.prog} takes",
        )
        # To commands that tell of changed settings these are the task's, which the file stands for.
        self.own_defaults = {dest: self.get_default(dest) for dest in self.own_defaults}
        task = f"{files.prefix}-{name}"
        for action in [a for a in self._actions if a.dest == "task"]:
            if action.option_strings:
                action.default = task
            else:  # there the file stands for it
                if first and action.choices is not None and first[0] in action.choices:
                    raise BildError(f"give the task {first[0]} or --task-file, not both")
                self._positionals._remove_action(action)
        self.set_defaults(task=task)
        return task

    def _flags(self) -> dict[str, argparse.Action]:
        """The arguments that files may set, by their names."""
        return {
            option.lstrip("-").replace("-", "_"): action
            for action in self._actions
            for option in action.option_strings or (action.dest,)
            if not option.startswith("--no-") and action.dest not in NOT_IN_FILES
        }

    def _take(
        self,
        what: str,
        settings: Mapping[str, Entry],
        known: Mapping[str, argparse.Action | None],
        kind: str,
    ) -> None:
        """Make what a file says the defaults of flags.

        Args:
            what: the file.
            settings: in it.
            known: the arguments by their names; None for one that has no meaning here.
            kind: what the names are.
        """
        for key, (value, line) in settings.items():
            name = key.replace("-", "_")
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                meant = f"; did you mean {near[0].replace('_', '-')}?" if near else " (see --help)"
                raise BildError(
                    f"{what}, line {line} has the key {key!r:.60}, which is no {kind}{meant}"
                )
            action = known[name]
            if action is None:
                continue
            try:
                default = self._value_of(action, value)
            except argparse.ArgumentError as error:
                raise BildError(f"{what}, line {line}: {error}") from None
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


def _file_of(given: Sequence[str], flag: str) -> Path | None:
    """The file that a flag names on a command line."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument(flag, type=Path, dest="file")
    try:
        found: Path | None = finder.parse_known_args(given)[0].file
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

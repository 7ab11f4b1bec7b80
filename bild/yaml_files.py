"""Settings in YAML files, for people: every value is text until somebody says what it should be.

So `no`, `1e-3` and `12:30` are what they look like, not what YAML 1.1 makes of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from bild.errors import BildError

LARGEST_BYTES = 1_000_000  # no file of settings is longer; a wrong file is not read to its end


class Entry(NamedTuple):
    """A value in a file, and the line of its name."""

    value: Any
    line: int


def read_yaml(path: Path, flag: str) -> dict[str, Entry]:
    """The mapping in a YAML file; scalars are text, an empty value is "".

    Args:
        path: the file.
        flag: that named it.

    Raises:
        BildError: a file that cannot be read, is not YAML, is no mapping of names, or has a name
            twice; file and line are named.
    """
    what = f"{flag} {str(path)!r}"
    try:
        if not path.is_file():
            raise BildError(f"{what} is not a file; give one in YAML")
        with path.open("rb") as stream:
            content = stream.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise BildError(f"{what} cannot be read ({error.strerror}); choose another") from None
    if len(content) > LARGEST_BYTES:
        raise BildError(f"{what} is longer than {LARGEST_BYTES:,} bytes: it holds no settings")
    found, lines = _parsed(content, what)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise BildError(f'{what} must hold settings as "name: value", one a line')
    return {key: Entry(value, lines.get(key, 1)) for key, value in found.items()}


def _parsed(content: bytes, what: str) -> tuple[Any, dict[str, int]]:
    """What a file holds, and the lines of its names."""
    import yaml  # only here: most commands are given no file

    lines: dict[str, int] = {}

    class Loader(yaml.BaseLoader):
        """Refuses a name that stands twice; YAML would let the last one win."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = next((n for i, n in enumerate(names) if n in names[:i]), None)
            if twice is not None:
                line = node.start_mark.line + 1
                raise BildError(f"{what} has {twice!r} twice in the part from line {line} on")
            lines.clear()  # of the outermost mapping, which is made last
            lines.update(
                {k: mark.start_mark.line + 1 for k, (mark, _) in zip(names, node.value, strict=True)
                 if isinstance(k, str)}
            )  # fmt: skip
            mapping: dict[Any, Any] = super().construct_mapping(node, deep)
            return mapping

    try:
        return yaml.load(content.decode("utf-8-sig"), Loader), lines
    except UnicodeDecodeError as error:
        raise BildError(f"{what} is not UTF-8 ({error.reason}); save it as UTF-8") from None
    except RecursionError:
        raise BildError(f"{what} is nested too deeply; write flat settings") from None
    except (yaml.YAMLError, TypeError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise BildError(f"{what}{where} is not YAML: {problem}") from None


def whole_number(text: str) -> int:
    """A whole number; the error is a ValueError that says so."""
    try:
        return int(text)
    except ValueError:
        raise ValueError("a whole number") from None


def yes_or_no(text: str) -> bool:
    """true, yes, on, false, no or off; the error is a ValueError that says so."""
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError("true or false")
    return words[text.lower()]

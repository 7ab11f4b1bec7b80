"""Texts from a file or a pipe, one at a time, so that memory does not grow with the file."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from bild.errors import BildError

Form = Literal["text", "jsonl"]
PIPE = "-"  # the standard input or output
LONGEST_LINE = 10_000_000  # bytes; a file without line breaks is not read as one text


@dataclass(frozen=True)
class Text:
    """A text to decode.

    Attributes:
        source: the text.
        record: the object it stands in; None for a line of plain text.
        number: of its line, from 1.
    """

    source: str
    record: dict[str, Any] | None = None
    number: int = 1


@dataclass(frozen=True)
class FileJob:
    """What is read and written.

    Attributes:
        source: a file, or "-" for the standard input.
        output: a file, or "-" for the standard output.
        source_form, output_form: plain text or JSON Lines.
        source_key: of the text in an object.
        output_key: of the output in an object.
        stats: put what happened into each object.
        quiet: no progress.
        batch_size: texts decoded at a time; the outputs are the same.
        overwrite: replace a finished output.
    """

    source: str
    output: str
    source_form: Form = "text"
    output_form: Form = "text"
    source_key: str = "source"
    output_key: str = "output"
    stats: bool = False
    quiet: bool = False
    batch_size: int = 1
    overwrite: bool = False


@dataclass(frozen=True)
class Contents:
    """What a file is: how many texts, and the SHA-256 of its bytes."""

    count: int
    sha256: str


def form_of(name: str, given: Form | None, without: Form = "text") -> Form:
    """How a file is written: as given, or as its name says: JSON Lines as .jsonl or .jsonl.gz."""
    if given is not None:
        return given
    if name == PIPE:
        return without
    return "jsonl" if name.removesuffix(".gz").endswith((".jsonl", ".ndjson")) else "text"


def look_through(name: str) -> Contents:
    """Count a file's lines and digest it, in one pass.

    Raises:
        BildError: a file that cannot be read, or has no line.
    """
    digest, count = hashlib.sha256(), 0
    for line in _lines(name):
        digest.update(line)
        count += 1
    if not count:
        raise BildError(f"{name!r} is empty; it must hold a text a line")
    return Contents(count, digest.hexdigest())


def read_texts(name: str, form: Form, key: str) -> Iterator[Text]:
    """The texts, in their order.

    Args:
        name: a file, gzip where the name ends in ".gz", or "-" for the standard input.
        form: a text a line, or a JSON object a line.
        key: of the text in an object, or in what it has as "translation".

    Raises:
        BildError: a file that cannot be read; a line that is not UTF-8, no object, or without
            text under the key; the line is named.
    """
    called = "the standard input" if name == PIPE else name
    for number, raw in enumerate(_lines(name), start=1):
        where = f"{called}, line {number}"
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise BildError(f"{where} is not UTF-8 ({error.reason}); convert it first") from None
        line = line.rstrip("\r\n")
        text = Text(line) if form == "text" else _of_object(line, where, key)
        yield replace(text, number=number)


def _of_object(line: str, where: str, key: str) -> Text:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BildError(
            f"{where} is not a JSON object ({error}); write one a line, or take plain text with "
            "--input-format text"
        ) from None
    if not isinstance(record, dict):
        raise BildError(f"{where} is a {type(record).__name__}, not an object with {key!r}")
    inner = record.get("translation")
    holder = inner if key not in record and isinstance(inner, dict) else record
    source = holder.get(key)
    if not isinstance(source, str):
        keys = ", ".join(map(str, holder)) or "none"
        raise BildError(f"{where} has no text as {key!r} (its keys: {keys}); see --source-key")
    if "\\u" in line:
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise BildError(f"{where} has half a surrogate pair; write the character") from None
    return Text(source, record)


def _lines(name: str) -> Iterator[bytes]:
    """The lines of a file, which end at "\\n" alone."""
    with _opened(name) as stream:
        number = 0
        while True:
            try:
                line = stream.readline(LONGEST_LINE + 1)
            except (gzip.BadGzipFile, EOFError, zlib.error):
                raise BildError(f"{name!r} is no gzip file, or a damaged one") from None
            except OSError as error:
                raise BildError(f"{name!r} cannot be read ({error.strerror})") from None
            if not line:
                return
            number += 1
            if len(line) > LONGEST_LINE:
                raise BildError(
                    f"{name!r}, line {number} is longer than {LONGEST_LINE:,} bytes; is it a file "
                    "of texts?"
                )
            yield line


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    if name == PIPE:
        yield sys.stdin.buffer
        return
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            raise BildError(f"{name!r} is a folder; name a file of texts")
        opening: Any = gzip.open if path.suffix == ".gz" else open
        stream = opening(path, "rb")
    except FileNotFoundError:
        raise BildError(f"{name!r} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BildError(f"{name!r} cannot be read ({reason})") from None
    with stream:
        yield stream

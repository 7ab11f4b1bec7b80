"""Pairs of texts from files: JSON Lines, a JSON list, a table with tabs, or two files of lines."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from bild.errors import BildError

LONGEST_LINE = 16_000_000  # bytes; no example is longer, and no file is read into memory to see it
LARGEST_LIST = 256_000_000  # bytes of a JSON list, which is read whole


@dataclass(frozen=True)
class Example:
    """A source text and its reference, without prefix."""

    source: str
    target: str


def read_examples(
    path: str | Path, source_key: str, target_key: str, targets: str | Path | None = None
) -> list[Example]:
    """The pairs of a file, as its name says: ".tsv", ".json", else JSON Lines; all perhaps ".gz".

    Args:
        path: the file; with `targets` a plain text, a source a line.
        source_key, target_key: of a record; of a table its columns, by the names in its first line,
            or by numbers from 1 where it has no such line.
        targets: a plain text of the references, line by line as the sources.

    Raises:
        BildError: as `read_jsonl`; file and line are named.
    """
    path = Path(path)
    form = Path(path.name.removesuffix(".gz")).suffix.lower()
    if targets is not None:
        return read_text_pair(path, Path(targets))
    if form == ".tsv":
        return read_table(path, source_key, target_key)
    if form == ".txt":
        raise BildError(
            f"data file {str(path)!r} is plain text, which holds no references; give them as "
            "--target-file, a line for each, or write JSON Lines (.jsonl) or a table (.tsv)"
        )
    if form == ".json" and _begins_a_list(path):
        return read_list(path, source_key, target_key)
    return read_jsonl(path, source_key, target_key)


def read_jsonl(path: str | Path, source_key: str, target_key: str) -> list[Example]:
    """Read one JSON object a line, gzip where the name ends in ".gz"; other keys are ignored.

    The keys may stand within "translation", as the hub's data sets have them. Empty texts are kept,
    and so are empty lines at the end.

    Raises:
        BildError: a file that is missing, empty, not UTF-8 or not gzip, or a line that is not an
            object with both keys and text in them; the line is named.
    """
    path = Path(path)
    examples: list[Example] = []
    blank: int | None = None
    for number, text in enumerate(_texts(path), start=1):
        line = text.strip()
        if not line:
            blank = number if blank is None else blank
            continue
        if blank is not None:
            raise BildError(f"{path}, line {blank} is empty; remove it")
        examples.append(_parse(line, f"{path}, line {number}", source_key, target_key))
    if not examples:
        raise BildError(
            f"data file {str(path)!r} holds no examples; "
            f'write one object {{"{source_key}": ..., "{target_key}": ...}} a line'
        )
    return examples


def read_list(path: Path, source_key: str, target_key: str) -> list[Example]:
    """Read a JSON list of objects, as `read_jsonl` reads its lines.

    Raises:
        BildError: as `read_jsonl`; the entry is named instead of the line, from 1.
    """
    parts, size = [], 0
    for line in _texts(path):
        size += len(line)
        if size > LARGEST_LIST:
            raise BildError(
                f"data file {str(path)!r} is a list of more than {LARGEST_LIST:,} characters, "
                "which is read whole; write one object a line instead (.jsonl)"
            )
        parts.append(line)
    entries = _json("".join(parts), str(path), "write a list of objects, or one object a line")
    if not isinstance(entries, list) or not entries:
        raise BildError(f"data file {str(path)!r} holds no list of examples; write [{{...}}, ...]")
    return [
        _example(entry, f"{path}, entry {number}", source_key, target_key)
        for number, entry in enumerate(entries, start=1)
    ]


def read_table(path: Path, source_key: str, target_key: str) -> list[Example]:
    """Read a line an example, its columns separated by tabs; quotes mean nothing.

    Args:
        path: the table.
        source_key, target_key: names of columns in the first line; where both are numbers, the
            columns counted from 1, and the first line is an example.

    Raises:
        BildError: as `read_jsonl`; columns that are not there, or not as many as in the first line.
    """
    keys = (source_key, target_key)
    numbered = all(key.isascii() and key.isdigit() for key in keys)
    places = tuple(int(key) - 1 for key in keys) if numbered else None
    width, examples = 0, []
    for number, line in enumerate(_texts(path), start=1):
        cells = line.rstrip("\r\n").split("\t")
        where = f"{path}, line {number}"
        if number == 1:
            width = len(cells)
            if places is None:
                places = tuple(_column(cells, key, where) for key in keys)
                continue
            odd = [key for key, at in zip(keys, places, strict=True) if not 0 <= at < width]
            if odd:
                raise BildError(f"{where} has {width} column(s), so that {odd[0]} is none of them")
        assert places is not None
        if len(cells) != width:
            raise BildError(
                f"{where} has {len(cells)} column(s), and line 1 has {width}; no text may hold a "
                "tab or a line break"
            )
        examples.append(Example(*(cells[at] for at in places)))
    if not examples:
        raise BildError(f"data file {str(path)!r} holds no examples; write one a line")
    return examples


def _column(cells: list[str], name: str, where: str) -> int:
    if name not in cells:
        raise BildError(
            f"{where} has no column {name!r} (its columns: {', '.join(cells):.200}); name them by "
            "--source-key and --target-key, or by number, as 1 and 2, where that line is no heading"
        )
    return cells.index(name)


def read_text_pair(sources: Path, targets: Path) -> list[Example]:
    """Read two plain texts, of which each line of one belongs to the same line of the other.

    Raises:
        BildError: as `read_jsonl`; files of different lengths.
    """
    examples = []
    for number, pair in enumerate(zip_longest(_texts(sources), _texts(targets)), start=1):
        if None in pair:
            short, long = (sources, targets) if pair[0] is None else (targets, sources)
            raise BildError(
                f"{short} ends after line {number - 1}, and {long} does not; each line of one "
                "must belong to the same line of the other"
            )
        examples.append(Example(*(line.rstrip("\r\n") for line in pair)))
    if not examples:
        raise BildError(f"data file {str(sources)!r} holds no examples; write one a line")
    return examples


# ------------------------------------------------------------------------------ lines


def _begins_a_list(path: Path) -> bool:
    first = next((line for line in _texts(path) if line.strip()), "")
    return first.lstrip().startswith("[")


def _texts(path: Path) -> Iterator[str]:
    """The lines of a file that must be one, as text, with their ends."""
    try:
        is_folder, is_there = path.is_dir(), path.exists()
    except OSError as error:  # a name that is too long
        raise BildError(f"data file {str(path)!r:.60} cannot be read: {error.strerror}") from None
    if is_folder:
        raise BildError(f"data file {str(path)!r} is a folder; give a .jsonl or .jsonl.gz file")
    if not is_there:
        raise BildError(f"data file {str(path)!r} does not exist; check the path")
    for number, raw in enumerate(_lines(path), start=1):
        try:
            yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise BildError(
                f"{path}, line {number} is not UTF-8 ({error.reason}); save the file as UTF-8"
            ) from None


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, which end at "\\n" alone: a text may hold other line separators."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            number = 0
            while line := stream.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise BildError(
                        f"{path}, line {number} is longer than {LONGEST_LINE:,} bytes; write one "
                        "example a line"
                    )
                yield line
    except gzip.BadGzipFile:
        raise BildError(f"{path} is not a gzip file; rename it or compress it") from None
    except (EOFError, zlib.error):
        raise BildError(f"{path} is a damaged or truncated gzip file; copy it again") from None
    except OSError as error:
        raise BildError(f"data file {str(path)!r} cannot be read: {error.strerror}") from None


def _parse(line: str, where: str, source_key: str, target_key: str) -> Example:
    return _example(
        _json(line, where, "write one JSON object a line"), where, source_key, target_key
    )


def _json(text: str, where: str, way_out: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}"
        raise BildError(f"{where} is not valid JSON ({error.msg} at {at}); {way_out}") from None
    except ValueError:  # Python reads no longer number
        raise BildError(
            f"{where} holds a number of more than 4,300 digits; write it as text"
        ) from None
    except RecursionError:
        raise BildError(f"{where} is nested too deeply; write one flat object a line") from None


def _example(record: Any, where: str, source_key: str, target_key: str) -> Example:
    if not isinstance(record, dict):
        raise BildError(
            f"{where} is a {type(record).__name__}, not an object; "
            f"write an object with the keys {source_key!r} and {target_key!r}"
        )
    if source_key not in record and isinstance(record.get("translation"), dict):
        record = record["translation"]
    return Example(*(_text(record, key, where) for key in (source_key, target_key)))


def _text(record: Mapping[str, Any], key: str, where: str) -> str:
    if key not in record:
        keys = ", ".join(sorted(record)) or "none"
        raise BildError(f"{where} has no key {key!r} (its keys: {keys}); add it")
    value = record[key]
    if not isinstance(value, str):
        raise BildError(f"{where} has {value!r:.40} as {key!r}; it must be a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BildError(
            f"{where} has half a surrogate pair in {key!r}; write the character itself"
        ) from None
    return value

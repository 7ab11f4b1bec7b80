"""Examples of a task: from a file, a local mirror, or the hub, always in the data's order."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bild.checkpoints import hub
from bild.checkpoints.names import REPOSITORY_ROOT, mirror_root
from bild.errors import BildError, first_line, require
from bild.tasks.reading import Example, read_examples
from bild.tasks.registry import HubData, Task


@dataclass(frozen=True)
class LoadedData:
    """Examples and where they came from.

    Attributes:
        examples: in the data's own order.
        origin: the file as given (a mirror's begins with "$BILD_DATA_ROOT"), or the hub id.
        revision: commit on the hub that the examples were read from; None for a file.
        split: split of the data set.
        sha256: of `examples`, see `checksum`.
        available: examples at the origin, of which `examples` are the first.
    """

    examples: tuple[Example, ...]
    origin: str
    revision: str | None
    split: str
    sha256: str
    available: int


def load_examples(
    task: Task,
    max_samples: int | None,
    data_file: Path | None = None,
    target_file: Path | None = None,
) -> LoadedData:
    """The first examples of a task.

    Taken from, in this order: `data_file`; `$BILD_DATA_ROOT/<name>/<split>.jsonl` or `.jsonl.gz`;
    the file that comes with this repository; the hub's local cache; the hub.

    Args:
        task: where its examples are.
        max_samples: how many, at least 1; None for all.
        data_file: with the task's keys, in a form of `bild.tasks.reading.read_examples`.
        target_file: the references of a plain data_file.

    Raises:
        BildError: a bad `max_samples` or file, or data that cannot be had.
    """
    if max_samples is not None and (
        not isinstance(max_samples, int) or isinstance(max_samples, bool) or max_samples < 1
    ):
        raise BildError(
            f"the number of samples must be at least 1, got {max_samples!r}; leave it out for all"
        )
    revision = None
    found = _find_file(task, data_file)
    if found is not None:
        path, origin = found
        available = read_examples(path, task.source_key, task.target_key, target_file)
    elif task.data is not None:
        origin = task.data.path
        available, revision = _load_from_hub(task.name, task.data)
    else:
        named = "not named" if task.file is None else f"not at {task.file!r} in this repository"
        raise BildError(f"the examples of {task.name} are {named}; give --data-file")
    if max_samples is not None and max_samples > len(available):
        raise BildError(
            f"{max_samples} samples were asked for but {origin} has {len(available)}; "
            f"ask for {len(available)} at most"
        )
    examples = tuple(available[:max_samples])
    return LoadedData(
        examples=examples,
        origin=origin,
        revision=revision,
        split=task.split,
        sha256=checksum(examples),
        available=len(available),
    )


def load_file(path: Path, source_key: str, target_key: str, split: str) -> LoadedData:
    """All examples of one file, for training or measuring; its origin is the file's name.

    Args:
        path: in a form of `bild.tasks.reading.read_examples`.
        source_key, target_key: keys of a record.
        split: what the file is to be called: "train", "validation", ...

    Raises:
        BildError: as `read_examples`.
    """
    examples = tuple(read_examples(path, source_key, target_key))
    return LoadedData(examples, Path(path).name, None, split, checksum(examples), len(examples))


def checksum(examples: Sequence[Example]) -> str:
    """SHA-256 over one line of UTF-8 JSON an example, `["source","target"]` without spaces."""
    digest = hashlib.sha256()
    for example in examples:
        pair = [example.source, example.target]
        line = json.dumps(pair, ensure_ascii=False, separators=(",", ":"))
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def _find_file(task: Task, data_file: Path | None) -> tuple[Path, str] | None:
    """(path, origin) of the file to read; None when the examples are on the hub."""
    if data_file is not None:
        return Path(data_file).expanduser(), str(data_file)
    root = mirror_root("BILD_DATA_ROOT")
    if root is not None:
        for suffix in (".jsonl", ".jsonl.gz"):
            path = root / task.name / f"{task.split}{suffix}"
            if path.is_file():
                return path, f"$BILD_DATA_ROOT/{task.name}/{path.name}"
    if task.file is not None and (REPOSITORY_ROOT / task.file).is_file():
        return REPOSITORY_ROOT / task.file, task.file
    return None


# ------------------------------------------------------------------------------ the hub


def parquet_pattern(data: HubData) -> str:
    """The files of a split on the hub's parquet branch, as a pattern."""
    return f"{data.config or 'default'}/{data.split}/*.parquet"


def parquet_files(data: HubData, names: Iterable[str]) -> list[str]:
    """Of the files of a data set those to download: one split of one configuration."""
    return [name for name in names if fnmatch(name, parquet_pattern(data))]


def _load_from_hub(task: str, data: HubData) -> tuple[list[Example], str | None]:
    """(examples, commit) of a data set in the hub's cache, or else on the hub."""
    pattern = parquet_pattern(data)
    folder = hub.cached(data.path, data.revision, "dataset", [pattern])
    if folder is None or not list(folder.glob(pattern)):
        try:
            folder = hub.fetch(
                data.path, data.revision, "dataset", lambda names: parquet_files(data, names)
            )
        except hub.NotObtainedError as error:
            root = os.environ.get("BILD_DATA_ROOT", "") or "not set"
            way_out = "" if error.answered else "connect to the network, "
            raise BildError(
                f"data set {data.path!r} ({data.config or 'default'}, {data.split}, revision "
                f"{data.revision}) is neither in the local cache nor under BILD_DATA_ROOT ({root}),"
                f" and {error.sentence}: {way_out}set BILD_DATA_ROOT to a folder that holds "
                f"{task}/{data.split}.jsonl, or give --data-file"
            ) from error
    files = sorted(folder.glob(pattern))
    return _examples(files, data), folder.name


def _examples(files: Sequence[Path], data: HubData) -> list[Example]:
    """The rows of parquet files as examples, by the first spelling of the columns that fits."""
    require("eval", "pyarrow")
    from pyarrow import ArrowException
    from pyarrow.parquet import read_schema, read_table

    try:
        names = read_schema(files[0]).names
        spelling = _spelling(names, data)
        wanted = sorted({column.split(".")[0] for column in spelling})
        rows = [row for file in files for row in read_table(file, columns=wanted).to_pylist()]
    except (ArrowException, OSError) as error:
        raise BildError(
            f"data set {data.path!r} cannot be read from the hub's cache ({first_line(error)}); "
            "give --data-file"
        ) from error
    if not rows:
        raise BildError(
            f"split {data.split!r} of data set {data.path!r} is empty; give --data-file"
        )
    return [
        Example(*(_cell(row, column, number, data) for column in spelling))
        for number, row in enumerate(rows)
    ]


def _spelling(names: Sequence[str], data: HubData) -> tuple[str, str]:
    for spelling in data.columns:
        if all(column.split(".")[0] in names for column in spelling):
            return spelling
    wanted = " or ".join(f"{source} and {target}" for source, target in data.columns)
    raise BildError(
        f"data set {data.path!r} has the columns {', '.join(names)} instead of {wanted}; "
        "give --data-file"
    )


def _cell(row: Mapping[str, Any], column: str, number: int, data: HubData) -> str:
    """The text in a column of a row, or in one key of it."""
    name, _, key = column.partition(".")
    value = row.get(name)
    if key:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, str):
        raise BildError(
            f"row {number} of data set {data.path!r} has {value!r:.40} as {column!r} "
            "instead of text; give --data-file"
        )
    return value

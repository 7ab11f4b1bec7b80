"""Examples of a task: from a file, a local mirror, or the hub, always in the data's order."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import constants

from bild.checkpoints.hub import REPOSITORY_ROOT, hub_reachable, mirror_root
from bild.errors import BildError, first_line
from bild.tasks.registry import HubData, Task

if TYPE_CHECKING:
    from datasets import Dataset

PARQUET_BRANCH = "refs/convert/parquet"


@dataclass(frozen=True)
class Example:
    """A source text and its reference, without prefix."""

    source: str
    target: str


@dataclass(frozen=True)
class LoadedData:
    """Examples and where they came from.

    Attributes:
        examples: in the data's own order.
        origin: the file as given (a mirror's begins with "$BILD_DATA_ROOT"), or the hub id.
        revision: commit of the data set on the hub; None for a file.
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
    seed: int | None = None,
) -> LoadedData:
    """The first examples of a task.

    Taken from, in this order: `data_file`; `$BILD_DATA_ROOT/<name>/<split>.jsonl` or `.jsonl.gz`;
    the file that comes with this repository; the hub or its local cache.

    Args:
        task: where its examples are.
        max_samples: how many, at least 1; None for all.
        data_file: JSON Lines with the task's keys, plain or gzip.
        seed: has no effect, since nothing is shuffled; taken so that one set of settings can be
            handed on whole.

    Raises:
        BildError: a bad `max_samples` or file, or data that cannot be had; within three seconds
            when there is no network.
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
        available = read_jsonl(path, task.source_key, task.target_key)
    elif task.data is not None:
        origin = task.data.path
        available, revision = _load_from_hub(task.name, task.data)
    else:
        raise BildError(
            f"the examples of {task.name} are not at {task.file!r} in this repository; "
            "give --data-file"
        )
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
        path: JSON Lines, plain or gzip.
        source_key, target_key: keys of a record.
        split: what the file is to be called: "train", "validation", ...

    Raises:
        BildError: as `read_jsonl`.
    """
    examples = tuple(read_jsonl(path, source_key, target_key))
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


# ------------------------------------------------------------------------------ files


def read_jsonl(path: str | Path, source_key: str, target_key: str) -> list[Example]:
    """Read one JSON object a line, gzip where the name ends in ".gz"; other keys are ignored.

    Empty texts are kept, and so are empty lines at the end.

    Raises:
        BildError: a file that is missing, empty, not UTF-8 or not gzip, or a line that is not an
            object with both keys and text in them; the line is named.
    """
    path = Path(path)
    if path.is_dir():
        raise BildError(f"data file {str(path)!r} is a folder; give a .jsonl or .jsonl.gz file")
    if not path.exists():
        raise BildError(f"data file {str(path)!r} does not exist; check the path")
    examples: list[Example] = []
    blank: int | None = None
    for number, raw in enumerate(_lines(path), start=1):
        where = f"{path}, line {number}"
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise BildError(
                f"{where} is not UTF-8 ({error.reason}); save the file as UTF-8"
            ) from None
        if not line:
            blank = number if blank is None else blank
            continue
        if blank is not None:
            raise BildError(f"{path}, line {blank} is empty; remove it")
        examples.append(_parse(line, where, source_key, target_key))
    if not examples:
        raise BildError(
            f"data file {str(path)!r} holds no examples; "
            f'write one object {{"{source_key}": ..., "{target_key}": ...}} a line'
        )
    return examples


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, which end at "\\n" alone: a text may hold other line separators."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            yield from stream
    except gzip.BadGzipFile:
        raise BildError(f"{path} is not a gzip file; rename it or compress it") from None
    except (EOFError, zlib.error):
        raise BildError(f"{path} is a damaged or truncated gzip file; copy it again") from None
    except OSError as error:
        raise BildError(f"data file {str(path)!r} cannot be read: {error.strerror}") from None


def _parse(line: str, where: str, source_key: str, target_key: str) -> Example:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise BildError(
            f"{where} is not valid JSON ({error.msg} at column {error.colno}); "
            "write one JSON object a line"
        ) from None
    except RecursionError:
        raise BildError(f"{where} is nested too deeply; write one flat object a line") from None
    if not isinstance(record, dict):
        raise BildError(
            f"{where} is a {type(record).__name__}, not an object; "
            f"write an object with the keys {source_key!r} and {target_key!r}"
        )
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


# ------------------------------------------------------------------------------ the hub


def _load_from_hub(task: str, data: HubData) -> tuple[list[Example], str | None]:
    """(examples, commit) of a data set on the hub, or in the local cache when that is all."""
    online = hub_reachable()
    try:
        dataset, revision = _open(data, online)
    except Exception as error:  # datasets and the hub's clients raise many kinds
        wanted = f"data set {data.path!r} ({data.config or 'default'}, {data.split})"
        mirror = f"set BILD_DATA_ROOT to a folder that holds {task}/{data.split}.jsonl"
        if not online:
            root = os.environ.get("BILD_DATA_ROOT", "") or "not set"
            raise BildError(
                f"{wanted} is neither in the local cache nor under BILD_DATA_ROOT ({root}), and "
                f"{constants.ENDPOINT} cannot be reached: connect to the network, {mirror}, or "
                "give --data-file"
            ) from error
        raise BildError(
            f"{wanted} could not be loaded from {constants.ENDPOINT} ({first_line(error)}): "
            f"try again, {mirror}, or give --data-file"
        ) from error
    return _examples(dataset, data), revision


def _open(data: HubData, online: bool) -> tuple[Dataset, str | None]:
    """(rows, commit), from the parquet branch or else from the repository's own files."""
    try:
        files = _parquet_files(data, online)
    except Exception as error:  # no such branch, not in the cache, a network that fails, ...
        if data.script_only or not (online or _is_prepared(data)):
            raise FileNotFoundError(first_line(error)) from error
    else:
        with _offline():  # the files are here; datasets would still report its load to a server
            dataset = _load("parquet", data_files={data.split: files}, split=data.split)
        return dataset, _commit_in(files[0])
    with _hub_alone() if online else _offline():
        dataset = _load(data.path, data.config, split=data.split)
    cached = dataset.cache_files
    return dataset, _commit_in(cached[0]["filename"]) if cached else None


def _parquet_files(data: HubData, online: bool) -> list[str]:
    """The split's files on the parquet branch: downloaded, or found in the hub's cache."""
    from huggingface_hub import snapshot_download  # takes half a second, so only here

    pattern = f"{data.config or 'default'}/{data.split}/*.parquet"
    snapshot = snapshot_download(
        data.path,
        repo_type="dataset",
        revision=PARQUET_BRANCH,
        allow_patterns=pattern,
        local_files_only=not online,
    )
    files = sorted(str(file) for file in Path(snapshot).glob(pattern))
    if not files:
        raise FileNotFoundError(f"{PARQUET_BRANCH} has no {pattern}")
    return files


def _is_prepared(data: HubData) -> bool:
    """Whether datasets has loaded the repository's own files before."""
    folder = Path(os.environ.get("HF_DATASETS_CACHE", Path(constants.HF_HOME) / "datasets"))
    return (folder.expanduser() / data.path.replace("/", "___")).is_dir()


def _load(*args: Any, **kwargs: Any) -> Dataset:
    import datasets  # takes a second, so only here

    return datasets.load_dataset(*args, **kwargs)


def _commit_in(path: str) -> str | None:
    """The commit in a path of the hub's or of datasets' cache, where it names a folder."""
    return next((p for p in Path(path).parts if re.fullmatch("[0-9a-f]{40}", p)), None)


def _offline() -> contextlib.AbstractContextManager[None]:
    """Keep datasets and huggingface_hub from any request, as `HF_HUB_OFFLINE=1` would."""
    import datasets

    return _set((datasets.config, "HF_HUB_OFFLINE", True), (constants, "HF_HUB_OFFLINE", True))


def _hub_alone() -> contextlib.AbstractContextManager[None]:
    """Keep datasets from asking other servers: it counts loads, and looks for an export."""
    import datasets

    return _set(
        (datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False),
        (datasets.config, "USE_PARQUET_EXPORT", False),
    )


@contextlib.contextmanager
def _set(*places: tuple[Any, str, object]) -> Iterator[None]:
    """Set attributes for a while."""
    before = [getattr(module, name) for module, name, _ in places]
    for module, name, value in places:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), value in zip(places, before, strict=True):
            setattr(module, name, value)


def _examples(dataset: Dataset, data: HubData) -> list[Example]:
    """The rows as examples, by the first spelling of the columns that fits."""
    names = dataset.column_names
    for spelling in data.columns:
        if all(column.split(".")[0] in names for column in spelling):
            break
    else:
        wanted = " or ".join(f"{s} and {t}" for s, t in data.columns)
        raise BildError(
            f"data set {data.path!r} has the columns {', '.join(names)} instead of {wanted}; "
            "give --data-file"
        )
    if not len(dataset):
        raise BildError(
            f"split {data.split!r} of data set {data.path!r} is empty; give --data-file"
        )
    texts = []
    for column in spelling:
        name, _, key = column.partition(".")
        values = [value[key] if key else value for value in dataset[name]]
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise BildError(
                    f"row {row} of data set {data.path!r} has {value!r:.40} as {column!r} "
                    "instead of text; give --data-file"
                )
        texts.append(values)
    return [Example(source, target) for source, target in zip(*texts, strict=True)]

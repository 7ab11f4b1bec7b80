"""Files that are written whole or not at all, folders that can be written, work that goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any, Protocol, TypeVar

from filelock import FileLock, Timeout

from bild.errors import BildError

UNFINISHED = ".unfinished-"  # how the names of scratch folders begin


class JsonLine(Protocol):
    """Something that is kept as a line of JSON."""

    def to_json(self) -> str: ...


Line = TypeVar("Line")
Entry = TypeVar("Entry", bound=JsonLine)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it is never seen half written."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file for people, atomically."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text + "\n")


@contextmanager
def moved_when_done(folder: Path) -> Iterator[Path]:
    """A scratch folder whose files move into `folder`, each whole, when the block has succeeded.

    The caller must be the only one at work in `folder`: what a killed process has left there
    half-written is removed.
    """
    for left_over in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=UNFINISHED) as scratch:
        yield Path(scratch)
        for file in sorted(Path(scratch).iterdir()):
            os.replace(file, folder / file.name)


def check_writable(folder: Path) -> None:
    """Make a folder, or say in one sentence why it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BildError(
            f"cannot write to the output folder {str(folder)!r} ({error.strerror}); "
            "choose another with --output-dir"
        ) from None


def check_file(path: Path) -> None:
    """Make sure that a file of this name can be written, or say in one sentence why not."""
    if path.is_dir():
        raise BildError(f"{str(path)!r} is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise BildError(f"cannot write {str(path)!r} ({error.strerror}); choose another") from None


@contextmanager
def open_run(folder: Path, identity: str) -> Iterator[Path]:
    """A run's own folder within `folder`, locked: an unfinished one of this identity, or a new one.

    A run is finished when its run.json is there.
    """
    for candidate in sorted(folder.glob("*/identity")):
        run = candidate.parent
        unfinished = not (run / "run.json").exists()
        if unfinished and candidate.read_text(encoding="utf-8") == identity:
            with suppress(Timeout), FileLock(run / "lock", blocking=False):
                yield run
                return
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for name in chain([stamp], (f"{stamp}-{n}" for n in count(2))):
        run = folder / name
        with suppress(FileExistsError):
            run.mkdir(parents=True)
            break
    with FileLock(run / "lock"):
        write_atomically(run / "identity", identity)
        yield run


@contextmanager
def sole_user(folder: Path, what: str) -> Iterator[None]:
    """Keep a folder to this process as long as the block runs.

    Args:
        folder: an existing one.
        what: the kind of work that goes on there.

    Raises:
        BildError: another process is at work in it.
    """
    lock = FileLock(folder / "lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise BildError(
            f"another {what} is at work in {str(folder)!r}; wait for it, or write to another place"
        ) from None
    try:
        yield
    finally:
        lock.release()


def read_lines(path: Path, parse: Callable[[str], Line]) -> list[Line]:
    """What the lines of a file say; one cut off by the end of a process is taken out of it."""
    if not path.exists():
        return []
    parsed: list[Line] = []
    whole = ""
    # Not splitlines(): a text may hold U+2028 or U+0085, which JSON leaves as they are.
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            parsed.append(parse(line))
        except (ValueError, KeyError, TypeError):
            break
        whole += line + "\n"
    write_atomically(path, whole)
    return parsed


def write_lines(path: Path, entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries, each a line at the end of the file before it is handed on."""
    with path.open("a", encoding="utf-8") as log:
        for entry in entries:
            log.write(entry.to_json() + "\n")
            log.flush()
            yield entry


def is_same_work(path: Path, work: Mapping[str, Any]) -> bool:
    """Whether the JSON file says that exactly this work was begun here; False when it is not there.

    Args:
        path: a file that holds the fields of `work`, and perhaps more.
        work: everything that decides the result, as JSON values.

    Raises:
        BildError: it was begun with other settings, models or data; both values are named.
    """
    if not path.exists():
        return False
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BildError(f"cannot read {path} ({error}); remove it to start anew") from None
    for name, value in _leaves(json.loads(json.dumps(work))):
        known: Any = begun
        for key in name:
            known = known.get(key) if isinstance(known, dict) else None
        if known != value:
            raise BildError(
                f"{path} is of other work: its {' '.join(name)} is {known!r}, not {value!r}; "
                "write to another place, or remove what is there"
            )
    return True


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, value) of everything in a nested mapping that is not a mapping with content."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from (((key, *rest), leaf) for rest, leaf in _leaves(value))
        else:
            yield (key,), value


def digest(parts: list[Any]) -> str:
    """A name for things that are equal: the SHA-256 of their JSON."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()

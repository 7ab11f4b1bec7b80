"""Files that are written whole or not at all, folders that can be written, work that goes on.

A function called `read_*` never writes. Whatever cannot be written (no room, no right, a device
where a file should be) ends in one sentence that names the place.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from filelock import FileLock, Timeout

from bild.errors import BildError
from bild.json_files import read_json

if sys.platform != "win32":
    import fcntl

UNFINISHED = ".unfinished-"  # how the names of scratch files and folders begin

Line = TypeVar("Line")

NO_LINKS = getattr(os, "O_NOFOLLOW", 0)  # not on Windows


# ------------------------------------------------------------------------------ JSON


def as_json(content: Any, indent: int | None = None) -> str:
    """JSON text, one line without `indent`; NaN and infinities, which JSON has not, as strings."""
    try:
        return json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):  # a NaN, or a mapping that is no dict
        content = finite(content)
    return json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)


def finite(content: Any) -> Any:
    """The same with "nan", "inf" and "-inf" in place of the floats that JSON cannot hold."""
    if isinstance(content, float):
        return content if math.isfinite(content) else str(content)
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return content


def as_read(content: Any) -> Any:
    """The same as a file that holds it would say."""
    return json.loads(as_json(content))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file for people, atomically."""
    write_atomically(path, as_json(content, indent=1) + "\n")


def digest(parts: Any) -> str:
    """A name for things that are equal: the SHA-256 of their JSON."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


# ------------------------------------------------------------------------------ whole files


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within the block a file that cannot be written is refused by name.

    Raises:
        BildError: whatever the system says of it, such as a disk that is full.
    """
    try:
        yield
    except OSError as error:
        raise BildError(
            f"cannot write {str(path)!r} ({error.strerror or error}); make room or choose another "
            "place"
        ) from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it is never seen half written; text as UTF-8.

    Raises:
        BildError: it cannot be written, or something else than a file stands there.
    """
    with replacing(path) as stream:
        stream.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes its place when the block has succeeded.

    Raises:
        BildError: as `write_atomically`.
    """
    check_kind(path)
    with writing(path):
        sweep(path.parent)
        # Beside it, under a name that nobody can guess and that cannot be there.
        scratch = path.with_name(f"{UNFINISHED}{path.name[:40]}-{secrets.token_hex(8)}")
        file = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINKS, 0o666)
        try:
            with os.fdopen(file, "wb") as stream:
                _hold(file)
                yield stream
                stream.flush()
                os.fsync(file)
                os.replace(scratch, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(scratch)
            raise


@cache
def sweep(folder: Path) -> None:
    """Remove the half-written files that killed processes have left in a folder.

    A process looks at a folder once. A file that somebody is still writing is held by its writer.
    """
    for left in folder.glob(f"{UNFINISHED}*"):
        with suppress(OSError):
            if stat.S_ISREG(left.lstat().st_mode):
                file = os.open(left, os.O_RDONLY | NO_LINKS)
                try:
                    if _hold(file):
                        os.unlink(left)
                finally:
                    os.close(file)


def _hold(file: int) -> bool:
    """Lock an open file until it is closed, or its process ends; False where another holds it."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # or the file system has no locks
        return False
    return True


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


# ------------------------------------------------------------------------------ what can be written


def check_writable(folder: Path, flag: str = "--output-dir") -> None:
    """Make a folder, or say in one sentence why it cannot be written.

    Args:
        folder: to make.
        flag: that chooses another.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:  # ValueError: a name that holds a zero byte
        reason = getattr(error, "strerror", None) or error
        raise BildError(
            f"cannot write to the folder {str(folder)!r} ({reason}); choose another with {flag}"
        ) from None


def check_file(path: Path, flag: str) -> None:
    """Make a file's folder, or say in one sentence why the file cannot be written.

    Args:
        path: of the file; it is not made.
        flag: that chooses another.
    """
    check_kind(path, flag)
    check_writable(path.parent, flag)


def check_kind(path: Path, flag: str = "") -> None:
    """Refuse to replace what is there, where it is not a file: a folder, link, device or pipe."""
    what = f"{flag} {str(path)!r}".strip()
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BildError(f"{what} cannot be written ({reason}); choose another") from None
    if stat.S_ISLNK(mode):
        raise BildError(f"{what} is a link; name the file that it stands for")
    if stat.S_ISDIR(mode):
        raise BildError(f"{what} is a folder; name a file")
    if not stat.S_ISREG(mode):
        raise BildError(f"{what} is a device or a pipe; name a file")


# ------------------------------------------------------------------------------ files of lines


def read_lines(path: Path, parse: Callable[[str], Line]) -> list[Line]:
    """What the lines of a file say; an unfinished last one, cut off with its process, is left out.

    Args:
        path: a file of JSON lines; no lines where it is missing.
        parse: makes something of a line.

    Raises:
        BildError: a line that says something else, by its number. Nothing is changed.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BildError(f"cannot read {path} ({error.strerror})") from None
    parsed: list[Line] = []
    # Not splitlines(): a text may hold U+2028 or U+0085, which JSON leaves as they are.
    *lines, last = content.split(b"\n")
    if last and not _is_torn(last):
        lines.append(last)
    for number, line in enumerate(lines, start=1):
        try:
            parsed.append(parse(line.decode("utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, BildError):
                raise BildError(f"{path}, line {number}: {error}") from None
            raise BildError(
                f"{path}, line {number} is not one that this version has written "
                f"({type(error).__name__}: {error}); nothing was changed: move the file away to "
                "start anew"
            ) from None
    return parsed


def append_lines(
    path: Path, entries: Iterable[Line], as_line: Callable[[Line], str], *, flush: bool = False
) -> Iterator[Line]:
    """The entries, each a line at the end of the file before it is handed on.

    A last line that a process left unfinished is taken off first.

    Args:
        path: made where it is missing.
        entries: what is appended.
        as_line: an entry as a line of JSON.
        flush: wait for each line to be on the disk, where other machines see it.

    Raises:
        BildError: as `write_atomically`.
    """
    check_kind(path)
    with writing(path):
        log = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINKS, 0o666)
    try:
        with writing(path):
            _end_with_a_whole_line(log)
        for entry in entries:
            with writing(path):
                _write_all(log, as_line(entry).encode("utf-8") + b"\n")
                if flush:
                    os.fsync(log)
            yield entry
    finally:
        os.close(log)


def _write_all(file: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]


def _end_with_a_whole_line(file: int) -> None:
    """Take a torn line off the end of a file of lines, or end one that only lacks its break."""
    with os.fdopen(os.dup(file), "rb+") as stream:
        content = stream.read()
        last = content[content.rfind(b"\n") + 1 :]
        if not last:
            pass
        elif _is_torn(last):
            stream.truncate(len(content) - len(last))
        else:
            stream.write(b"\n")
    os.lseek(file, 0, os.SEEK_END)


def _is_torn(line: bytes) -> bool:
    """Whether a line without its end is a part of one: no part of an object is valid JSON."""
    try:
        json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return True
    return False


# ------------------------------------------------------------------------------ work in a folder


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
    begun = read_json(path, "remove it to start anew")
    for name, value in leaves(as_read(work)):
        known: Any = begun
        for key in name:
            known = known.get(key) if isinstance(known, dict) else None
        if known != value:
            raise BildError(
                f"{path} is of other work: its {' '.join(name)} is {known!r}, not {value!r}; "
                "write to another place, or remove what is there"
            )
    return True


def leaves(tree: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, value) of everything in a nested mapping that is not a mapping with content."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from (((key, *rest), leaf) for rest, leaf in leaves(value))
        else:
            yield (key,), value

"""A file of outputs that a kill cannot spoil: its lines gather beside it until all are there.

`OUTPUT.partial` has a first line that says what work it is of, then the finished lines. The same
command goes on after the last whole one; another one is refused. When all are there, the file is
written whole and moved into place.

The finished file says what work it is of as well, in an attribute that the file system keeps beside
it (`user.*`, on Linux; where there are none, nothing is said): the same command, given once more,
finds that it is done, as after a kill between the file's last byte and the end of its process.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from bild.errors import BildError
from bild.files import NO_LINKS, as_json, as_read, check_file, leaves, replacing, writing

if sys.platform != "win32":
    import fcntl

BLOCK = 1 << 20
ATTRIBUTE = "user.bild.made"


def partial_of(output: Path) -> Path:
    """Where the finished lines of a file gather."""
    return output.with_name(f"{output.name}.partial")


def check_output(output: Path, overwrite: bool, piped: bool = False) -> None:
    """Refuse a file that cannot be written, or that is there already; as soon as that is known.

    Args:
        output: what is wanted.
        overwrite: whether it may be replaced.
        piped: whether the input is one that cannot be asked for again, so that no file is of it.

    Raises:
        BildError: the file is named, with the way out.
    """
    check_file(output, "--output")
    if overwrite or not output.exists() or partial_of(output).exists():
        return
    if piped or _finished(output) is None:
        raise _there_already(output)


def is_finished(output: Path, work: Mapping[str, Any]) -> bool:
    """Whether this very work has made a file, and it is as it was made.

    Raises:
        BildError: other work has made it, or it was changed since.
    """
    made = None if partial_of(output).exists() else _finished(output)
    if made is None:
        return False
    differs = _difference(made["work"], work)
    if differs is not None:
        raise _there_already(output, f", made by another command: {differs}")
    if made["sha256"] != _sha256(output):
        raise _there_already(output, ", made by this command, and was changed since")
    return True


def _there_already(output: Path, more: str = "") -> BildError:
    return BildError(f"--output {str(output)!r} is there already{more}; --overwrite replaces it")


class Partial:
    """The lines that are finished, in a file that this process alone writes.

    Attributes:
        done: how many there are.
    """

    def __init__(self, path: Path, stream: BinaryIO, done: int) -> None:
        self._path, self._stream, self.done = path, stream, done

    def add(self, line: str) -> None:
        """One more line, handed to the system at once."""
        with writing(self._path):
            self._stream.write(line.encode("utf-8") + b"\n")
            self._stream.flush()
        self.done += 1

    def sync(self) -> None:
        """Wait until all lines are on the disk, where other machines see them."""
        with writing(self._path):
            os.fsync(self._stream.fileno())

    def move_to(self, output: Path) -> None:
        """Write all lines to their place, whole or not at all, gzip where the name says so."""
        with writing(output):
            self._stream.flush()
        with replacing(output) as stream:
            self._stream.seek(0)
            work = json.loads(self._stream.readline())
            counted = _Digesting(stream)
            if output.suffix == ".gz":
                # No name and no time of day: equal texts make equal files.
                with gzip.GzipFile("", "wb", fileobj=counted, mtime=0) as packed:
                    shutil.copyfileobj(self._stream, packed, BLOCK)
            else:
                shutil.copyfileobj(self._stream, counted, BLOCK)
            _say_finished(stream, work, counted.sha256.hexdigest())
        with writing(self._path):
            os.unlink(self._path)


@contextmanager
def partial(output: Path, work: Mapping[str, Any], *, anew: bool = False) -> Iterator[Partial]:
    """What is finished of a file so far, begun where there is nothing yet.

    Args:
        output: the file that is wanted.
        work: all that decides its lines, as JSON values.
        anew: throw away what is finished.

    Raises:
        BildError: another process is at work on it, or what is there is of other work; the first
            value that differs is named.
    """
    with gathering(partial_of(output), output, work, anew=anew) as lines:
        yield lines


@contextmanager
def gathering(
    path: Path, output: Path, work: Mapping[str, Any], *, anew: bool = False
) -> Iterator[Partial]:
    """`partial` in a file of another name."""
    with writing(path):
        file = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINKS, 0o666)
    with os.fdopen(file, "rb+") as stream:
        if not _is_ours(path, file):
            raise BildError(
                f"another process is writing {str(output)!r}; wait for it, or name another file"
            )
        if anew:
            with writing(path):
                stream.truncate()
        yield Partial(path, stream, _begun(path, stream, work))


def _is_ours(path: Path, file: int) -> bool:
    """Whether this process has the open file for itself, and it is still the one in its place."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:  # finished by the other one in this moment
        return False


def _begun(path: Path, stream: BinaryIO, work: Mapping[str, Any]) -> int:
    """How many whole lines there are behind the first; what is torn at the end is cut off."""
    first = stream.readline()
    if not first.endswith(b"\n"):  # new, or killed as it was begun
        with writing(path):
            stream.seek(0)
            stream.truncate()
            stream.write(as_json(work).encode("utf-8") + b"\n")
            stream.flush()
        return 0
    check_same(path, first, work)
    end, count = stream.tell(), 0
    for line in stream:
        if not line.endswith(b"\n"):
            break
        end, count = end + len(line), count + 1
    with writing(path):
        stream.seek(end)
        stream.truncate()
    return count


def check_same(path: Path, first: bytes, work: Mapping[str, Any]) -> None:
    """Refuse a file whose first line says that it is of other work.

    Raises:
        BildError: the first value that differs is named.
    """
    try:
        differs = _difference(json.loads(first.decode("utf-8")), work)
    except (ValueError, AttributeError, RecursionError):
        raise BildError(f"{path} is not one that `bild generate` has begun; move it away") from None
    if differs is not None:
        raise BildError(
            f"{path} was begun by another command: {differs}; give that command again, write to "
            "another file, or remove it"
        )


def _difference(begun: Mapping[str, Any], work: Mapping[str, Any]) -> str | None:
    """Where the work of a file is not this work, the first value that differs, in words."""
    known, own = dict(leaves(begun)), dict(leaves(as_read(work)))
    for name in dict.fromkeys([*own, *known]):
        if own.get(name) != known.get(name):
            return f"its {' '.join(name)} is {known.get(name)!r}, not {own.get(name)!r}"
    return None


# ------------------------------------------------------------------------------ when it is done


class _Digesting:
    """A stream that is written, and the SHA-256 of what was."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.sha256 = stream, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.sha256.update(content)
        return self._stream.write(content)

    def flush(self) -> None:
        self._stream.flush()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _say_finished(stream: BinaryIO, work: Mapping[str, Any], sha256: str) -> None:
    """Keep with a file what work it is of, if the file system can."""
    if sys.platform == "linux":
        made = as_json({"work": work, "sha256": sha256}).encode("utf-8")
        with suppress(OSError):
            os.setxattr(stream.fileno(), ATTRIBUTE, made)


def _finished(output: Path) -> dict[str, Any] | None:
    """What a file says of itself; None where it says nothing."""
    if sys.platform != "linux":
        return None
    try:
        made = json.loads(os.getxattr(output, ATTRIBUTE, follow_symlinks=False))
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(made, dict) and isinstance(made.get("work"), dict) and "sha256" in made
    return made if whole else None


class Pipe:
    """The standard output in place of a file: lines go on at once, and nothing can be resumed."""

    def __init__(self) -> None:
        self.done = 0

    def add(self, line: str) -> None:
        """One more line."""
        sys.stdout.buffer.write(line.encode("utf-8") + b"\n")
        sys.stdout.buffer.flush()
        self.done += 1

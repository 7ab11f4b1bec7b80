"""A file of outputs that a kill cannot spoil: its lines gather beside it until all are there.

`OUTPUT.partial` has a first line that says what work it is of, then the finished lines. The same
command goes on after the last whole one; another one is refused. When all are there, the file is
written whole and moved into place.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from bild.errors import BildError
from bild.files import NO_LINKS, as_json, as_read, check_file, leaves, replacing, writing

if sys.platform != "win32":
    import fcntl

BLOCK = 1 << 20


def partial_of(output: Path) -> Path:
    """Where the finished lines of a file gather."""
    return output.with_name(f"{output.name}.partial")


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse a file that cannot be written, or that is there already and finished.

    Raises:
        BildError: the file is named, with the way out.
    """
    check_file(output, "--output")
    if output.exists() and not partial_of(output).exists() and not overwrite:
        raise BildError(f"--output {str(output)!r} is there already; --overwrite replaces it")


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
            self._stream.readline()
            if output.suffix == ".gz":
                # No name and no time of day: equal texts make equal files.
                with gzip.GzipFile("", "wb", fileobj=stream, mtime=0) as packed:
                    shutil.copyfileobj(self._stream, packed, BLOCK)
            else:
                shutil.copyfileobj(self._stream, stream, BLOCK)
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
        known = dict(leaves(json.loads(first.decode("utf-8"))))
    except (ValueError, AttributeError, RecursionError):
        raise BildError(f"{path} is not one that `bild generate` has begun; move it away") from None
    own = dict(leaves(as_read(work)))
    for name in dict.fromkeys([*own, *known]):
        if own.get(name) != known.get(name):
            raise BildError(
                f"{path} was begun by another command: its {' '.join(name)} is "
                f"{known.get(name)!r}, not {own.get(name)!r}; give that command again, write to "
                "another file, or remove it"
            )


class Pipe:
    """The standard output in place of a file: lines go on at once, and nothing can be resumed."""

    def __init__(self) -> None:
        self.done = 0

    def add(self, line: str) -> None:
        """One more line."""
        sys.stdout.buffer.write(line.encode("utf-8") + b"\n")
        sys.stdout.buffer.flush()
        self.done += 1

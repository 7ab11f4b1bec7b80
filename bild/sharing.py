"""Work that several processes do together, whichever of them die on the way.

A file stands for numbered units of work, a byte each. A process that does a unit holds a lock on
its byte, and sets it when what it made is written down. The system takes the locks from a process
that has ended, however it did, so that another can take over what it left. Nobody is in charge, and
long units keep nobody waiting: who has time takes the next one.

The locks are POSIX record locks, which hold between machines on a file system that has them (NFS 4,
Lustre with flock, GPFS, CephFS). Where they do not hold, units are done twice, with equal results.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Container, Iterator
from pathlib import Path

from bild.errors import BildError
from bild.files import NO_LINKS, check_kind, writing

if sys.platform != "win32":
    import fcntl

SLOTS = 10_000  # processes at most
PATIENCE = 600.0  # seconds without anything finished by anybody, at least
LOOK = 0.2  # seconds between two looks at what others do
HELD = (errno.EAGAIN, errno.EACCES)
DONE = b"\1"


class Places:
    """Numbered places in a file, of which this process holds some, as long as it lives.

    Only one may be open for a file in a process: closing any other would unlock what is held.

    Args:
        path: of the file.
        make: make it where it is missing.

    Raises:
        BildError: a file or file system that cannot be used.
        FileNotFoundError: it is missing, and is not to be made.
    """

    def __init__(self, path: Path, *, make: bool) -> None:
        if sys.platform == "win32":
            raise BildError("several processes share work on Linux and macOS alone; start one")
        check_kind(path)
        self.path = path
        if not make and not path.exists():
            raise FileNotFoundError(path)
        with writing(path):
            self._file = os.open(path, os.O_RDWR | NO_LINKS | (os.O_CREAT if make else 0), 0o666)

    def hold(self, place: int) -> bool:
        """Hold a place until it is released; False where another process holds it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except OSError as error:
            if error.errno in HELD:
                return False
            raise BildError(
                f"the file system of {str(self.path.parent)!r} has no locks "
                f"({error.strerror}), without which processes cannot share work; start one process"
            ) from None
        return True

    def release(self, place: int) -> None:
        """Let others hold it."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)

    def close(self) -> None:
        """Give up what is held."""
        os.close(self._file)


class Queue(Places):
    """Units of work, of which this process takes one after the other.

    Args:
        path: of the file; a process other than the first expects to find it.
        total: units.
        first: whether this process makes the file.

    Attributes:
        slot: the number of this process among those at work, from 1: the least that is free.

    Raises:
        BildError: a file or file system that cannot be used.
        FileNotFoundError: there is no file, so there is nothing left to do.
    """

    def __init__(self, path: Path, total: int, *, first: bool) -> None:
        super().__init__(path, make=first)
        self.total = total
        self._held: dict[int, float] = {}  # since when
        self._longest = 0.0  # seconds that a unit took
        self._cursor = 0
        with writing(path):
            if first and os.fstat(self._file).st_size < total:
                os.ftruncate(self._file, total)
        self.slot = next((k for k in range(1, SLOTS) if self.hold(total + k)), 0)
        if not self.slot:
            raise BildError(f"{SLOTS - 1} processes are at work on {path.parent}; start fewer")

    def begin(self, done: Container[int]) -> None:
        """Set what is done, by what is written down: the first process says so, once."""
        marks = b"".join(DONE if unit in done else b"\0" for unit in range(self.total))
        with writing(self.path):
            os.pwrite(self._file, marks, 0)

    @property
    def done(self) -> int:
        """How many units are done, by all."""
        return self._marks().count(DONE)

    def claim(self) -> int | None:
        """A unit that nobody else does, now this process' own; None where there is none to take."""
        marks = self._marks()
        for start, end in ((self._cursor, self.total), (0, self._cursor)):
            unit = marks.find(b"\0", start, end)
            while unit >= 0:
                if unit not in self._held and self.hold(unit):
                    # Only a lock makes sure that what another machine has written is seen.
                    if os.pread(self._file, 1, unit) == b"\0":
                        self._held[unit] = time.monotonic()
                        self._cursor = unit + 1
                        return unit
                    self.release(unit)
                unit = marks.find(b"\0", unit + 1, end)
        return None

    def finish(self, unit: int) -> None:
        """What this unit makes is written down."""
        with writing(self.path):
            os.pwrite(self._file, DONE, unit)
        self._longest = max(self._longest, time.monotonic() - self._held.pop(unit))
        self.release(unit)

    def units(self) -> Iterator[int]:
        """The units that this process does, until all are done by somebody.

        One counts as done when the next is asked for. Where others hold what is left, they are
        waited for, and it is taken over from those that end without having done it.

        Raises:
            BildError: others hold what is left, and nothing was finished for too long.
        """
        while (unit := self.next()) is not None:
            yield unit
            self.finish(unit)

    def next(self) -> int | None:
        """As `claim`, but waits for a unit to take; None when all are done.

        Raises:
            BildError: as `units`.
        """
        known, since = -1, time.monotonic()
        while (unit := self.claim()) is None:
            done = self.done
            if done == self.total:
                break
            if done != known:
                known, since = done, time.monotonic()
            if time.monotonic() - since > max(PATIENCE, 10 * self._longest):
                raise BildError(
                    f"other processes hold the last {self.total - known} of {self.total} parts of "
                    f"the work in {str(self.path.parent)!r} and finish none: one hangs, or its "
                    "machine is gone; end them, and the same command goes on from here"
                )
            time.sleep(LOOK)
        return unit

    def remove(self) -> None:
        """Remove the file; all is done."""
        self.path.unlink(missing_ok=True)

    def _marks(self) -> bytes:
        try:
            return os.pread(self._file, self.total, 0)
        except OSError as error:
            if error.errno != errno.ESTALE:  # the first process, on another machine, removed it
                raise
            return DONE * self.total

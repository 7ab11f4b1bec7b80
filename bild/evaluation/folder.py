"""The folder of a run: begun, stopped and gone on with, finished, reported.

A run is finished when its run.json is there, and reported when its result has been shown: one that
was cut off in between is reported by the next call, not done again.
"""

from __future__ import annotations

import errno
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bild.errors import BildError
from bild.files import (
    UNFINISHED,
    as_read,
    check_writable,
    digest,
    leaves,
    write_atomically,
    write_json,
    writing,
)
from bild.json_files import read_json

UNREPORTED = "unreported"  # lies in a run's folder until its result has been shown


@dataclass(frozen=True)
class Identity:
    """What makes two runs the same; both are JSON values.

    Attributes:
        work: all that decides the outputs.
        place: all that decides how long they take: machine, threads, engine, versions, commit.
    """

    work: dict[str, Any]
    place: dict[str, Any]

    def difference(self, other: Mapping[str, Any]) -> str:
        """Where another place differs from this one, as "threads 1, not 2"; empty where nowhere."""
        own, theirs = (dict(leaves(as_read(place))) for place in (self.place, other))
        for name in dict.fromkeys([*own, *theirs]):
            if own.get(name) != theirs.get(name):
                return f"{' '.join(name)} {theirs.get(name)!r}, not {own.get(name)!r}"
        return ""


@dataclass(frozen=True)
class RunFolder:
    """A run's own folder, locked by this process.

    Attributes:
        path: the folder.
        finished: its run.json is there, but was never shown to anybody.
    """

    path: Path
    finished: bool

    def reported(self) -> None:
        """Its result has been shown: the same work starts anew the next time."""
        (self.path / UNREPORTED).unlink(missing_ok=True)


@contextmanager
def open_run(folder: Path, identity: Identity) -> Iterator[RunFolder]:
    """A run's own folder within `folder`, locked until the block ends.

    One of the same identity that has not been finished and reported, or a new one. Where one was
    begun elsewhere (on other threads, by another commit, ...) it is left alone and named.

    Args:
        folder: of the runs of a task.
        identity: of this run.
    """
    for candidate in sorted(folder.glob("[!.]*/identity")):
        known = read_identity(candidate)
        if known is None or known["work"] != as_read(identity.work):
            continue
        run = candidate.parent
        lock = _locked(run)
        if lock is None:
            continue
        try:
            finished = (run / "run.json").exists()
            if finished and not (run / UNREPORTED).exists():
                continue
            difference = identity.difference(known["place"])
            if not difference:
                yield RunFolder(run, finished)
                return
            if not finished:
                print(
                    f"{run} was begun with {difference}: it stays as it is, and a new run begins",
                    file=sys.stderr,
                )
        finally:
            lock.release()
    with writing(folder):
        run, lock = _new_folder(folder, identity)
    try:
        yield RunFolder(run, finished=False)
    finally:
        lock.release()


def own_folder(parent: Path, name: str, identity: Identity) -> Path:
    """The folder of work that is never finished: what it holds is used again, and added to.

    Where the same work was done elsewhere (on other threads, by another commit, ...), that is named
    and left alone: nothing that was decoded or timed there is taken for what happens here.

    Args:
        parent: where it is made.
        name: how its name begins.
        identity: of the work.

    Raises:
        BildError: a folder that cannot be written.
    """
    own = as_read({"work": identity.work, "place": identity.place})
    folder = parent / f"{name}-{digest(own)[:12]}"
    check_writable(folder)
    if read_identity(folder / "identity") is None:
        for other in sorted(parent.glob(f"{name}-*/identity")):
            known = read_identity(other)
            if known is not None and known["work"] == own["work"]:
                print(
                    f"{other.parent} was begun with {identity.difference(known['place'])}: it "
                    f"stays as it is, and all is decoded and measured anew in {folder.name}",
                    file=sys.stderr,
                )
        write_json(folder / "identity", own)
    return folder


def difference_of(run: Path, identity: Identity) -> str:
    """Where the work or the place of a run's folder differ from these; empty where nowhere."""
    known = read_identity(run / "identity")
    if known is None:
        return "no identity that this version reads"
    work = Identity(work={}, place=identity.work).difference(known["work"])
    return work or identity.difference(known["place"])


def is_at_work(run: Path) -> bool:
    """Whether a process has a run's folder locked."""
    lock = _locked(run)
    if lock is not None:
        lock.release()
    return lock is None


def _new_folder(folder: Path, identity: Identity) -> tuple[Path, FileLock]:
    """A folder named by the time of day, and its lock.

    It gets its name when it is whole: one that lacks its identity would never be gone on with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _sweep_scratch(folder)
    lock = None
    while lock is None:  # another process may take an empty one for what a killed one has left
        scratch = folder / f"{UNFINISHED}{secrets.token_hex(8)}"
        scratch.mkdir()
        lock = _locked(scratch)
    write_atomically(scratch / UNREPORTED, "")
    write_json(scratch / "identity", {"work": identity.work, "place": identity.place})
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for name in chain([stamp], (f"{stamp}-{n}" for n in count(2))):
        try:
            scratch.rename(folder / name)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        else:
            return folder / name, lock
    raise AssertionError("there is always another number")


def _sweep_scratch(folder: Path) -> None:
    """Remove the folders that were not whole when their processes were killed."""
    for left in folder.glob(f"{UNFINISHED}*/"):
        if not (left / "lock").exists():
            with suppress(OSError):  # it is not empty: not one of these
                left.rmdir()
        elif (lock := _locked(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            lock.release()


def _locked(run: Path) -> FileLock | None:
    """A run's lock; None while another process has it."""
    lock = FileLock(run / "lock", blocking=False)
    try:
        lock.acquire()
    except (Timeout, OSError):
        return None
    return lock


def read_identity(path: Path) -> dict[str, Any] | None:
    """The identity in a file; None for one that this version has not written."""
    try:
        known = read_json(path, "its run is passed over")
    except BildError:
        return None
    return known if {"work", "place"} <= known.keys() else None

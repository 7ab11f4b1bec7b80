"""Making every record again: which there are, with what command, and which are still to be made."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from bild.errors import BildError
from bild.evaluation.environment import ROOT, head_commit
from bild.json_files import read_json

MANIFEST = "records.toml"


@dataclass(frozen=True)
class Entry:
    """A record and how it is made.

    Attributes:
        file: relative to the folder of records.
        command: a script with its arguments.
        minutes: about how long it takes, on two cores or on a GPU.
        needs: files and folders that the command reads and that do not ship.
        gpu: whether it is made on a GPU.
    """

    file: str
    command: str
    minutes: float
    needs: tuple[str, ...] = ()
    gpu: bool = False


def read_manifest(path: Path) -> list[Entry]:
    """The records in the order they are made.

    Raises:
        BildError: the file cannot be read, or an entry is not what it should be.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))["record"]
        return [Entry(**{**t, "needs": tuple(t.get("needs", ()))}) for t in tables]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BildError(f"{path} is not a list of records: {error}") from None


def in_place(text: str, data_root: str | None) -> str:
    """A command or path with {data} put in."""
    return text.replace("{data}", "$BILD_DATA_ROOT" if data_root is None else data_root)


def missing(entry: Entry, data_root: str | None) -> str | None:
    """What an entry needs and is not there; None if it can be made."""
    for need in entry.needs:
        path = in_place(need, data_root)
        if data_root is None and "{data}" in need:
            return "BILD_DATA_ROOT, which is not set"
        if not (ROOT / path).exists():
            return path
    if entry.gpu and not has_gpu():
        return "a GPU"
    return None


def has_gpu() -> bool:
    """Whether torch sees one."""
    import torch  # not for a list of what can be made without

    return torch.cuda.is_available()


def commit_of(record: Path) -> str | None:
    """The commit that made a record; None where there is no such record."""
    try:
        return read_json(record, "it is made again")["env"]["commit"]
    except (BildError, KeyError, TypeError):
        return None


def make(entry: Entry, results: Path, data_root: str | None) -> bool:
    """Run an entry's command; whether it made its record."""
    record = results / entry.file
    record.parent.mkdir(parents=True, exist_ok=True)
    script, *arguments = shlex.split(in_place(entry.command, data_root))
    command = [sys.executable, str(ROOT / script), *arguments, "--record", str(record)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def remake(
    results: Path, patterns: Sequence[str], data_root: str | None, *, only_list: bool = False
) -> None:
    """Make the records that this commit has not made yet, one after the other.

    Args:
        results: folder of the records and their manifest.
        patterns: of the files to make.
        data_root: what {data} stands for.
        only_list: print what there is, and make none.

    Raises:
        BildError: no such record, or some that could not be made.
    """
    entries = [e for e in read_manifest(results / MANIFEST) if _wanted(e, patterns)]
    if not entries:
        raise BildError(f"no record is called {' or '.join(patterns)}; --list names them")
    head = head_commit()
    left_out, failed = [], []
    for number, entry in enumerate(entries, start=1):
        lacks = missing(entry, data_root)
        made = head is not None and commit_of(results / entry.file) == head
        needs = f"about {entry.minutes:g} min" if lacks is None else f"needs {lacks}"
        state = "made" if made else needs
        print(f"{number}/{len(entries)} {entry.file}: {state}", flush=True)
        if only_list or made:
            continue
        if lacks is not None:
            left_out.append(f"{entry.file} ({needs})")
        elif not make(entry, results, data_root):
            failed.append(entry.file)
    if failed:
        raise BildError(f"not made: {', '.join(failed)}; the same command tries them again")
    if left_out:
        print(f"left out: {', '.join(left_out)}")


def _wanted(entry: Entry, patterns: Sequence[str]) -> bool:
    return any(fnmatch(entry.file, pattern) for pattern in patterns)

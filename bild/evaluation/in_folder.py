"""A run in its folder: decoded or gone on with, its record made of all samples, and reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from bild.evaluation.folder import Identity, open_run
from bild.evaluation.loop import Sample
from bild.evaluation.record import Record
from bild.files import check_writable

R = TypeVar("R", bound=Record)


def run_in_folder(
    folder: Path,
    identity: Identity,
    kind: type[R],
    decode_into: Callable[[Path], Iterator[Sample]],
    summarize: Callable[[list[Sample]], R],
    report: Callable[[R, list[Sample], Path], None] | None = None,
) -> tuple[R, Path]:
    """A run in a new folder of `folder`, or in an unfinished one of the same identity.

    One that was finished but never reported is reported, not done again.

    Args:
        folder: of the runs of a task.
        identity: of this run.
        kind: of its record.
        decode_into: yields the samples, given the path of samples.jsonl.
        summarize: makes the record of all of them.
        report: shows record, samples and the path of run.json.

    Returns:
        The record and the path of its run.json.

    Raises:
        BildError: a folder that cannot be written; as `samples`.
    """
    check_writable(folder)
    with open_run(folder, identity) as run:
        path = run.path / "run.json"
        found: list[Sample] = []
        try:
            found.extend(decode_into(run.path / "samples.jsonl"))
        except KeyboardInterrupt as stop:
            if not getattr(stop, "__notes__", ()):
                stop.add_note(f"{len(found)} examples are done and kept in {run.path}")
            raise
        if run.finished:
            record = kind.load(path)
        else:
            record = summarize(found)
            record.save(path)
        if report is not None:
            report(record, found, path)
        run.reported()
    return record, path

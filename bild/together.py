"""Numbered work with JSON values as results, by one process or several, gone on with when stopped.

The results of each process lie in a file of its own in one folder, beside the queue that says what
is done (`bild.sharing`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from bild.errors import BildError
from bild.files import append_lines, as_json, is_same_work, read_lines, sole_user, write_json
from bild.processes import agree, launch, part
from bild.sharing import Queue

Do = Callable[[int], Any]  # the result of a unit, as JSON values


def do_together(
    folder: Path,
    work: Mapping[str, Any],
    total: int,
    do: Do,
    seen: Callable[[int], None] = lambda done: None,
) -> list[Any] | None:
    """The results of all units in their order; None in another process than the first.

    Args:
        folder: of this work alone, made where it is missing; the caller removes it.
        work: all that decides the results, as JSON values.
        total: units.
        do: does one of them.
        seen: is told how many are done by now, by all.

    Raises:
        BildError: a folder that cannot be used, is at use, is not seen here or is of other work;
            others that hold what is left, and finish nothing.
    """
    if not launch().is_first:
        _help(work, total, do)
        return None
    folder.mkdir(parents=True, exist_ok=True)
    with sole_user(folder, "process"):
        if not is_same_work(folder / "work.json", work):
            write_json(folder / "work.json", work)
        queue = Queue(folder / "queue", total, first=True)
        try:
            queue.begin(_read(folder, total))
            agree(str(folder.absolute()))
            seen(queue.done)
            for _ in _do_own(folder, queue, do):
                seen(queue.done + 1)
            part()
            found = _read(folder, total)
        except KeyboardInterrupt as stop:
            stop.add_note(f"{queue.done} of {total} parts are done and kept in {folder}")
            raise
        finally:
            queue.close()
    lost = total - len(found)
    if lost:
        raise BildError(
            f"{lost} results are not in {folder}, though processes have written them: its file "
            "system does not show all machines the same; the same command goes on from here"
        )
    return [found[unit] for unit in range(total)]


def _help(work: Mapping[str, Any], total: int, do: Do) -> None:
    folder = Path(agree(""))
    if not folder.is_dir():
        raise BildError(
            f"process {launch().rank} does not see the folder {str(folder)!r}: processes share "
            "work through files; name one that all machines share"
        )
    is_same_work(folder / "work.json", work)
    try:
        queue = Queue(folder / "queue", total, first=False)
    except FileNotFoundError:  # it was all done when this process came
        return
    try:
        for _ in _do_own(folder, queue, do):
            pass
    finally:
        queue.close()


def _do_own(folder: Path, queue: Queue, do: Do) -> Iterator[Any]:
    """What this process does, each result written down, until all are by somebody."""
    units = queue.units()
    first = next(units, None)
    if first is None:  # no file is made for nothing
        return
    results = ([unit, do(unit)] for unit in chain([first], units))
    # Other machines must see a result before they see that it is there.
    path = folder / f"done-{queue.slot}.jsonl"
    yield from append_lines(path, results, as_json, flush=True)


def _read(folder: Path, total: int) -> dict[int, Any]:
    """The results of all processes so far, by unit."""

    def parse(line: str) -> tuple[int, Any]:
        unit, result = json.loads(line)
        if type(unit) is not int or not 0 <= unit < total:
            raise BildError(f"there is no part {unit!r} of {total}; move the file away")
        return unit, result

    found: dict[int, Any] = {}
    for path in sorted(folder.glob("done-*.jsonl")):
        for unit, result in read_lines(path, parse):
            found.setdefault(unit, result)
    return found

"""One file decoded by several processes: each takes a few lines after the other, the order is kept.

Beside `OUTPUT.partial` lie `OUTPUT.partial-1`, `OUTPUT.partial-2`, ..., what each process has
finished with the lines' numbers, and `OUTPUT.partial-queue`, from which they take lines
(`bild.sharing`). When all is decoded the first process puts it in order behind what
`OUTPUT.partial` holds. Any number of processes, one included, goes on where some were stopped.
"""

from __future__ import annotations

import json
import math
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from bild.errors import BildError
from bild.files import as_json
from bild.outputs.reading import FileJob, Text, read_texts
from bild.outputs.writing import check_same, gathering, partial, partial_of
from bild.processes import agree, launch, part
from bild.sharing import Queue

UNIT = 16  # lines that a process takes at a time
OFFSET = 40  # bits of the place in a file; above them stands which file

# (texts, to be given an output's line for each, in their order)
Decode = Callable[[Iterator[Text]], Iterator[str]]


def is_shared(output: Path) -> bool:
    """Whether a file is that of several processes, or was begun by some."""
    # A queue alone is what is left where a kill came after all lines were put in order.
    return launch().count > 1 or bool(_shards(output)) or _queue_of(output).exists()


def decode_together(
    decode: Decode,
    job: FileJob,
    work: Mapping[str, Any],
    total: int,
    seen: Callable[[int], None],
) -> None:
    """Decode a file's lines with the other processes; the first one writes the output.

    Args:
        decode: makes lines of texts.
        job: what is read and written, both files.
        work: all that decides the lines.
        total: lines.
        seen: is told how many lines all have done by now.

    Raises:
        BildError: files that cannot be used, are not seen here, or are of other work; others that
            hold what is left, and finish nothing.
    """
    output = Path(job.output).expanduser()
    count = math.ceil(total / UNIT)
    if not launch().is_first:
        _help(decode, job, work, count)
        return
    with partial(output, work) as lines:
        queue = Queue(_queue_of(output), count, first=True)
        try:
            known = Shards(output, work, total)
            queue.begin({unit for unit in range(count) if known.has(unit, lines.done)})
            agree(str(output.absolute()))
            seen(min(total, queue.done * UNIT))
            for _ in _decode_own(decode, job, output, work, queue):
                seen(min(total, queue.done * UNIT))
            part()
        except KeyboardInterrupt as stop:
            stop.add_note(f"about {min(total, queue.done * UNIT):,} of {total:,} texts are done")
            raise
        finally:
            queue.close()
        with Shards(output, work, total) as found:
            for number in range(lines.done, total):
                lines.add(found.line(number))
        for shard in _shards(output):
            shard.unlink()
        queue.remove()
        lines.move_to(output)


def _help(decode: Decode, job: FileJob, work: Mapping[str, Any], count: int) -> None:
    """Decode with the others, as another than the first."""
    output = Path(agree(""))
    begun = partial_of(output)
    try:
        with begun.open("rb") as stream:
            check_same(begun, stream.readline(), work)
    except FileNotFoundError:
        if output.exists():  # it was all done when this process came
            return
        raise BildError(
            f"process {launch().rank} does not see {str(begun)!r}: processes share a file through "
            "the folder that it is in; name one that all machines share"
        ) from None
    try:
        queue = Queue(_queue_of(output), count, first=False)
    except FileNotFoundError:
        return
    try:
        for _ in _decode_own(decode, job, output, work, queue):
            pass
    finally:
        queue.close()


def _decode_own(
    decode: Decode, job: FileJob, output: Path, work: Mapping[str, Any], queue: Queue
) -> Iterator[int]:
    """Decode what this process gets, until all is decoded by somebody; the units, as they end."""
    source, path = _Source(job), _shard(output, queue.slot)
    waiting: deque[tuple[int, int, bool]] = deque()  # line, its unit, whether the unit's last

    def texts(units: Iterator[int]) -> Iterator[Text]:
        for unit in units:
            own = list(source.unit(unit))
            for place, text in enumerate(own):
                waiting.append((unit * UNIT + place, unit, place == len(own) - 1))
                yield text

    first = queue.next()
    if first is None:  # no file is made for nothing
        return
    with gathering(path, output, work) as lines:
        while first is not None:
            # The next unit is taken while the last one is still being decoded.
            for line in decode(texts(chain([first], iter(queue.claim, None)))):
                number, unit, is_last = waiting.popleft()
                lines.add(as_json([number, line]))
                if is_last:
                    lines.sync()  # other machines must see the lines before they are told of them
                    queue.finish(unit)
                    yield unit
            first = queue.next()


class _Source:
    """The texts of a job's file by unit; it is read on where the last unit ended, if it can be."""

    def __init__(self, job: FileJob) -> None:
        self._job, self._line = job, 0
        self._texts = self._open()

    def unit(self, unit: int) -> Iterator[Text]:
        """The texts of a unit."""
        start = unit * UNIT
        if start < self._line:
            self._texts, self._line = self._open(), 0
        own = islice(self._texts, start - self._line, start - self._line + UNIT)
        self._line = start + UNIT
        return own

    def _open(self) -> Iterator[Text]:
        return read_texts(self._job.source, self._job.source_form, self._job.source_key)


class Shards:
    """Where each line lies in the files of the processes so far; eight bytes a line.

    Args:
        output: the file that is wanted.
        work: all that decides its lines.
        total: how many there are.

    Raises:
        BildError: a file of other work, or a line that no process has written.
    """

    def __init__(self, output: Path, work: Mapping[str, Any], total: int) -> None:
        self._total, self._where = total, array("q", [-1]) * total
        self._paths, self._stack = _shards(output), ExitStack()
        for number, path in enumerate(self._paths):
            with path.open("rb") as stream:
                self._read(number, path, stream, work)
        self._open: list[BinaryIO] = []

    def __enter__(self) -> Shards:
        self._open = [self._stack.enter_context(path.open("rb")) for path in self._paths]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def has(self, unit: int, before: int) -> bool:
        """Whether all lines of a unit from this line on are there."""
        lines = range(max(before, unit * UNIT), min(self._total, (unit + 1) * UNIT))
        return all(self._where[line] >= 0 for line in lines)

    def line(self, number: int) -> str:
        """An output's line.

        Raises:
            BildError: it is not there.
        """
        where = self._where[number]
        if where < 0:
            raise BildError(
                f"line {number + 1} was decoded and is in none of the processes' files: their file "
                "system does not show all machines the same; the same command goes on from here"
            )
        stream = self._open[where >> OFFSET]
        stream.seek(where & ((1 << OFFSET) - 1))
        line: str = json.loads(stream.readline())[1]
        return line

    def _read(self, number: int, path: Path, stream: BinaryIO, work: Mapping[str, Any]) -> None:
        first = stream.readline()
        if not first.endswith(b"\n"):  # killed as it was begun
            return
        check_same(path, first, work)
        at = stream.tell()
        for count, line in enumerate(stream, start=2):
            if not line.endswith(b"\n"):
                break
            own = _number(line, self._total)
            if own is None:
                raise BildError(f"{path}, line {count} is not one of this file; remove it")
            if self._where[own] < 0:
                self._where[own] = number << OFFSET | at
            at += len(line)


def _number(line: bytes, total: int) -> int | None:
    """Which line of the output a process has written; None where that is none."""
    try:
        number, text = json.loads(line.decode("utf-8"))
    except (ValueError, TypeError, RecursionError):
        return None
    whole = type(number) is int and isinstance(text, str)
    return number if whole and 0 <= number < total else None


def _queue_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial-queue")


def _shard(output: Path, process: int) -> Path:
    return output.with_name(f"{output.name}.partial-{process}")


def _shards(output: Path) -> list[Path]:
    """The files of all processes so far, in their order."""
    start = f"{output.name}.partial-"
    found = {p.name.removeprefix(start): p for p in output.parent.glob("*.partial-*")
             if p.name.startswith(start)}  # fmt: skip
    return [found[n] for n in sorted(filter(str.isdecimal, found), key=int)]

"""One run by several processes: each decodes what no other does, into a file of its own.

Beside `samples.jsonl` lie `samples-1.jsonl`, `samples-2.jsonl`, ..., one for each process, and
`queue`, from which they take batches of examples (`bild.sharing`). All arms decode an example in
one process, one after the other, so that its speed ratios are worth as much as in a lone run. When
all is decoded, the first process puts the lines in order into `samples.jsonl`. A run that stopped
in between is gone on with by any number of processes, one included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from bild.errors import BildError
from bild.evaluation.arms import Arm, ArmId
from bild.evaluation.folder import Identity, difference_of, is_at_work
from bild.evaluation.loop import Loop, Sample, check_sample, decode, read_samples
from bild.files import append_lines, read_lines, write_atomically
from bild.processes import agree, launch, part
from bild.sharing import LOOK, Queue

RECORD_SECONDS = 3600.0  # for the first process to make its record of all samples

Seen = Callable[[Sample, int], None]  # a sample decoded here, and how many lines all have by then
Ready = Callable[[], object]  # tells the others that there is something to do
Lines = dict[tuple[int, int], Sample]  # by pass and example


def is_shared(path: Path) -> bool:
    """Whether the run with this samples.jsonl is that of several processes, or was."""
    return launch().count > 1 or bool(_shards(path))


def read_shared(path: Path, ids: Sequence[ArmId], loop: Loop) -> Lines:
    """What all processes have decoded; of lines that two have written, the first.

    Raises:
        BildError: a line that is not of this run.
    """
    known = {(s.run, s.index): s for s in read_samples(path, ids, loop)}
    by_name = {str(arm): arm for arm in ids}
    for shard in _shards(path):
        lines = read_lines(shard, lambda line: Sample.from_json(line, by_name))
        for number, sample in enumerate(lines, start=1):
            line = f"{shard}, line {number}"
            if not (0 <= sample.index < len(loop.items) and 0 <= sample.run < loop.runs):
                raise BildError(
                    f"{line} holds example {sample.index} of pass {sample.run}, and there are "
                    f"{len(loop.items)} in {loop.runs} pass(es); move the file away"
                )
            check_sample(sample, line, ids, loop)
            known.setdefault((sample.run, sample.index), sample)
    return known


def decode_together(
    arms: Sequence[Arm], loop: Loop, path: Path, ready: Ready, seen: Seen | None = None
) -> list[Sample]:
    """Decode with the other processes, as the first of them; returns all samples in their order.

    Args:
        arms, loop, path: as of `bild.evaluation.loop.samples`; its folder holds no others.
        ready: is called when others may come to help.
        seen: is told of each example that is decoded here.

    Raises:
        BildError: as `samples`; others that hold what is left, and finish nothing.
    """
    ids = [arm.id for arm in arms]
    starts = list(loop.starts(0))
    queue = Queue(_queue_of(path), len(starts), first=True)
    try:
        known = read_shared(path, ids, loop)
        queue.begin({n for n, start in enumerate(starts) if not _missing(known, loop, start)})
        ready()
        for sample in _decode_own(arms, loop, path, queue):
            if seen is not None:
                seen(sample, min(loop.total, queue.done * loop.batch_size + 1))
        known = read_shared(path, ids, loop)
        part()
    except KeyboardInterrupt as stop:
        what = "examples" if loop.batch_size == 1 else "batches"
        stop.add_note(f"{queue.done} of {queue.total} {what} are done and kept in {path.parent}")
        raise
    finally:
        queue.close()
    lost = sum(len(_missing(known, loop, start)) for start in starts)
    if lost:
        raise BildError(
            f"{lost} lines are not in {path.parent}, though processes have written them: its file "
            "system does not show all machines the same; the same command goes on from here"
        )
    whole = [known[divmod(number, len(loop.items))] for number in range(loop.total)]
    write_atomically(path, "".join(f"{sample.to_json()}\n" for sample in whole))
    for shard in _shards(path):
        shard.unlink()
    queue.remove()
    return whole


def folder_of_first(identity: Identity) -> Path:
    """The run's folder, as the first process says, which is waited for.

    Args:
        identity: of the run, which must be that of the first process.

    Raises:
        BildError: a folder that is not seen here; models, data or a machine that differ.
    """
    folder = Path(agree(""))
    here = launch()
    if not folder.is_dir():
        raise BildError(
            f"process {here.rank} does not see the folder {str(folder)!r}: processes share a run "
            "through files; name one that all machines share with --output-dir"
        )
    differs = difference_of(folder, identity)
    if differs:
        raise BildError(
            f"process {here.rank} is not like the first, which has {differs}; give all processes "
            "the same, or seconds of unlike places would make one record"
        )
    return folder


def help_decode(arms: Sequence[Arm], loop: Loop, path: Path) -> None:
    """Decode with the others, as another than the first, until all is decoded by somebody.

    Arguments and errors as of `decode_together`.
    """
    try:
        queue = Queue(_queue_of(path), len(list(loop.starts(0))), first=False)
    except FileNotFoundError:  # it was all done when this process came
        return
    try:
        for _ in _decode_own(arms, loop, path, queue):
            pass
    finally:
        queue.close()


def wait_for_first(path: Path, folder: Path, what: str) -> None:
    """Wait for a file that the first process makes.

    Args:
        path: the file.
        folder: that the first process has locked while it is at work.
        what: the file holds.

    Raises:
        BildError: that process has ended without it, or takes too long.
    """
    deadline = time.monotonic() + RECORD_SECONDS
    while not path.exists():
        if not is_at_work(folder) and not path.exists():
            raise BildError(
                f"the first process has ended before {what} was in {str(folder)!r}; the same "
                "command goes on from here"
            )
        if time.monotonic() > deadline:
            raise BildError(
                f"the first process has not written {what} to {str(folder)!r} in "
                f"{RECORD_SECONDS / 60:.0f} minutes; the same command goes on from here"
            )
        time.sleep(LOOK)


def _decode_own(arms: Sequence[Arm], loop: Loop, path: Path, queue: Queue) -> Iterator[Sample]:
    """What this process decodes, each line written down, until all is decoded by somebody."""
    units = queue.units()
    first = next(units, None)
    if first is None:  # no file is made for nothing
        return
    starts = list(loop.starts(0))
    own = (starts[unit] for unit in chain([first], units))
    fresh = decode(arms, loop, own, process=queue.slot)
    # Other machines must see the lines before they see that they are done.
    yield from append_lines(_shard(path, queue.slot), fresh, Sample.to_json, flush=True)


def _missing(known: Lines, loop: Loop, start: int) -> list[tuple[int, int]]:
    """The lines of a batch that nobody has written."""
    lines = (divmod(start + n, len(loop.items)) for n in range(len(loop.batch(start))))
    return [line for line in lines if line not in known]


def _queue_of(path: Path) -> Path:
    return path.with_name("queue")


def _shard(path: Path, process: int) -> Path:
    return path.with_name(f"samples-{process}.jsonl")


def _shards(path: Path) -> list[Path]:
    """The files of all processes so far, in their order."""
    found = (p for p in path.parent.glob("samples-*.jsonl") if p.stem[8:].isdecimal())
    return sorted(found, key=lambda p: int(p.stem[8:]))

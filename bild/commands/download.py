"""Fetch what a task or a pair needs, so that everything else runs without a network.

    bild download xsum --dry-run             # what is needed, what is here, how large the rest is
    bild download xsum                       # large and small models, tokenizer, validation split
    bild download xsum aligned --yes         # of the small models the aligned alone; no question
    bild download --large owner/large --small owner/small

What is here already, in $BILD_MODELS_ROOT, $BILD_DATA_ROOT, a folder or the hub's cache, is not
fetched. More than 1 GB is asked about first. After it was stopped, the same command fetches the
files that are not complete. At the end all of it is looked up once more without the network.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bild.errors import BildError
from bild.files import as_json
from bild.parser import Parser, add_allow_pickle
from bild.tasks.registry import MODES, TASKS, Task, get

if TYPE_CHECKING:
    from bild.tasks.needs import Need, Place

ASKED_ABOVE = 10**9  # bytes


@dataclass(frozen=True)
class Row:
    """Something needed, and its state.

    Attributes:
        need: what it is.
        place: where it is; None when it has to be downloaded.
        lacking: name -> bytes of each file to download.
    """

    need: Need
    place: Place | None
    lacking: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(self.lacking.values())


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("task", nargs="?", choices=TASKS, help="whose models, tokenizer and data to fetch")
    add("mode", nargs="?", choices=MODES, help="which small model (default: all that it has)")
    add("--large", metavar="MODEL", help="a large model instead of a task: folder or hub id")
    add("--small", metavar="MODEL", help="a small model, likewise")
    add("--tokenizer", metavar="MODEL", help="a tokenizer, if none lies beside the large model")
    add("--dry-run", action="store_true", help="say what would be fetched, and fetch nothing")
    add("--yes", action="store_true", help="do not ask before more than 1 GB is fetched")
    add("--json", action="store_true", help="print what was found as one JSON object")
    add_allow_pickle(parser)
    return parser


def main() -> None:
    a = make_parser().parse_args()
    needs = wanted(a.task, a.mode, a.large, a.small, a.tokenizer)
    rows = [look(need) for need in needs]
    size = sum(row.size for row in rows)
    if not a.json:
        print(report(rows), flush=True)
    if not a.dry_run and any(row.place is None for row in rows):
        check_room(size)
        if size > ASKED_ABOVE and not a.yes and not agreed(size):
            raise BildError("nothing was fetched, as you said; --dry-run shows sizes alone")
        fetch(rows, silent=a.json)
        rows = [Row(row.need, offline(row.need), row.lacking) for row in rows]
        if not a.json:
            print("\nAll of it is here now, and is found without a network.")
    if a.json:
        print(as_json(content(rows)))


def wanted(
    task: str | None, mode: str | None, large: str | None, small: str | None, tokenizer: str | None
) -> tuple[Need, ...]:
    """What the command line asks for.

    Raises:
        BildError: it asks for nothing, or for a task and for models.
    """
    from bild.tasks.needs import needs_of_pair, needs_of_task

    if task is not None:
        if any(name is not None for name in (large, small, tokenizer)):
            raise BildError(
                f"task {task!r} names its own models; leave it out, or --large, --small and "
                "--tokenizer"
            )
        return needs_of_task(get(task), modes_of(get(task)) if mode is None else (mode,))
    needs = needs_of_pair(large, {} if small is None else {"small": small}, tokenizer)
    if not needs:
        raise BildError(
            f"nothing is named to download; give a task ({', '.join(TASKS)}), or --large and "
            "--small"
        )
    return needs


def modes_of(task: Task) -> tuple[str, ...]:
    """The modes that a task has a small model for."""
    has = {"unaligned": task.small, "aligned": task.aligned, "drafter": task.drafter}
    return tuple(mode for mode, name in has.items() if name is not None)


def look(need: Need) -> Row:
    """Whether it is here; what of it would have to be downloaded."""
    place = need.find()
    return Row(need, place, need.lacking() if place is None else {})


def check_room(size: int) -> None:
    """Refuse a download that the disk has no room for."""
    from huggingface_hub import constants

    from bild.tasks.needs import room_for

    cache = Path(constants.HF_HUB_CACHE)
    free = room_for(cache)
    if size > free:
        raise BildError(
            f"{as_bytes(size)} are to be fetched, and {str(cache)!r} has room for "
            f"{as_bytes(free)}; make room, or set HF_HOME to a folder that has it"
        )


def agreed(size: int) -> bool:
    """What the user says to a large download.

    Raises:
        BildError: nobody can be asked.
    """
    if not sys.stdin.isatty():
        raise BildError(
            f"{as_bytes(size)} would be fetched, which is asked about first, and standard input is "
            "no terminal; add --yes"
        )
    print(f"\nFetch {as_bytes(size)}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def fetch(rows: Sequence[Row], silent: bool) -> None:
    """Download what is not here; progress goes to standard error."""
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    if silent:
        disable_progress_bars()
    elif "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ:
        enable_progress_bars()
    for row in rows:
        if row.place is None:
            row.need.obtain()


def offline(need: Need) -> Place:
    """Where it is, found as without a network.

    Raises:
        BildError: it is not found.
    """
    place = need.find()
    if place is None:
        raise BildError(
            f"{need.role} {need.name!r} was fetched and is not found without the network; give the "
            "same command again"
        )
    return place


def report(rows: Sequence[Row]) -> str:
    """What is needed, for people: a line each, and the sum."""
    roles = max(len(row.need.role) for row in rows)
    names = max(len(row.need.name) for row in rows)
    lines = []
    for row in rows:
        said = f"{as_bytes(row.size)} to fetch" if row.place is None else "here already"
        lines.append(f"{row.need.role:{roles}}  {row.need.name:{names}}  {said}")
    size = sum(row.size for row in rows)
    all_here = all(row.place is not None for row in rows)
    total = "Nothing is to be fetched." if all_here else f"To fetch: {as_bytes(size)}."
    return "\n".join([*lines, "", total])


def content(rows: Sequence[Row]) -> dict[str, Any]:
    """What is needed, for programs: `fetch_bytes` is what this command had or has to fetch."""
    needed = [
        {
            "role": row.need.role,
            "name": row.need.name,
            "here": row.place is not None,
            "path": None if row.place is None else row.place.path,
            "revision": None if row.place is None else row.place.revision,
            "fetch_bytes": row.size,
        }
        for row in rows
    ]
    return {"needed": needed, "fetch_bytes": sum(row.size for row in rows)}


def as_bytes(count: int) -> str:
    """A number of bytes in the unit that suits it, with one digit behind the point."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"

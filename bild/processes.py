"""The processes that a launcher has started for one command, and how they meet.

`accelerate launch`, torchrun and the like tell each process its number in environment variables.
They meet once, to learn in which folder they work; from there on they speak through files there
(`bild.sharing`), so that one that dies takes no other with it.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from bild.errors import BildError, first_line

MEETING = 1800.0  # seconds: the first one may be downloading its models
PARTING = 60.0  # seconds: others that have not come by the end find all done
LOOK = 0.1  # seconds between two looks


@dataclass(frozen=True)
class Launch:
    """Which process this is.

    Attributes:
        rank: its number, from 0 over all machines.
        count: how many there are.
        local_rank: its number on its own machine, and that of its GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that speaks and writes for all."""
        return self.rank == 0


def launch() -> Launch:
    """As the launcher says; a process that none has started is alone.

    Raises:
        BildError: variables that say something impossible.
    """
    if _Meetings.alone:
        return Launch()
    names = {"rank": "RANK", "count": "WORLD_SIZE", "local_rank": "LOCAL_RANK"}
    given = {field: os.environ[name] for field, name in names.items() if name in os.environ}
    try:
        found = Launch(**{field: int(value) for field, value in given.items()})
    except ValueError:
        found = Launch(rank=-1)
    if not 0 <= found.rank < found.count or found.local_rank < 0:
        said = ", ".join(f"{names[field]}={value}" for field, value in given.items())
        raise BildError(f"the launcher says {said}, which is no number of a process; unset them")
    return found


def require_alone() -> None:
    """Refuse a launch of work that processes do not share: each would do all of it.

    Raises:
        BildError: a launcher has started several processes.
    """
    here = launch()
    if here.count > 1:
        raise BildError(
            f"a launcher has started {here.count} processes, and this is work of one: its arms run "
            "side by side in one process; start it without a launcher"
        )


def go_on_alone() -> None:
    """From here on this process is alone: what the others were started for is done."""
    part()
    _Meetings.alone = True


def agree(value: str, seconds: float = MEETING) -> str:
    """What the first process says, which waits for nobody; alone, what this one says.

    Args:
        value: of the first process; that of the others means nothing.
        seconds: to wait for the first one at most.

    Raises:
        BildError: it has said nothing in that time, or is gone.
    """
    here = launch()
    if here.count == 1:
        return value
    try:
        return _agree(_store(), here, value, seconds)
    except (RuntimeError, OSError) as error:  # also torch's own, which are RuntimeErrors
        raise BildError(
            f"process {here.rank} of {here.count} lost the others ({first_line(error)}); give the "
            "same command again"
        ) from None


def part() -> None:
    """Before the first process ends: others have heard it, where it is the one they hear it from.

    One that never comes is waited for `PARTING` seconds.
    """
    here = launch()
    if here.count == 1 or not _Meetings.held or _launcher_listens():
        return
    deadline = time.monotonic() + PARTING
    with suppress(RuntimeError, OSError):
        came = f"came-{_Meetings.held - 1}"
        while _store().add(came, 0) < here.count and time.monotonic() < deadline:
            time.sleep(LOOK)


def _agree(store: Any, here: Launch, value: str, seconds: float) -> str:
    number = _Meetings.held
    _Meetings.held += 1
    came, said = f"came-{number}", f"said-{number}"
    if here.is_first:
        store.set(said, value)
    deadline = time.monotonic() + seconds
    while not store.check([said]):  # not wait(), in which no signal is heard
        if time.monotonic() > deadline:
            raise BildError(
                f"the first of {here.count} processes has not said in {seconds:.0f} s where to "
                "work; give the same command again"
            )
        time.sleep(LOOK)
    found: bytes = store.get(said)
    store.add(came, 1)
    return found.decode()


def _launcher_listens() -> bool:
    """Whether the launcher has a server for its processes, as torchrun and so accelerate."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


class _Meetings:
    """How often the processes have met: each meeting has names of its own."""

    held = 0
    alone = False  # whether this one has left the others


@cache
def _store() -> Any:
    """Where the processes meet, as the launcher's variables say."""
    try:
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
    except ImportError:
        raise BildError("this build of torch cannot start several processes; start one") from None
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError):
        raise BildError(
            "several processes need MASTER_ADDR and MASTER_PORT, which `accelerate launch` sets; "
            "start them with it"
        ) from None
    store = TCPStore(
        address,
        port,
        is_master=launch().is_first and not _launcher_listens(),
        timeout=timedelta(seconds=MEETING),
        wait_for_workers=False,
        multi_tenant=True,
    )
    return PrefixStore(f"bild-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)

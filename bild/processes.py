"""The processes that a launcher has started for one command, and how they meet.

`accelerate launch`, torchrun and the like tell each process its number in environment variables.
They meet once, to learn in which folder they work; from there on they speak through files there
(`bild.sharing`), so that one that dies takes no other with it.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from bild.errors import BildError, first_line

MEETING = 1800.0  # seconds: the slowest may be downloading its models
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


def agree(value: str, seconds: float = MEETING) -> str:
    """What the first process says, when all have come; alone, what this one says.

    Args:
        value: of the first process; that of the others means nothing.
        seconds: to wait for the others at most.

    Raises:
        BildError: some have not come in that time, or the meeting place is gone.
    """
    here = launch()
    if here.count == 1:
        return value
    try:
        return _agree(_store(), here, value, time.monotonic() + seconds)
    except (RuntimeError, OSError) as error:  # also torch's own, which are RuntimeErrors
        raise BildError(
            f"process {here.rank} of {here.count} lost the others ({first_line(error)}); give the "
            "same command again"
        ) from None


def _agree(store: Any, here: Launch, value: str, deadline: float) -> str:
    number = _Meetings.held
    _Meetings.held += 1
    came, said = f"came-{number}", f"said-{number}"
    store.add(came, 1)
    while here.is_first and store.add(came, 0) < here.count:
        _require_time(deadline, f"{store.add(came, 0)} of {here.count} processes have come")
    if here.is_first:
        store.set(said, value)
    while not store.check([said]):  # not wait(), in which no signal is heard
        _require_time(deadline, f"the first of {here.count} processes has not said where to work")
    found: bytes = store.get(said)
    return found.decode()


def _require_time(deadline: float, what: str) -> None:
    if time.monotonic() > deadline:
        raise BildError(f"{what}, and none is waited for longer; give the same command again")
    time.sleep(LOOK)


class _Meetings:
    """How often the processes have met: each meeting has names of its own."""

    held = 0


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
    # torchrun, and so accelerate, has a server for its workers; elsewhere the first one is it.
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        address,
        port,
        is_master=not agent and launch().is_first,
        timeout=timedelta(seconds=MEETING),
        wait_for_workers=False,
        multi_tenant=True,
    )
    return PrefixStore(f"bild-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)

"""Several processes as `accelerate launch` starts them, in no time: forks of this one."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

from torch.distributed import TCPStore

TIME = 600  # seconds that processes may take, however busy the machine is


def run_processes(count: int, work: Callable[[int], None], seconds: float = TIME) -> list[int]:
    """Call `work` with each rank in a process of its own; the exit codes, -9 of a killed one.

    No launcher ends the others where one dies: they have to see to that themselves. Processes that
    are not done in time are ended, and fail the test.
    """
    # torchrun, and so accelerate, has such a server in the launcher.
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=_work, args=(work, rank, count, server.port))
        for rank in range(count)
    ]
    try:
        for child in children:
            child.start()
        deadline = time.monotonic() + seconds
        for child in children:
            child.join(max(0.0, deadline - time.monotonic()))
        codes = [child.exitcode for child in children]
    finally:
        for child in children:
            child.kill()
            child.join()
    assert None not in codes, f"not done after {seconds} s: {codes}"
    return codes


def together(folder: Path, rank: int, count: int) -> None:
    """Go on when all processes have come to this point."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"here-{rank}").touch()
    deadline = time.monotonic() + TIME
    while len(list(folder.glob("here-*"))) < count:
        assert time.monotonic() < deadline, "another process has not come"
        time.sleep(0.01)


def _work(work: Callable[[int], None], rank: int, count: int, port: int) -> None:
    os.environ.update(
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
    )
    work(rank)

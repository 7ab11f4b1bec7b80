"""How many threads the compiled engine shares its work among.

A child of fork() has none of its parent's threads. The compiled engine makes new ones, but torch's
own operations would wait for the old ones for ever; so a child starts with one thread.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

CGROUPS = Path("/sys/fs/cgroup")


def thread_count() -> int:
    """Torch's number of threads, but no more than this process may use cores at a time.

    A container or a batch system often grants fewer than the machine shows, and threads without a
    core of their own make everybody wait.
    """
    return max(1, min(torch.get_num_threads(), usable_cores(), quota_cores()))


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def quota_cores(root: Path = CGROUPS) -> int:
    """Whole cores of the control group's share of time; as many as there are where it has none."""
    for path in (root / "cpu.max", root / "cpu" / "cpu.cfs_quota_us"):  # version 2, version 1
        try:
            limit, *period = path.read_text(encoding="utf-8").split()
            if not period:
                period = path.with_name("cpu.cfs_period_us").read_text(encoding="utf-8").split()
            if limit not in ("max", "-1"):
                return max(1, int(limit) // int(period[0]))
        except (OSError, ValueError):
            continue
    return os.cpu_count() or 1

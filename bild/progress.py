"""Progress bars: for people who watch a terminal or a notebook, and not for the files of a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm


def progress_bar(
    name: str | None,
    total: int | None,
    *,
    done: int = 0,
    unit: str = "example",
    shown: bool = True,
    over: Iterable[Any] | None = None,
) -> tqdm:
    """A bar on stderr, which prints nothing where nobody watches it.

    Args:
        name: what is counted.
        total: how many there are; None where nobody knows.
        done: how many were done before.
        unit: what one is called.
        shown: whether it is wanted.
        over: to count while it is read; without it, call `update`.
    """
    off = not (shown and watched())
    return tqdm(over, name, total, initial=done, unit=unit, disable=off, file=sys.stderr)


def watched() -> bool:
    """Whether somebody sees a bar: at a terminal, or in a notebook, which draws its own."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules

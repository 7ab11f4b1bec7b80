"""Progress bars: on a terminal, and nowhere else."""

from __future__ import annotations

import io
import sys

import pytest

from bild.benchmark.run import _with_progress
from bild.evaluation.run import with_progress
from bild.progress import progress_bar


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def counted(bar):
    with bar:
        for _ in range(3):
            bar.update()


BARS = {
    "counted": lambda: counted(progress_bar("name", 3)),
    "read": lambda: list(progress_bar("name", 3, over=iter("abc"))),
    "eval": lambda: list(with_progress(iter(()), 3, 0, "name")),
    "benchmark": lambda: list(_with_progress(iter(()), 3, 0, True)),
}


@pytest.mark.parametrize("bar", BARS.values(), ids=BARS)
def test_a_bar_is_drawn_on_a_terminal_and_not_in_a_log(monkeypatch, bar):
    said = {}
    for terminal in (True, False):
        stream = Stream(terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        bar()
        said[terminal] = stream.getvalue()
    assert "/3 [" in said[True]
    assert said[False] == ""


def test_a_bar_that_is_not_wanted_is_not_drawn(monkeypatch):
    stream = Stream(True)
    monkeypatch.setattr(sys, "stderr", stream)
    counted(progress_bar("name", 3, shown=False))
    assert stream.getvalue() == ""


def test_a_bar_goes_on_where_it_was(monkeypatch):
    stream = Stream(True)
    monkeypatch.setattr(sys, "stderr", stream)
    progress_bar("name", 3, done=2).close()
    assert "2/3 [" in stream.getvalue()

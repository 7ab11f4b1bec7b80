"""Ctrl+C and SIGTERM: one sentence, and the process has ended within two seconds.

The first signal raises `Stopped` where the main thread is at work, so that what is at work can
close its files. Three things can keep it from getting through: an import, in which libraries catch
whatever is raised; a call into compiled code that takes its time; and somebody who catches it. In
an import, and at a second signal, the process ends at once, otherwise when its time is over. Ending
at once is as harmless as a kill, which loses no finished example.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECONDS = 1.5  # between the signal and the end, if nothing has ended by itself

RESUMES = "; the same command goes on from here"


class Stopped(KeyboardInterrupt):
    """The user or the system wants this process to end.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class _State:
    """What is known of the process: there is one, so there is one of these."""

    resumes = False
    received: int | None = None
    told = False


def listen() -> None:
    """From here on both signals are heard; those that the parent process ignores stay ignored."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _on_signal)


@contextmanager
def watched(resumes: bool) -> Iterator[None]:
    """Within the block the process ends in time whatever it does when a signal comes.

    Args:
        resumes: whether the same command goes on where it was stopped, so that this is said.
    """
    _State.resumes, _State.told = resumes, False
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    # The C handler writes the signal's number there at once, whatever the main thread does.
    before = signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(readable,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writable)


@contextmanager
def unhurried() -> Iterator[None]:
    """Within the block the process ends when the block does: a service finishes what it has begun.

    The block handles the signals itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.set_wakeup_fd(-1)  # the watcher of `watched` hears of no signal
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)


def leave(stop: KeyboardInterrupt) -> NoReturn:
    """End the process with the exit code that a shell gives one that a signal has ended."""
    if not isinstance(stop, Stopped):
        sys.exit(128 + signal.SIGINT)
    # At once: Python takes seconds to take down large libraries on a busy machine.
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(128 + stop.number)


def tell(notes: tuple[str, ...] = ()) -> None:
    """Say once, on stderr, that the process was stopped, and how to go on.

    Args:
        notes: what was done so far.
    """
    if _State.told:
        return
    _State.told = True
    if os.environ.get("RANK", "0") != "0":  # one of several processes says it
        return
    after = f" ({'; '.join(notes)})" if notes else ""
    more = f"{RESUMES}:\n{command()}" if _State.resumes else ""
    text = f"\nstopped{after}{more}\n"
    # Not print, nor its buffer if that is in use: the signal may have come in the middle of one.
    with suppress(OSError, ValueError, RuntimeError, AttributeError):
        sys.stderr.flush()
    try:
        os.write(sys.stderr.fileno(), text.encode("utf-8", "backslashreplace"))
    except (OSError, ValueError, AttributeError):  # a stderr that is no file
        print(text, end="", file=sys.stderr)


def command() -> str:
    """The command line of this process, to be pasted."""
    script, *rest = sys.argv
    if script.startswith("bild "):  # as `bild.commands.main` calls a command
        return shlex.join([*script.split(), *rest])
    python = ["python"] if Path(script).suffix == ".py" else []
    return shlex.join([*python, script, *rest])


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _State.told:
        return  # the sentence is being said, and the process ends behind it
    if _State.received is not None or _is_importing(frame):
        _leave(number)
    _State.received = number
    raise Stopped(number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _watch(readable: int) -> None:
    with os.fdopen(readable, "rb", buffering=0) as signals:
        while received := signals.read(1):
            if received[0] in SIGNALS:
                time.sleep(SECONDS)
                _leave(received[0])


def _leave(number: int) -> NoReturn:
    try:
        tell()
    finally:  # whatever became of the sentence
        os._exit(128 + number)


def _forget() -> None:
    """In a child, whose signals are its own affair."""
    signal.set_wakeup_fd(-1)
    if signal.getsignal(signal.SIGINT) is _on_signal:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGTERM) is _on_signal:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)

"""Compiles the C++ of the fast engine on the machine it runs on, keeps what it made, and loads it.

The library is built once for a machine, compiler and version of the source, and kept in
`$BILD_CACHE`, else in `$XDG_CACHE_HOME/bild` or `~/.cache/bild`. The compiler is `$CXX`, else the
first of c++, g++, clang++ that is there.

A library is code that this process will run: it is loaded only from a folder that no other user can
write to, and only while its content still has the SHA-256 that its name carries.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bild.errors import BildError

SOURCES = Path(__file__).with_name("native")
MAIN = "t5.cpp"
FLAGS = (
    *("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno"),
    *("-pthread", "-fPIC", "-shared"),
)
NATIVE = "-march=native"
OPTIONAL_FLAGS = ((NATIVE,), ())  # tried in turn: a compiler may not know its own processor
WITHOUT = {NATIVE: "the instructions of this processor"}
VERSION_SECONDS, COMPILE_SECONDS = 30.0, 300.0
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
WORKSHOP = "bild-compiling-"  # where a compiler writes, beside the libraries
WAYS_OUT = "name another C++ compiler in CXX, or use compile=False"


@dataclass(frozen=True)
class Library:
    """Compiled code.

    Attributes:
        calls: its functions.
        path: the file.
        lacks: of the optional flags those that it was compiled without.
    """

    calls: ctypes.CDLL
    path: Path
    lacks: tuple[str, ...]

    def __str__(self) -> str:
        """As it stands in records: a library that lacks something is slower than another."""
        return f"compiled without {' and '.join(self.lacks)}" if self.lacks else "compiled"


@cache
def load() -> Library:
    """The library, compiled if it is not there yet. It warns of one that was compiled for less.

    Raises:
        BildError: there is no compiler, it fails or takes too long, or nobody but the user must be
            able to write to the cache folder and that is not so. Its complaint is quoted.
    """
    compiler = find_compiler()
    if compiler is None:
        raise BildError(
            "no C++ compiler found for the compiled engine: install g++ or clang++, "
            "name one in CXX, or use compile=False"
        )
    folder = _cache_folder()
    name = f"t5-{_key(compiler)}"
    library = _open_kept(folder, name)
    if library is None:
        path = _compile(compiler, folder, name)
        try:
            library = _open(path)
        except (OSError, AttributeError) as error:
            path.unlink(missing_ok=True)
            raise BildError(
                f"the library that {compiler[0]!r} made in {folder} cannot be loaded: {error}; "
                f"name another folder in BILD_CACHE, {WAYS_OUT}"
            ) from error
    if library.lacks:
        missing = " nor ".join(WITHOUT[flag] for flag in library.lacks)
        warnings.warn(
            f"the compiled engine is slower than it could be: {compiler[0]!r} refuses "
            f"{' and '.join(library.lacks)}, so that it does not use {missing}",
            stacklevel=2,
        )
    return library


def find_compiler() -> tuple[str, ...] | None:
    """The command of the C++ compiler to use, in words; None if there is none.

    Raises:
        BildError: CXX is no command.
    """
    named = os.environ.get("CXX", "").strip()
    if not named:
        return next(((c,) for c in ("c++", "g++", "clang++") if shutil.which(c)), None)
    try:
        command = tuple(shlex.split(named))
    except ValueError as error:
        raise BildError(f"CXX is {named!r}, which is no command ({error}); correct it") from None
    return command if command and shutil.which(command[0]) else None


def _key(compiler: Sequence[str]) -> str:
    """What a library depends on: source, flags, compiler and processor."""
    files = sorted(p for p in SOURCES.iterdir() if p.suffix in (".cpp", ".h"))
    sources = [path.read_text(encoding="utf-8") for path in files]
    _, version = _run([*compiler, "--version"], VERSION_SECONDS)
    parts = (*sources, repr((FLAGS, OPTIONAL_FLAGS)), *compiler, version, _processor())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """What `-march=native` depends on: a home folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(
        sorted({x for x in lines if x.startswith(("model name", "flags", "Features"))})
    )


# ------------------------------------------------------------------------------ the cache


def _cache_folder() -> Path:
    try:
        named = os.environ.get("BILD_CACHE", "").strip()
        if named:
            return Path(named).expanduser().absolute()
        shared = os.environ.get("XDG_CACHE_HOME", "").strip()
        return (Path(shared) if shared else Path.home() / ".cache").absolute() / "bild"
    except RuntimeError as error:  # this user has no home
        raise BildError(
            f"no folder to keep the compiled engine in ({error}); "
            "name one in BILD_CACHE, or use compile=False"
        ) from error


def _check_private(folder: Path) -> None:
    """Refuse a folder from which another user could have this one run his code."""
    found = folder.stat()
    why = None
    if found.st_uid not in (0, os.geteuid()):
        why = "belongs to another user"
    elif found.st_mode & WRITABLE_BY_OTHERS:
        why = "can be written by others"
    if why is not None:
        raise BildError(
            f"the compiled engine is not kept in {folder}, which {why}: make it private to you, "
            "name another folder in BILD_CACHE, or use compile=False"
        )


def _open_kept(folder: Path, name: str) -> Library | None:
    """A library of this name from the cache; None if there is none that can be loaded."""
    try:
        if not folder.exists():
            return None
        _check_private(folder)
        for path in sorted(folder.glob(f"{name}-*.so")):
            if _is_whole(path):
                return _open(path)
    except (OSError, AttributeError):
        pass  # it is made anew, once: it may come from another system, or be unreadable
    return None


def _is_whole(path: Path) -> bool:
    """Whether a file is this user's own and what it was made as: half of one would end the process
    when it is read, without a word."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        return False
    theirs = found.st_uid not in (0, os.geteuid()) or found.st_mode & WRITABLE_BY_OTHERS
    if theirs:
        return False
    return path.stem.rpartition("-")[2] == _digest(path)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _open(path: Path) -> Library:
    calls = ctypes.CDLL(str(path))
    calls.bild_flags.argtypes, calls.bild_flags.restype = (), ctypes.c_char_p
    flags = calls.bild_flags().decode().split()
    lacks = tuple(flag for flag in OPTIONAL_FLAGS[0] if flag not in flags)
    return Library(calls, path, lacks)


# ------------------------------------------------------------------------------ compiling


def _compile(compiler: Sequence[str], folder: Path, name: str) -> Path:
    """The path of the new library: its name carries the digest of its content, so that both are
    there at once or neither is. Two processes may compile at once; either's will do."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(folder)
        _sweep(folder)
        workshop = Path(tempfile.mkdtemp(prefix=WORKSHOP, dir=folder))
    except OSError as error:
        raise BildError(
            f"cannot write the compiled engine to {folder} ({error.strerror}); "
            "name another folder in BILD_CACHE, or use compile=False"
        ) from error
    try:
        made = workshop / "library.so"
        for extra in OPTIONAL_FLAGS:
            flags = f'-DBILD_FLAGS="{" ".join(extra)}"'
            source = str(SOURCES / MAIN)
            command = [*compiler, *FLAGS, *extra, flags, source, "-o", str(made)]
            code, printed = _run(command, COMPILE_SECONDS)
            if code == 0:
                path = folder / f"{name}-{_digest(made)}.so"
                os.replace(made, path)
                return path
        raise BildError(
            f"the C++ compiler {compiler[0]!r} cannot compile the engine: "
            f"{_complaint(printed, code)}; {WAYS_OUT}"
        )
    except OSError as error:
        raise BildError(
            f"the C++ compiler {compiler[0]!r} left no library in {folder} ({error.strerror}); "
            f"name another folder in BILD_CACHE, {WAYS_OUT}"
        ) from error
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what compilers left that were killed: no compilation takes as long."""
    for left in folder.glob(f"{WORKSHOP}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > 2 * COMPILE_SECONDS * len(OPTIONAL_FLAGS):
                shutil.rmtree(left, ignore_errors=True)


def _run(command: Sequence[str], seconds: float) -> tuple[int, str]:
    """Exit code and output of a command, which is ended with all its children if it takes longer.

    Raises:
        BildError: it cannot be started, or it takes longer.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise BildError(
            f"the C++ compiler {command[0]!r} cannot be started ({error.strerror}); {WAYS_OUT}"
        ) from error
    with process:
        try:
            printed, _ = process.communicate(timeout=seconds)
        except BaseException as error:  # an interrupt too: a compiler's children would stay
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise BildError(
                f"the C++ compiler {command[0]!r} has not finished after {seconds:g} s; {WAYS_OUT}"
            ) from None
    return process.returncode, printed


def _complaint(printed: str, code: int) -> str:
    """The line of a compiler's output that says what is wrong; notes often stand before it."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [f"exit code {code}"])[0]

"""What the facts mean, and what to do about each: plain decisions, nothing is looked up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from bild.doctor.facts import Facts

Level = Literal["ok", "note", "error"]
GIGABYTE = 10**9
LITTLE_MEMORY, LITTLE_DISK = 4 * GIGABYTE, 10 * GIGABYTE


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what.
        level: "ok"; "note": works, but slower or less of it; "error": does not work.
        says: what was found.
        advice: what to do about it; empty for nothing.
    """

    subject: str
    level: Level
    says: str
    advice: str = ""


def judge(facts: Facts) -> list[Finding]:
    """All findings, in the order that people read them."""
    return [
        *_installation(facts),
        *_engine(facts),
        *_threads(facts),
        *_room(facts),
        _graphics(facts),
        *_hub(facts),
    ]


def _installation(facts: Facts) -> Iterator[Finding]:
    said = ", ".join(f"{name} {number}" for name, number in facts.versions.items())
    lacking = [name for name, number in facts.versions.items() if number == "not installed"]
    if facts.imports:
        yield Finding(
            "versions",
            "error",
            f"{said}; the models cannot be imported: {facts.imports}",
            "where torch was installed anew, torchvision and torchaudio must fit it: pip uninstall "
            "torchvision torchaudio, or install those of the same release",
        )
    elif lacking:
        yield Finding("versions", "error", said, f"pip install {' '.join(lacking)}")
    else:
        yield Finding("versions", "ok", said)
    if facts.missing:
        parts = "; ".join(f"[{extra}] lacks {', '.join(m)}" for extra, m in facts.missing.items())
        names = ",".join(facts.missing)
        advice = f"pip install 'big-little-decoder[{names}]' (or -e '.[{names}]') for those parts"
        yield Finding("extras", "note", parts, advice)
    else:
        yield Finding("extras", "ok", "all installed")


def _engine(facts: Facts) -> Iterator[Finding]:
    if facts.compiled:
        whole = "without" not in facts.engine
        advice = "" if whole else "name a newer g++ or clang++ in CXX"
        said = f"{facts.engine}, by {facts.compiler}"
        yield Finding("engine", "ok" if whole else "note", said, advice)
    else:
        yield Finding(
            "engine",
            "note",
            f"not compiled, so it runs in PyTorch, several times slower: {facts.engine}",
            "install g++ or clang++, or name one in CXX",
        )
    names = ", ".join(facts.instructions) or "none that the engine knows"
    fast = {"avx2", "asimd"} & set(facts.instructions)
    slow = "" if fast else "int8 and bfloat16 gain little here"
    yield Finding("instructions", "ok" if fast else "note", names, slow)


def _threads(facts: Facts) -> Iterator[Finding]:
    may = min(facts.usable, facts.quota)
    cores = f"{facts.cores} core(s), {facts.usable} usable, quota {facts.quota}"
    said = f"{facts.threads} of torch; {cores}"
    if facts.threads > may:
        yield Finding(
            "threads",
            "note",
            said,
            f"set OMP_NUM_THREADS={may}: more threads than cores wait for each other",
        )
    else:
        yield Finding("threads", "ok", said)
    waiting = facts.threads > 1 and facts.wait_policy.lower() != "passive"
    if facts.load is not None and facts.load > facts.cores and waiting:
        yield Finding(
            "load",
            "note",
            f"{facts.load:.1f} processes want {facts.cores} core(s)",
            "set OMP_NUM_THREADS=1, or OMP_WAIT_POLICY=passive; time nothing meanwhile",
        )


def _room(facts: Facts) -> Iterator[Finding]:
    if facts.memory is not None and facts.free_memory is not None:
        little = facts.free_memory < LITTLE_MEMORY
        advice = (
            "T5-large and mT5-large need 4 to 6 GB; the shipped pair does not" if little else ""
        )
        said = f"{_gigabytes(facts.free_memory)} free of {_gigabytes(facts.memory)}"
        yield Finding("memory", "note" if little else "ok", said, advice)
    if facts.free_disk is not None:
        little = facts.free_disk < LITTLE_DISK
        advice = "a published task takes 3 to 6 GB; HF_HOME moves the hub's cache" if little else ""
        said = f"{_gigabytes(facts.free_disk)} free for models"
        yield Finding("disk", "note" if little else "ok", said, advice)


def _graphics(facts: Facts) -> Finding:
    if facts.gpus:
        said = "; ".join(f"{name}, {_gigabytes(size)}" for name, size in facts.gpus)
        return Finding("GPU", "ok", said)
    return Finding("GPU", "ok", "none that torch sees; everything runs on the CPU")


def _hub(facts: Facts) -> Iterator[Finding]:
    said = "offline (HF_HUB_OFFLINE)" if facts.offline else "asked for what is not in its cache"
    yield Finding("hub", "ok", said)
    for name in facts.roots:
        yield Finding("hub", "error", f"{name} names no folder", f"correct {name}, or unset it")


def _gigabytes(size: int) -> str:
    return f"{size / GIGABYTE:.1f} GB"

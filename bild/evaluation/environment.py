"""Where a record comes from: code, libraries, machine; and whether a record may be made at all.

Nothing here imports torch before it is asked about it, so that a tree that is not clean is refused
at once.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from bild.errors import BildError

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("torch", "transformers", "numpy")
RECORDS = re.compile(r"results/.+\.(json|svg)")  # made by the code, never read by what is measured


@dataclass(frozen=True)
class PeakMemory:
    """Largest memory use of a process so far, in bytes; None where it is not known.

    Attributes:
        host_bytes: of the process.
        device_bytes: of its tensors on the GPU.
    """

    host_bytes: int | None
    device_bytes: int | None


@dataclass(frozen=True)
class Environment:
    """Code version, libraries and hardware; no host names, no paths.

    Attributes:
        commit: of this repository; None where the package runs outside its own checkout.
        dirty: whether files differ from that commit or are not known to it, records aside.
        code: SHA-256 of the package's own source files.
        python: its version.
        versions: of the libraries that took part.
        device: "cpu", "cuda:0", ...
        processor: name and number of the CPU's cores.
        gpu: its name, where it is the device.
        threads: of torch and of the fast engine.
        wait_policy: what OMP_WAIT_POLICY said; None where nothing.
        system: operating system and architecture.
        load_average: processes that wanted the CPU in the minute before the start.
        resumed_after: examples that an earlier process of the same environment had decoded.
        peak_memory: at the end.
    """

    commit: str | None
    dirty: bool | None
    code: str
    python: str
    versions: dict[str, str]
    device: str
    processor: str
    gpu: str | None
    threads: int
    wait_policy: str | None
    system: str
    load_average: float | None
    resumed_after: int = 0
    peak_memory: PeakMemory | None = None

    @property
    def hardware(self) -> str:
        """What the models ran on, by name."""
        return self.processor if self.gpu is None else self.gpu

    @property
    def workplace(self) -> str:
        """The GPU, or threads of the processor, as notes under tables have it."""
        return f"{self.threads} thread(s) of {self.processor}" if self.gpu is None else self.gpu

    def place(self) -> dict[str, object]:
        """All that decides how long work takes: what is timed in two places is not one run."""
        names = (
            "commit", "code", "python", "versions", "device", "processor", "gpu", "threads",
            "wait_policy", "system",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


def environment(device: torch.device, libraries: Sequence[str] = ()) -> Environment:
    """What runs now.

    Args:
        device: where the models are.
        libraries: that take part besides `LIBRARIES`.
    """
    import torch

    changes = changed_files()
    used = (*LIBRARIES, *libraries)
    return Environment(
        commit=head_commit(),
        dirty=None if changes is None else bool(changes),
        code=code_digest(),
        python=platform.python_version(),
        versions={name: found for name in used if (found := _version(name)) is not None},
        device=str(device),
        processor=_processor(),
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        threads=torch.get_num_threads(),
        wait_policy=os.environ.get("OMP_WAIT_POLICY"),
        system=f"{platform.system()} {platform.machine()}",
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    )


def peak_memory(device: torch.device) -> PeakMemory:
    """Largest memory use so far."""
    import torch

    host: int | None = None
    if sys.platform != "win32":
        import resource  # not on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return PeakMemory(host, gpu)


# ------------------------------------------------------------------------------ the tree


def require_clean_tree(record: Path) -> None:
    """Refuse to make a record whose commit would not say which code made it.

    Args:
        record: the file that was asked for.

    Raises:
        BildError: the package does not run in its own git checkout, or files there differ from the
            commit; they are named.
    """
    changes = changed_files()
    without = "or leave --record out: the run's own folder holds the same figures"
    if changes is None:
        raise BildError(
            f"--record {str(record)!r} must name the commit it was made with, and this package "
            f"does not run in a git checkout of its own: clone the repository, {without}"
        )
    if changes:
        more = f" and {len(changes) - 5} more" if len(changes) > 5 else ""
        raise BildError(
            f"--record {str(record)!r} must name the commit it was made with, and "
            f"{', '.join(changes[:5])}{more} differ from it: commit or stash them, {without}"
        )


def is_tracked(path: Path) -> bool:
    """Whether a file is one of this repository's."""
    return _is_ours() and _git("ls-files", "--error-unmatch", str(path.resolve())) is not None


def changed_files() -> list[str] | None:
    """What differs from the commit or is not known to it; None outside our own checkout.

    Records do not count: one is made after the other, from one commit.
    """
    if not _is_ours():
        return None
    listed = _git("status", "--porcelain", "--untracked-files=all", "--no-renames", "-z")
    if listed is None:
        return None
    names = [entry[3:] for entry in listed.split("\0") if entry]
    return [name for name in names if not RECORDS.fullmatch(name)]


def head_commit() -> str | None:
    """The commit that is checked out; None outside our own checkout."""
    return _git("rev-parse", "HEAD") if _is_ours() else None


def code_digest() -> str:
    """SHA-256 of the package's source files, whether or not git knows them."""
    package = ROOT / "bild"
    found = hashlib.sha256()
    for path in sorted(p for p in package.rglob("*") if p.suffix in (".py", ".cpp", ".h")):
        content = path.read_bytes()
        found.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()


def _is_ours() -> bool:
    """Whether the package lies in its own checkout, not in some other repository's folder."""
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT:
        return False
    return _git("ls-files", "--error-unmatch", "bild/__init__.py") is not None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip("\n")


def _version(library: str) -> str | None:
    if library == "torch":  # with the build, as +cpu
        import torch

        return torch.__version__
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    if names:
        return f"{names[0]} x {len(names)}"
    return f"{platform.processor() or platform.machine()} x {os.cpu_count()}"

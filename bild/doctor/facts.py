"""What there is on this machine: looked up, not judged. The engine is compiled if it is not yet."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from bild._version import __version__
from bild.errors import BildError, first_line

LIBRARIES = ("torch", "transformers", "numpy", "safetensors")
# What each part of the package needs beyond the core, by module.
EXTRAS = {
    "eval": ("datasets", "sacrebleu", "rouge_score", "pyarrow", "sentencepiece"),
    "show": ("jinja2", "matplotlib", "rich", "tabulate"),
    "train": ("accelerate",),
    "search": ("optuna", "scipy"),
    "bench": ("ctranslate2",),
    "web": ("gradio",),
    "serve": ("fastapi", "uvicorn"),
}
# Of a processor's instructions those that the engine is faster with, the best last.
INSTRUCTIONS = (
    *("asimd", "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"),
)


@dataclass(frozen=True)
class Facts:
    """A machine.

    Attributes:
        versions: of Python, this package and its libraries.
        missing: of each extra that is not whole, the modules it lacks.
        imports: why transformers' models cannot be imported; empty where they can.
        compiler: what compiles the engine; empty for none.
        engine: how the engine is built, or why not.
        compiled: whether it is.
        instructions: of `INSTRUCTIONS`, those there are.
        cores, usable, quota: of the machine, of this process, of its control group.
        threads: of torch.
        wait_policy, omp_threads: what the environment says of threads; empty where nothing.
        load: processes that wanted the CPU in the last minute.
        memory, free_memory, free_disk: bytes; None where not known.
        gpus: name and bytes of each.
        offline: whether the hub is not to be asked.
        roots: variables that name a folder that is not there.
    """

    versions: dict[str, str]
    missing: dict[str, tuple[str, ...]]
    imports: str
    compiler: str
    engine: str
    compiled: bool
    instructions: tuple[str, ...]
    cores: int
    usable: int
    quota: int
    threads: int
    wait_policy: str
    omp_threads: str
    load: float | None
    memory: int | None
    free_memory: int | None
    free_disk: int | None
    gpus: tuple[tuple[str, int], ...]
    offline: bool
    roots: tuple[str, ...]


def gather() -> Facts:
    """Look at this machine; imports torch and compiles the engine, once."""
    imports = _imports()
    import torch

    from bild.engines.threads import quota_cores, usable_cores

    compiler, engine, compiled = _engine()
    memory, free = _memory()
    return Facts(
        versions={"python": platform.python_version(), "bild": __version__, **_versions()},
        missing={
            extra: lacking
            for extra, names in EXTRAS.items()
            if (lacking := tuple(name for name in names if find_spec(name) is None))
        },
        imports=imports,
        compiler=compiler,
        engine=engine,
        compiled=compiled,
        instructions=_instructions(),
        cores=os.cpu_count() or 1,
        usable=usable_cores(),
        quota=quota_cores(),
        threads=torch.get_num_threads(),
        wait_policy=os.environ.get("OMP_WAIT_POLICY", ""),
        omp_threads=os.environ.get("OMP_NUM_THREADS", ""),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        memory=memory,
        free_memory=free,
        free_disk=_free_disk(),
        gpus=_gpus(),
        offline=os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"),
        roots=tuple(
            name
            for name in ("BILD_MODELS_ROOT", "BILD_DATA_ROOT")
            if os.environ.get(name) and not Path(os.environ[name]).expanduser().is_dir()
        ),
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _imports() -> str:
    """Why the models' classes cannot be imported, as where torchvision is of another torch."""
    try:
        from transformers import AutoModelForSeq2SeqLM  # noqa: F401
    except Exception as error:  # whatever a broken installation raises
        return first_line(error)
    return ""


def _engine() -> tuple[str, str, bool]:
    """(compiler, how the engine is built or why not, whether it is)."""
    from bild.engines import build

    try:
        compiler = " ".join(build.find_compiler() or ())
        return compiler, str(build.load()), True
    except (BildError, OSError) as error:
        return "", first_line(error), False


def _instructions() -> tuple[str, ...]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ("asimd",) if platform.machine() in ("arm64", "aarch64") else ()
    lines = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
    known = set(lines[0].split()) if lines else set()
    return tuple(name for name in INSTRUCTIONS if name in known)


def _memory() -> tuple[int | None, int | None]:
    """(all, free) bytes; a control group's limit counts where it is lower."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in text.splitlines()}
        total, free = sizes["MemTotal"], sizes["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        return None, None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="utf-8"))
        if limit != "max":
            return min(total, int(limit)), max(0, min(free, int(limit) - used))
    except (OSError, ValueError):
        pass
    return total, free


def _free_disk() -> int | None:
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _gpus() -> tuple[tuple[str, int], ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    found = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    return tuple((each.name, each.total_memory) for each in found)

"""The result of one evaluation as a file that says where each number comes from.

`run.json` holds one `RunRecord`; `samples.jsonl` beside it one line an example.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from bild.errors import BildError
from bild.files import write_atomically

SCHEMA = 1


@dataclass(frozen=True)
class RunRecord:
    """One run. Times are seconds, rates are per 100 generated tokens.

    Attributes:
        config: what was asked for, as it ran.
        models: id, revision or fingerprint, and parameters of each model.
        data: origin, revision, split, number of examples, sha256, truncated inputs.
        env: code version, libraries, device, threads.
        quality: per arm: value, 95 % bootstrap interval, signature; paired difference.
        speed: per arm: seconds and tokens/s; speedup with a 95 % bootstrap interval.
        decoding: what BiLD did, summed over the examples.
        schema: version of this layout.
    """

    config: dict[str, Any]
    models: dict[str, Any]
    data: dict[str, Any]
    env: dict[str, Any]
    quality: dict[str, Any]
    speed: dict[str, Any]
    decoding: dict[str, Any]
    schema: int = SCHEMA

    def save(self, path: Path) -> None:
        """Write as JSON, all of it or nothing."""
        write_atomically(
            path, json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        )

    @classmethod
    def load(cls, path: Path) -> RunRecord:
        """Read a record.

        Raises:
            BildError: not a record of this schema; the file is named.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BildError(f"cannot read the record {path}: {error}") from None
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise BildError(f"{path} is not a run record of schema {SCHEMA}")
        names = {f.name for f in fields(cls)}
        if set(content) != names:
            odd = sorted(set(content) ^ names)[0]
            raise BildError(f"{path} is not a run record: field {odd!r} is missing or unknown")
        return cls(**content)


def comparable(a: RunRecord, b: RunRecord) -> None:
    """Refuse two runs whose scores or speeds must not be set side by side.

    Raises:
        BildError: they differ in data, large model, precision, device, engine or metric; both
            values are named.
    """
    for what, left, right in (
        ("data", a.data["sha256"], b.data["sha256"]),
        ("large models", a.models["large"]["fingerprint"], b.models["large"]["fingerprint"]),
        ("metrics", a.quality["vanilla"]["signature"], b.quality["vanilla"]["signature"]),
        ("precisions", a.env["dtype"], b.env["dtype"]),
        ("devices", a.env["device"], b.env["device"]),
        ("engines", a.env.get("engine"), b.env.get("engine")),
    ):
        if left != right:
            raise BildError(f"these runs cannot be compared: their {what} differ, {left} / {right}")


def environment(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Code version, libraries and hardware; no host names, no paths."""
    root = Path(__file__).resolve().parent.parent
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {
        "commit": _git(root, "rev-parse", "HEAD"),
        "dirty": None if changes is None else changes != "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "datasets": version("datasets"),
        "device": _device_name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """Largest memory use so far, in bytes: of the process, and on a GPU of its tensors."""
    host: int | None = None
    if sys.platform != "win32":
        import resource  # not on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {"host_bytes": host, "device_bytes": gpu}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{device.type} {platform.processor()}".strip()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else device.type

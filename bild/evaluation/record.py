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
from typing import Any, ClassVar, Self

import torch
import transformers

from bild.errors import BildError
from bild.files import write_atomically

SCHEMA = 1


@dataclass(frozen=True)
class Record:
    """A file of results: saved whole or not at all, and read only where it is what it should be."""

    kind: ClassVar[str]

    def save(self, path: Path) -> None:
        """Write as JSON, all of it or nothing."""
        write_atomically(
            path, json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a record.

        Raises:
            BildError: not a record of this kind and schema; the file is named.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BildError(f"cannot read the record {path}: {error}") from None
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise BildError(f"{path} is not a {cls.kind} record of schema {SCHEMA}")
        names = {f.name for f in fields(cls)}
        if set(content) != names:
            odd = sorted(set(content) ^ names)[0]
            raise BildError(
                f"{path} is not a {cls.kind} record: field {odd!r} is missing or unknown"
            )
        return cls(**content)


@dataclass(frozen=True)
class RunRecord(Record):
    """One run. Times are seconds, rates are per 100 generated tokens.

    Attributes:
        config: what was asked for, as it ran.
        models: id, revision, fingerprint and parameters of each model; under "tokenizer" the first
            three of the tokenizer (older records have none).
        data: origin, revision, split, number of examples, sha256, truncated inputs.
        env: code version, libraries, device, threads.
        quality: per arm: value, 95 % bootstrap interval, signature; paired difference.
        speed: per arm: seconds and tokens/s; speedup with a 95 % bootstrap interval.
        decoding: what BiLD did, summed over the examples.
        schema: version of this layout.
    """

    kind: ClassVar[str] = "run"

    config: dict[str, Any]
    models: dict[str, Any]
    data: dict[str, Any]
    env: dict[str, Any]
    quality: dict[str, Any]
    speed: dict[str, Any]
    decoding: dict[str, Any]
    schema: int = SCHEMA


@dataclass(frozen=True)
class SearchRecord(Record):
    """One search for thresholds (`bild.tuning.search`). Speedups are over the large model alone.

    Attributes:
        config, models, data, env: as in `RunRecord`; the thresholds in `config` mean nothing.
        search: what was searched for, where, and how.
        costs: seconds that forwards were priced with; None where the clock was taken.
        quality: metric, its signature, and the large model's score with its 95 % interval.
        points: the pairs that were tried, in that order: thresholds, examples decoded, score,
            loss (large model's score - pair's), its upper bound, speedup with a 95 % interval,
            rates, and the verdict.
        front: of the pairs decoded to the end, those that no other beats in both loss and
            speedup, as indices into `points`, the slowest first.
        chosen: index of the fastest pair that was kept; None when there is none.
        spent: examples decoded with pairs and by the large model alone, and what a full grid
            decodes with pairs.
        check: data, quality, speed and decoding of the chosen pair on other examples, timed, as
            in `RunRecord`; None when not asked for.
        schema: version of this layout.
    """

    kind: ClassVar[str] = "search"

    config: dict[str, Any]
    models: dict[str, Any]
    data: dict[str, Any]
    env: dict[str, Any]
    search: dict[str, Any]
    costs: dict[str, float] | None
    quality: dict[str, Any]
    points: list[dict[str, Any]]
    front: list[int]
    chosen: int | None
    spent: dict[str, int]
    check: dict[str, Any] | None
    schema: int = SCHEMA


@dataclass(frozen=True)
class SmallModelsRecord(Record):
    """Several small models beside one large model (`bild.tuning.small_models`).

    Small models go by labels. Arms are "vanilla", "small <label>" and "bild <label> <fallback>
    <rollback>".

    Attributes:
        config, env: as in `RunRecord`; the small model and the thresholds in `config` mean nothing.
        models: as in `RunRecord`, the small ones by label.
        data: of "validation" and "test" what `RunRecord` says of its examples.
        grid: the fallback and the rollback thresholds of all pairs decoded.
        costs: by label the seconds that forwards were priced with.
        large: by split, by metric: the large model's score; the task's own metric first.
        sweeps: by label, by split, a list of pairs: thresholds, scores by metric, loss (large
            model's score - pair's, in the task's metric), priced speedup, rates.
        chosen: by label, by goal ("no loss", "one point"): thresholds, and whether the pair met
            the goal on validation examples; if not, it is the one that lost least.
        quality, speed, decoding: of the arms timed on test examples, as in `RunRecord`; quality by
            metric.
        differences: the last small model against each other one, alone and at each goal: quality
            by metric and speed ratio, with 95 % intervals over the same resampled examples.
        schema: version of this layout.
    """

    kind: ClassVar[str] = "small-models"

    config: dict[str, Any]
    models: dict[str, Any]
    data: dict[str, Any]
    env: dict[str, Any]
    grid: dict[str, list[float]]
    costs: dict[str, dict[str, float]]
    large: dict[str, dict[str, float]]
    sweeps: dict[str, dict[str, list[dict[str, Any]]]]
    chosen: dict[str, dict[str, dict[str, Any]]]
    quality: dict[str, dict[str, Any]]
    speed: dict[str, Any]
    decoding: dict[str, Any]
    differences: list[dict[str, Any]]
    schema: int = SCHEMA


@dataclass(frozen=True)
class PublishedRuns(Record):
    """Runs of a task that others made, as figures (results/published/README.md).

    Attributes:
        task: a name of `bild.tasks.registry.TASKS`.
        metric: the one of its published table.
        origin: where the figures come from.
        runs: per run: mode, sweep, card, thresholds, examples, scores, seconds, speedup, rates.
        schema: version of this layout.
    """

    kind: ClassVar[str] = "published"

    task: str
    metric: str
    origin: str
    runs: list[dict[str, Any]]
    schema: int = SCHEMA


def comparable(a: RunRecord, b: RunRecord) -> None:
    """Refuse two runs whose scores or speeds must not be set side by side.

    Raises:
        BildError: they differ in data, large model, tokenizer (where both name it), precision,
            device, engine or metric; both values are named.
    """
    named = all("tokenizer" in run.models for run in (a, b))
    tokenizers = [run.models["tokenizer"]["fingerprint"] if named else None for run in (a, b)]
    for what, left, right in (
        ("data", a.data["sha256"], b.data["sha256"]),
        ("large models", a.models["large"]["fingerprint"], b.models["large"]["fingerprint"]),
        ("tokenizers", *tokenizers),
        ("metrics", a.quality["vanilla"]["signature"], b.quality["vanilla"]["signature"]),
        ("precisions", a.env["dtype"], b.env["dtype"]),
        ("devices", a.env["device"], b.env["device"]),
        ("engines", a.env.get("engine"), b.env.get("engine")),
    ):
        if left != right:
            raise BildError(f"these runs cannot be compared: their {what} differ, {left} / {right}")


def environment(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Code version, libraries and hardware; no host names, no paths."""
    root = Path(__file__).resolve().parents[2]
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

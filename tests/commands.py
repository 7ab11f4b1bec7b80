"""Run the evaluation script as a user would: in this process, or by a launcher in another one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from bild import cli
from bild.commands.main import COMMANDS, module_of
from bild.evaluation.record import RunRecord

ROOT = Path(__file__).resolve().parent.parent
NOWHERE = "http://127.0.0.1:9"
# Seconds of a process that is refused before torch is imported, on a machine that is busy; a client
# of the hub that tries again takes 25, the libraries as many as that where all cores are in use.
AT_ONCE = 12

# The scripts that go on where they were stopped, which their last line says.
RESUMING = {
    "align", "benchmark", "compare_rules", "compare_small_models", "demo", "finetune",
    "make_calibration", "make_results", "measure_agreement", "run_eval", "search_thresholds",
}  # fmt: skip

# As tqdm writes it: "xsum:  50%|###  | 2/4 [00:00<00:00, 2.25example/s, ...]" and nothing after it.
PROGRESS = r"[^|\[]*(\d+%\||\d+ examples ).*\[\d\d:\d\d[^\]]*\]"


@dataclass(frozen=True)
class Finished:
    """What a command left behind in its working folder; `seconds` of the whole process."""

    code: int
    out: str
    err: str
    cwd: Path
    seconds: float = 0.0

    @property
    def complaints(self) -> list[str]:
        """The lines of stderr, less progress bars."""
        lines = [line.rsplit("\r", 1)[-1].strip() for line in self.err.split("\n")]
        return [line for line in lines if line and not re.fullmatch(PROGRESS, line)]

    def require_success(self) -> Finished:
        assert self.code == 0, f"exit code {self.code}\n{self.out}\n{self.err}"
        return self

    @property
    def path(self) -> Path:
        """The run.json, which a successful command names on its last line."""
        return self.cwd / self.require_success().out.rstrip().rsplit("\n", 1)[-1]

    def record(self) -> RunRecord:
        return RunRecord.load(self.path)

    def samples(self) -> list[dict[str, Any]]:
        """The lines of samples.jsonl, the arms by their kind."""
        text = self.path.with_name("samples.jsonl").read_text(encoding="utf-8")
        assert text.endswith("\n")
        kinds = {str(arm.id): arm.id.kind for arm in self.record().arms}
        lines = [json.loads(line) for line in text.split("\n")[:-1]]
        return [{**s, "arms": {kinds[n]: arm for n, arm in s["arms"].items()}} for s in lines]

    def outcome(self) -> list[dict[str, Any]]:
        """What must not differ between two equal runs: tokens, texts and counts of every arm."""
        return [
            {name: (a["tokens"], a["text"], a["stats"]) for name, a in sample["arms"].items()}
            for sample in self.samples()
        ]


@cache
def script(name: str = "run_eval") -> ModuleType:
    """A script as a module; a command of `bild` that is no script is one already."""
    if name in COMMANDS and not (ROOT / "scripts" / f"{name}.py").exists():
        return module_of(name)
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_here(monkeypatch, capsys, *arguments: object, name: str = "run_eval") -> Finished:
    """A script's `main` in this process."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    capsys.readouterr()
    code = 0
    try:
        cli.run(
            script(name).main,
            resumes=name in RESUMING or (name in COMMANDS and COMMANDS[name].resumes),
        )
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    return Finished(code, captured.out, captured.err, Path.cwd())


def environment(home: Path, more: Mapping[str, str]) -> dict[str, str]:
    """A user's environment with nothing in it: no caches, no mirror, no hub, one thread."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HOME": str(home / "huggingface"),
        "HF_ENDPOINT": NOWHERE,
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "BILD_CACHE": os.environ.get("BILD_CACHE", str(Path.home() / ".cache" / "bild")),
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),  # this checkout, whichever one is installed
        "CUDA_VISIBLE_DEVICES": "",
        **more,
    }


def run_command(
    command: Sequence[object], cwd: Path, more: Mapping[str, str], timeout: float = 240
) -> Finished:
    """A command in a fresh process; `cwd` is also its home."""
    cwd.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(cwd, more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    seconds = time.monotonic() - start
    return Finished(done.returncode, done.stdout, done.stderr, cwd, seconds)


def run_two_at_a_time(jobs):
    """The results of functions without arguments, by key."""
    with ThreadPoolExecutor(2) as pool:
        futures = {key: pool.submit(job) for key, job in jobs.items()}
        return {key: future.result() for key, future in futures.items()}

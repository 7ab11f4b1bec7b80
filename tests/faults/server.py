"""Runs scripts in children of a process that has everything imported, and breaks them off.

A line of JSON asks for a trial: {"script", "arguments", "folder", "how", "at"}; a line answers with
{"code", "said", "count", "seconds"}. Started with the shim preloaded:

    LD_PRELOAD=shim.so python tests/faults/server.py shim.so LOG
"""

from __future__ import annotations

import ctypes
import importlib
import io
import json
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
HOW = {"count": 0, "before": 0, "half": 1, "full": 2}
SECONDS = 120  # of a trial
MODULES = (
    "optuna", "scipy", "bild.benchmark.run", "bild.outputs.run", "bild.show.html",
    "bild.show.plots", "bild.show.race", "bild.show.reliability", "bild.show.speed_tables",
    "bild.show.tables",
    "bild.training.agreement", "bild.training.alignment", "bild.tuning.search",
    "bild.tuning.rules", "bild.tuning.small_models",
)  # fmt: skip


def prepare() -> None:
    """What every script imports, and what would make two runs differ that should not."""
    for module in MODULES:
        importlib.import_module(module)
    from bild.evaluation import environment
    from bild.tuning import prices

    torch.set_num_threads(1)
    environment.changed_files = list
    environment.head_commit = lambda: "0" * 40
    environment.code_digest = lambda: "0" * 64
    fixed = prices.Costs(0.018, 0.0032, 0.0043, 0.025, 0.009)
    prices.measure_costs = lambda works, thresholds: [fixed] * len(works)


def child(trial: dict, log: Path, shim: ctypes.CDLL) -> int:
    """The exit code of a script, in its own process."""
    os.chdir(trial["folder"])
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = io.TextIOWrapper(io.FileIO(number, "w", closefd=False), write_through=True)
        setattr(sys, name, stream)
    script = ROOT / "scripts" / f"{trial['script']}.py"
    # What is no script of its own is a command of `bild`.
    command = [str(script)] if script.exists() else ["bild", trial["script"]]
    sys.argv = [*command, *trial["arguments"]]
    at = 0 if trial["how"] == "count" else trial["at"]
    shim.fault_arm(os.fsencode(trial["folder"]), at, HOW[trial["how"]])
    try:
        if script.exists():
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            runpy.run_module("bild", run_name="__main__")
    except SystemExit as end:
        code = 0 if end.code is None else end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    else:
        code = 0
    count = shim.fault_count()
    shim.fault_arm(b"", 0, 0)
    log.with_suffix(".count").write_text(str(count))
    return code


def run(trial: dict, log: Path, shim: ctypes.CDLL) -> dict:
    counted = log.with_suffix(".count")
    counted.unlink(missing_ok=True)
    start = time.monotonic()
    process = os.fork()
    if process == 0:
        code = 99
        try:
            code = child(trial, log, shim)
        finally:
            os._exit(code)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(process, signal.SIGKILL))
    signal.alarm(SECONDS)
    _, status, used = os.wait4(process, 0)
    signal.alarm(0)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "said": log.read_text(encoding="utf-8", errors="replace"),
        "count": int(counted.read_text()) if counted.exists() else None,
        "seconds": time.monotonic() - start,
        "cpu": used.ru_utime + used.ru_stime,
    }


def main() -> None:
    shim = ctypes.CDLL(sys.argv[1])
    shim.fault_arm.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_int)
    shim.fault_count.restype = ctypes.c_long
    prepare()
    log = Path(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    print("ready", file=answers)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line), log, shim)), file=answers)


if __name__ == "__main__":
    main()

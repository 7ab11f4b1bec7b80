"""One injected fault, and what must hold behind it; many of them, as the long form (`make faults`).

    python tests/faults/injecting.py --kills 1000          # of all scripts, in turn
    python tests/faults/injecting.py --kills 50 --only finetune align
    python tests/faults/injecting.py --record results/faults.json    # counts, script by script

A script is broken off at one of its changes to files: killed before it or half-way through it, or
the disk is full from there on. The same command is given again until it ends, and must leave what
an undisturbed one leaves: the same texts, tokens, counts and weights, and no scratch files.

Every trial is a line in out/faults/ as soon as it is over. However the long form ends, the same
command goes on from there, and the record holds what was counted so far.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bild.evaluation.environment import code_digest, environment, require_clean_tree
from bild.files import append_lines, as_json, read_lines, write_json
from bild.show.faults import HOW, faults_table
from faults import scripts

HERE = Path(__file__).parent
KILLED = -9
KILLS = ("before", "half")  # of the ways to break off


def build_shim(folder: Path, compiler: str) -> Path:
    """The shim, compiled."""
    shim = folder / "shim.so"
    source = HERE / "shim.c"
    command = [compiler, "-x", "c", "-O1", "-fPIC", "-shared", "-o", shim, source, "-ldl"]
    subprocess.run(list(map(str, command)), check=True)
    return shim


@dataclass
class Outcome:
    """What became of one trial: faults one after the other, then the same command until its end.

    Attributes:
        injected: faults that happened; a run may end before the change that is asked for.
        wrong: what should not be; empty when nothing was lost.
        seconds: that the last run took, the one that was not broken off.
    """

    injected: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Injector:
    """Runs scripts whole and broken off, each trial in a folder of its own.

    Args:
        folder: for everything.
        compiler: of the shim.
    """

    def __init__(self, folder: Path, compiler: str = "cc") -> None:
        self.folder, self.stage = folder, folder / "stage"
        self.stage.mkdir(parents=True)
        scripts.prepare(self.stage)
        self.commands = scripts.commands(self.stage)
        self._whole: dict[str, tuple[dict[str, Any], int]] = {}
        self._seconds: dict[str, float] = {}
        shim = build_shim(folder, compiler)
        environment = {
            **os.environ,
            "LD_PRELOAD": str(shim),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": str(HERE.parents[1]),
        }
        self._server = subprocess.Popen(
            [sys.executable, HERE / "server.py", shim, folder / "log"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # what ends the long form ends no trial
        )
        assert self._server.stdout.readline() == "ready\n"

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait(timeout=60)
        self._server.stdout.close()

    def run(self, name: str, folder: Path, how: str = "count", at: int = 0) -> dict[str, Any]:
        """A script in a folder, broken off or not."""
        folder.mkdir(parents=True, exist_ok=True)
        # A script may be there several times, in several ways: align, align-on-policy.
        trial = {
            "script": name.partition("-")[0],
            "arguments": self.commands[name],
            "folder": str(folder),
        }
        self._server.stdin.write(json.dumps({**trial, "how": how, "at": at}) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def whole(self, name: str) -> tuple[dict[str, Any], int]:
        """(what an undisturbed run leaves, how many changes it makes)."""
        if name not in self._whole:
            folder = self.folder / "whole" / name
            done = self.run(name, folder)
            assert done["code"] == 0, done["said"]
            assert scripts.left_over(folder) == []
            self._whole[name] = scripts.result(folder), done["count"]
        return self._whole[name]

    def seconds(self, name: str) -> float:
        """What an undisturbed run takes, when all is warm."""
        self.whole(name)
        if name not in self._seconds:
            self._seconds[name] = self.run(name, self.folder / "timed" / name)["seconds"]
        return self._seconds[name]

    def trial(self, name: str, how: str, points: list[int]) -> Outcome:
        """Faults at these changes, a run each, then the run that ends."""
        expected, _ = self.whole(name)
        folder = self.folder / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        outcome = Outcome()
        wrong = outcome.wrong
        for at in points:
            broken = self.run(name, folder, how, at)
            if broken["code"] == 0 and broken["count"] < at:
                break  # it ended before
            outcome.injected += 1
            wrong += _judge(broken, how)
        again = self.run(name, folder)
        outcome.seconds = again["seconds"]
        if again["code"] != 0:
            wrong.append(f"the same command ends with {again['code']}: {again['said'][-1500:]}")
            return outcome
        found = scripts.result(folder)
        for place in sorted(expected.keys() | found.keys()):
            if place not in found or place not in expected:
                wrong.append(f"{place} is {'missing' if place in expected else 'too many'}")
            elif expected[place] != found[place]:
                wrong.append(f"{place} differs")
        wrong += [f"{place} is left over" for place in scripts.left_over(folder)]
        return outcome


def _judge(broken: dict[str, Any], how: str) -> list[str]:
    """What is wrong with the end of a run that was broken off."""
    said = broken["said"]
    if how != "full":
        killed = broken["code"] == KILLED
        return [] if killed else [f"it was not killed but ended with {broken['code']}: {said}"]
    wrong = []
    if broken["code"] not in (0, 2):
        wrong.append(f"a full disk ends it with {broken['code']}: {said[-1500:]}")
    if "Traceback" in said:
        wrong.append(f"a full disk is a stack trace: {said[-1500:]}")
    elif broken["code"] == 2 and said.count("error: ") != 1:
        wrong.append(f"a full disk is not one sentence: {said[-1500:]}")
    return wrong


class Trials:
    """Trials of scripts in turn, until there are so many kills or the time is over.

    What a trial does follows from the seed, the script and the trial's number alone, however many
    are at work. Full disks are drawn beside the kills, and do not count among them.

    Args:
        log: a file of lines, one for each trial; those that are there already are not done again.
        names: of scripts.
        kills: so many in all.
        seconds: after so many no other trial begins.
        seed: of what is drawn.
    """

    def __init__(
        self, log: Path, names: Sequence[str], kills: int, seconds: float, seed: int
    ) -> None:
        self._log, self._names, self._kills, self._seed = log, names, kills, seed
        self._end = time.monotonic() + seconds
        log.parent.mkdir(parents=True, exist_ok=True)
        self.lines = [line for line in read_lines(log, json.loads) if line["script"] in names]
        known = {(line["script"], line["number"]) for line in self.lines}
        pairs = ((name, number) for number in count() for name in names)
        self._next = (pair for pair in pairs if pair not in known)
        self._lock = threading.Lock()
        self.is_over = False

    @property
    def killed(self) -> int:
        return sum(line["injected"] for line in self.lines if line["how"] in KILLS)

    def work(self, folder: Path) -> None:
        """Do trials in a folder; of several threads each has one."""
        injector = Injector(folder)
        try:
            while (pair := self._take()) is not None:
                self._add(self._do(injector, *pair))
        finally:
            self.is_over = True  # where one fails the others end as well
            injector.close()

    def _take(self) -> tuple[str, int] | None:
        with self._lock:
            if self.is_over or self.killed >= self._kills or time.monotonic() > self._end:
                return None
            return next(self._next)

    def _do(self, injector: Injector, name: str, number: int) -> dict[str, Any]:
        drawn = random.Random(f"{self._seed} {name} {number}")
        _, changes = injector.whole(name)
        how = drawn.choice(HOW)
        points = [drawn.randint(1, changes) for _ in range(drawn.choice((1, 1, 3)))]
        outcome = injector.trial(name, how, points)
        return {
            "script": name,
            "number": number,
            "changes": changes,
            "undisturbed": injector.seconds(name),
            "how": how,
            "injected": outcome.injected,
            "wrong": [f"{how} at {points} of {changes}: {wrong}" for wrong in outcome.wrong],
            "seconds": round(outcome.seconds, 3),
        }

    def _add(self, line: dict[str, Any]) -> None:
        with self._lock:
            for _ in append_lines(self._log, [line], as_json):
                self.lines.append(line)
        for wrong in line["wrong"]:
            print(f"{line['script']} {wrong}", flush=True)
        if len(self.lines) % 50 == 0:
            print(f"{self.killed} of {self._kills} kills", file=sys.stderr, flush=True)

    def counts(self) -> dict[str, Any]:
        """What a record has, by script: counts, complaints, and of the times to recover the least,
        the median and the most."""
        found: dict[str, Any] = {}
        for name in self._names:
            lines = [line for line in self.lines if line["script"] == name]
            if not lines:
                continue
            times = [line["seconds"] for line in lines]
            found[name] = {
                "changes": max(line["changes"] for line in lines),
                "seconds": statistics.median(line["undisturbed"] for line in lines),
                "faults": {
                    how: sum(line["injected"] for line in lines if line["how"] == how)
                    for how in HOW
                },
                "trials": len(lines),
                "complaints": [wrong for line in lines for wrong in line["wrong"]],
                "recovery": {
                    "min": min(times), "median": statistics.median(times), "max": max(times),
                },
            }  # fmt: skip
        return found


def run_all(trials: Trials, folder: Path, processes: int) -> bool:
    """Do all trials, so many at a time; False where a signal came before their end."""

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    with ThreadPoolExecutor(processes) as pool:
        working = [pool.submit(trials.work, folder / str(n)) for n in range(processes)]
        try:
            wait(working)
        except KeyboardInterrupt:
            trials.is_over = True  # those at work are finished
            wait(working)
            return False
        for one in working:
            one.result()
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=1000, help="in all; full disks come beside")
    parser.add_argument("--minutes", type=float, default=24 * 60, help="end after so many")
    every = list(scripts.commands(Path()))
    parser.add_argument("--only", nargs="+", choices=every, default=every, metavar="SCRIPT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="scripts at work at a time")
    parser.add_argument("--log", type=Path, help="file of trials (default: one in out/faults)")
    parser.add_argument("--record", type=Path, help="JSON file for what was counted")
    a = parser.parse_args()
    if a.record is not None:
        require_clean_tree(a.record)
    log = a.log or Path("out/faults", f"{code_digest()[:12]}-{a.seed}.jsonl")
    start, trials = time.monotonic(), Trials(log, a.only, a.kills, 60 * a.minutes, a.seed)
    env = asdict(environment(torch.device("cpu")))
    with tempfile.TemporaryDirectory() as folder:
        ended = run_all(trials, Path(folder), a.processes)
    found = trials.counts()
    print(faults_table(found))
    print(f"{trials.killed} kills, {time.monotonic() - start:.0f} s", flush=True)
    if a.record is not None:
        asked = {"kills": a.kills, "minutes": a.minutes, "seed": a.seed, "processes": a.processes}
        write_json(a.record, {"asked": asked, "env": env, "scripts": found})
    if not ended:
        sys.exit(130)
    sys.exit(any(s["complaints"] for s in found.values()))


if __name__ == "__main__":
    main()

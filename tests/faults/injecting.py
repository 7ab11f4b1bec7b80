"""One injected fault, and what must hold behind it; many of them, as the long form (`make faults`).

    python tests/faults/injecting.py --kills 1000          # of all scripts, in turn
    python tests/faults/injecting.py --kills 50 --only finetune align
    python tests/faults/injecting.py --record results/faults.json    # counts, script by script

A script is broken off at one of its changes to files: killed before it or half-way through it, or
the disk is full from there on. The same command is given again until it ends, and must leave what
an undisturbed one leaves: the same texts, tokens, counts and weights, and no scratch files.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bild.evaluation.environment import environment, require_clean_tree
from bild.files import write_json
from bild.show.faults import HOW, faults_table, injected
from faults import scripts

HERE = Path(__file__).parent
KILLED = -9


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
        )
        assert self._server.stdout.readline() == "ready\n"

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait(timeout=60)
        self._server.stdout.close()

    def run(self, name: str, folder: Path, how: str = "count", at: int = 0) -> dict[str, Any]:
        """A script in a folder, broken off or not."""
        folder.mkdir(parents=True, exist_ok=True)
        trial = {"script": name, "arguments": self.commands[name], "folder": str(folder)}
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


def inject(injector: Injector, names: list[str], kills: int, seconds: float, seed: int) -> dict:
    """Faults drawn by chance, the scripts in turn, until there are so many or the time is over.

    Returns:
        By script: its changes to files, its faults by kind, trials, complaints, and in seconds what
        an undisturbed run takes and what the last one of a trial took.
    """
    drawn = random.Random(seed)
    end = time.monotonic() + seconds
    found: dict[str, dict[str, Any]] = {}
    while injected(found) < kills:
        for name in names:
            if time.monotonic() > end:
                return found
            _, changes = injector.whole(name)
            if name not in found:
                found[name] = {
                    "changes": changes,
                    "seconds": injector.run(name, injector.folder / "timed" / name)["seconds"],
                    "faults": dict.fromkeys(HOW, 0),
                    "trials": 0,
                    "complaints": [],
                    "recovery": [],
                }
            mine = found[name]
            how = drawn.choice(HOW)
            points = [drawn.randint(1, changes) for _ in range(drawn.choice((1, 1, 3)))]
            outcome = injector.trial(name, how, points)
            mine["faults"][how] += outcome.injected
            mine["trials"] += 1
            mine["recovery"].append(round(outcome.seconds, 3))
            for complaint in outcome.wrong:
                said = f"{how} at {points} of {changes}: {complaint}"
                mine["complaints"].append(said)
                print(f"{name} {said}", flush=True)
    return found


def summary(script: dict[str, Any]) -> dict[str, Any]:
    """A script's counts as a record has them: of the times to recover least, median and most."""
    times = script["recovery"]
    spread = {"min": min(times), "median": statistics.median(times), "max": max(times)}
    return {**script, "recovery": spread}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=1000, help="injected faults in all")
    parser.add_argument("--minutes", type=float, default=24 * 60, help="end after so many")
    parser.add_argument("--only", nargs="+", help="scripts (default: all that write)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="JSON file for what was counted")
    a = parser.parse_args()
    if a.record is not None:
        require_clean_tree(a.record)
    with tempfile.TemporaryDirectory() as folder:
        injector = Injector(Path(folder))
        names = a.only or list(injector.commands)
        start = time.monotonic()
        found = inject(injector, names, a.kills, 60 * a.minutes, a.seed)
        injector.close()
    found = {name: summary(script) for name, script in found.items()}
    print(faults_table(found))
    print(f"{time.monotonic() - start:.0f} s")
    if a.record is not None:
        asked = {"kills": a.kills, "minutes": a.minutes, "seed": a.seed}
        env = asdict(environment(torch.device("cpu")))
        write_json(a.record, {"asked": asked, "env": env, "scripts": found})
    sys.exit(any(s["complaints"] for s in found.values()))


if __name__ == "__main__":
    main()

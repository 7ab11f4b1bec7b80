"""The long run of injected faults (`make faults`) as a table: which script, what was lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bild.json_files import read_json

HOW = ("before", "half", "full")  # a change to a file is broken off
COLUMNS = (
    "script", "changes to files", "killed before one", "half-way", "disk full",
    "wrong afterwards", "undisturbed, s", "to the end again, s: least, median, most",
)  # fmt: skip


def faults_of(path: Path) -> str:
    """The table of a record that tests/faults/injecting.py has written.

    Raises:
        BildError: it cannot be read.
    """
    return faults_table(read_json(path, "make it again with make faults")["scripts"])


def faults_table(scripts: dict[str, dict[str, Any]]) -> str:
    """Markdown, a row a script and a row of all."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for name, found in scripts.items():
        again = ", ".join(f"{found['recovery'][which]:.1f}" for which in ("min", "median", "max"))
        faults = (str(found["faults"][how]) for how in HOW)
        wrong, seconds = str(len(found["complaints"])), f"{found['seconds']:.1f}"
        rows.append((name, str(found["changes"]), *faults, wrong, seconds, again))
    sums = (str(sum(s["faults"][how] for s in scripts.values())) for how in HOW)
    wrong = str(sum(len(s["complaints"]) for s in scripts.values()))
    rows.append((f"all {injected(scripts)}", "", *sums, wrong, "", ""))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def injected(scripts: dict[str, dict[str, Any]]) -> int:
    """How many faults there were."""
    return sum(sum(found["faults"].values()) for found in scripts.values())

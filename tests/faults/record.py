"""What the long form has counted: its table, and the page that shows it.

python tests/faults/record.py        # writes the table of results/faults.json into its page
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORD, PAGE = ROOT / "results" / "faults.json", ROOT / "docs" / "reliability.md"
HOW = ("before", "half", "full")
PLACE = re.compile(r"(<!-- faults -->\n).*?(<!-- end of faults -->)", re.DOTALL)


def summary(script: dict[str, Any]) -> dict[str, Any]:
    """A script's counts as they stand in a record: of the times to recover the least, the median
    and the most.
    """
    times = script["recovery"]
    spread = {"min": min(times), "median": statistics.median(times), "max": max(times)}
    return {**script, "recovery": spread}


def table(scripts: dict[str, dict[str, Any]]) -> str:
    """Markdown, a row a script and a row of all."""
    lines = [
        "| script | changes to files | killed before one | half-way | disk full | wrong afterwards "
        "| undisturbed, s | to the end again, s: least, median, most |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in scripts.items():
        faults = " | ".join(str(found["faults"][how]) for how in HOW)
        again = ", ".join(f"{found['recovery'][which]:.1f}" for which in ("min", "median", "max"))
        lines.append(
            f"| {name} | {found['changes']} | {faults} | {len(found['complaints'])} "
            f"| {found['seconds']:.1f} | {again} |"
        )
    sums = " | ".join(str(sum(s["faults"][how] for s in scripts.values())) for how in HOW)
    wrong = sum(len(s["complaints"]) for s in scripts.values())
    return "\n".join([*lines, f"| all {injected(scripts)} | | {sums} | {wrong} | | |"])


def injected(scripts: dict[str, dict[str, Any]]) -> int:
    """How many faults there were."""
    return sum(sum(found["faults"].values()) for found in scripts.values())


def page_with(record: dict[str, Any], page: str) -> str:
    """The page with the record's table in its place."""
    return PLACE.sub(lambda place: f"{place[1]}\n{table(record['scripts'])}\n\n{place[2]}", page)


def main() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    PAGE.write_text(page_with(record, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

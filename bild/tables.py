"""Figures for people: the table at the end of a run, and rows of results beside published ones."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from bild.benchmarks import PublishedRow, get
from bild.record import RunRecord

ARM_NAMES = {"vanilla": "large alone", "small": "small alone", "bild": "BiLD"}


def run_table(record: RunRecord) -> str:
    """The arms of one run, one a row, and a line on what BiLD did."""
    metric = record.quality["metric"]
    rows = []
    for arm in ("vanilla", "small", "bild"):
        if arm not in record.speed:
            continue
        quality, speed = record.quality[arm], record.speed[arm]
        rows.append(
            [
                ARM_NAMES[arm],
                f"{quality['value']:.2f} [{quality['low']:.2f}, {quality['high']:.2f}]",
                f"{1000 * speed['seconds_per_sample']:.0f}",
                f"{speed['tokens_per_second']:.0f}",
                interval(speed["speedup"], "x") if "speedup" in speed else "1.00x",
            ]
        )
    headers = ["", f"{metric} [95 %]", "ms/example", "tokens/s", "speedup [95 %]"]
    table = tabulate(rows, headers, disable_numparse=True)
    if "bild" not in record.decoding:
        return table
    did = record.decoding["bild"]
    return table + (
        f"\n\nper 100 tokens: {did['fallback_rate']:.1f} fallbacks, "
        f"{did['rollback_rate']:.1f} rollbacks, {did['large_forward_rate']:.1f} large forwards "
        f"(alone: 100); {100 * did['identical_to_vanilla']:.0f} % of the outputs equal the large "
        "model's"
    )


def published_table(task: str, mode: str) -> str:
    """What was published for a task and mode; empty when nothing was."""
    rows = [r for r in get(task).published if r.mode == mode]
    if not rows:
        return ""
    return tabulate(
        [_published_row(r) for r in rows],
        ["published", "fallback", "rollback", "score", "speedup", "fallback %", "rollback %", "on"],
        disable_numparse=True,
    )


def interval(figure: dict[str, float], unit: str = "") -> str:
    """`value [low, high]`, two decimals."""
    return f"{figure['value']:.2f}{unit} [{figure['low']:.2f}, {figure['high']:.2f}]"


def _published_row(row: PublishedRow) -> list[Any]:
    def show(value: float | None, form: str = "{:g}") -> str:
        return "-" if value is None else form.format(value)

    return [
        row.source + (f" ({row.note})" if row.note else ""),
        show(row.fallback),
        show(row.rollback),
        f"{row.score:.2f} {row.metric}",
        show(row.speedup, "{:.2f}x"),
        show(row.fallback_rate),
        show(row.rollback_rate),
        "-" if row.hardware is None else row.hardware,
    ]

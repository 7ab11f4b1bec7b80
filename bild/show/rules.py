"""Rules side by side, as a table."""

from __future__ import annotations

from tabulate import tabulate

from bild.evaluation.arms import BILD, SMALL, VANILLA
from bild.evaluation.record import ArmFigures, Interval
from bild.tasks.metrics import METRIC_NAMES
from bild.tuning.record import RulesRecord

ALONE = {VANILLA: "large model alone", SMALL: "small model alone"}


def rules_table(record: RulesRecord) -> str:
    """A Markdown table: every rule with its score and speedup, and a line on what it ran on."""
    header = [
        "decoder",
        f"{METRIC_NAMES.get(record.metric, record.metric)} [95 %]",
        "difference to the large model [95 %]",
        "speedup [95 %]",
        "large forwards per 100 tokens",
        "outputs equal to the large model's",
    ]
    rows = [_row(record, arm) for arm in record.arms]
    table = tabulate(rows, header, tablefmt="github", disable_numparse=True)
    base = record.config.bild
    assert base is not None
    small = " / ".join(m.id for m in record.models.small.values())
    note = (
        f"{record.models.large.id} and {small}, {base.described} but for what a row names, "
        f"{_guesses(record)}{record.data.samples} examples, engine {record.arms[0].built}, "
        f"{record.env.workplace}; "
        f"intervals: {record.timing.interval}."
    )
    return f"{table}\n\n{note}"


def _guesses(record: RulesRecord) -> str:
    """How far the small model goes on behind guesses, and by which rules it does not."""
    base = record.config.bild
    assert base is not None
    if base.lookahead == 0:
        return ""
    without = [name for name, bild in record.rules.items() if bild.lookahead == 0]
    but = f" (`{'`, `'.join(without)}`: 0)" if without else ""
    ahead = base.lookahead if base.lookahead == "auto" else f"{base.lookahead:g}"
    return f"lookahead {ahead}{but}, "


def _row(record: RulesRecord, arm: ArmFigures) -> list[str]:
    quality, speedup = arm.quality[record.metric], arm.speed.speedup
    same = arm.identical
    return [
        f"`{arm.id.label}`" if arm.id.kind == BILD else ALONE[arm.id.kind],
        _interval(Interval(quality.value, quality.low, quality.high)),
        "" if quality.difference is None else _interval(quality.difference, sign="+"),
        "1.00x" if speedup is None else _interval(speedup, "x"),
        f"{arm.stats.large_forward_rate:.0f}" if arm.stats.large_forwards else "",
        "" if same is None else f"{100 * same:.0f} %",
    ]


def _interval(found: Interval, unit: str = "", sign: str = "") -> str:
    return f"{found.value:{sign}.2f}{unit} [{found.low:{sign}.2f}, {found.high:{sign}.2f}]"

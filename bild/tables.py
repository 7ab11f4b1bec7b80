"""Figures for people: the table at the end of a run, and rows of results beside published ones."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from bild.benchmarks import PublishedRow, get
from bild.evaluation import SampleRecord
from bild.record import RunRecord, comparable

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
                interval(quality),
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


def results_table(records: list[RunRecord]) -> str:
    """A Markdown table of runs on the same data: the large model alone, the small one, each BiLD.

    Raises:
        BildError: the runs cannot be compared.
    """
    for other in records[1:]:
        comparable(records[0], other)
    rows = [_result_row(ARM_NAMES["vanilla"], records[0], "vanilla")]
    alone: set[str] = set()
    for record in records:
        small = record.models.get("small")
        if "small" in record.speed and small is not None and small["fingerprint"] not in alone:
            alone.add(small["fingerprint"])
            name = f"{ARM_NAMES['small']}, {record.config['mode']}"
            rows.append(_result_row(name, record, "small"))
    bild = [r for r in records if "bild" in r.speed]
    best = {
        1: max((r.quality["bild"]["value"] for r in bild), default=None),
        2: max((r.speed["bild"]["speedup"]["value"] for r in bild), default=None),
    }
    for record in bild:
        row = _result_row(_name(record), record, "bild")
        reached = {
            1: record.quality["bild"]["value"],
            2: record.speed["bild"]["speedup"]["value"],
        }
        for column, value in best.items():
            if len(bild) > 1 and reached[column] == value:
                row[column] = f"**{row[column]}**"
        rows.append(row)
    first = records[0]
    metric = {"bleu": "BLEU"}.get(first.quality["metric"], first.quality["metric"])
    headers = [
        "decoder (fallback, rollback)", f"{metric} [95 %]", "speedup [95 %]",
        "fallback %", "rollback %", "large forwards per 100 tokens", "outputs equal to large's",
    ]  # fmt: skip
    env, data = first.env, first.data
    footnote = (
        f"{data['samples']} examples, batch 1, engine {env['engine']}, {env['threads']} thread(s) "
        f"of {env['device']}, torch {env['torch']}, transformers {env['transformers']}; "
        f"large {first.models['large']['parameters'] / 1e6:.1f} M parameters"
    )
    small = next((r.models["small"] for r in records if "small" in r.models), None)
    if small is not None:
        footnote += f", small {small['parameters'] / 1e6:.1f} M"
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) + f"\n\n{footnote}."


def _name(record: RunRecord) -> str:
    asked = record.config["bild"]
    thresholds = (asked["fallback_threshold"], asked["rollback_threshold"])
    rules = "" if asked["variant"] == "authors" else f", {asked['variant']} rules"
    return "BiLD {} ({}, {}){}".format(record.config["mode"], *map(_threshold, thresholds), rules)


def _threshold(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _result_row(name: str, record: RunRecord, arm: str) -> list[str]:
    quality, speed, did = record.quality[arm], record.speed[arm], record.decoding[arm]
    row = [name, interval(quality), interval(speed["speedup"], "x") if arm != "vanilla" else "1x"]
    if arm != "bild":
        return [*row, "", "", "", f"{100 * did.get('identical_to_vanilla', 1):.0f} %"]
    return [
        *row,
        f"{did['fallback_rate']:.1f}",
        f"{did['rollback_rate']:.2f}",
        f"{did['large_forward_rate']:.1f}",
        f"{100 * did['identical_to_vanilla']:.0f} %",
    ]


def examples_text(samples: list[SampleRecord], count: int, width: int = 300) -> str:
    """The first few examples as text: source, output, reference; long ones cut to `width`."""

    def cut(text: str) -> str:
        flat = " ".join(text.split())
        return flat if len(flat) <= width else flat[: width - 3] + "..."

    blocks = []
    for sample in samples[:count]:
        arm = "bild" if "bild" in sample.arms else "vanilla"
        output = sample.arms[arm].text
        lines = [
            ("source", sample.source),
            (ARM_NAMES[arm], output),
            ("reference", sample.reference),
        ]
        if arm == "bild" and sample.arms["vanilla"].text != output:
            lines.insert(1, (ARM_NAMES["vanilla"], sample.arms["vanilla"].text))
        blocks.append("\n".join(f"{name + ':':13}{cut(text)}" for name, text in lines))
    return "\n\n".join(blocks)


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


def agreement_table(record: dict[str, Any]) -> str:
    """A Markdown table of a record of `bild.agreement.measure`."""
    rows = []
    for result in record["results"]:
        agreement = {name: 100 * value for name, value in result["agreement"].items()}
        rows.append(
            [
                result["model"],
                result["text"],
                f"{result['positions']:,}",
                interval(agreement),
                f"{100 * result['mean_confidence']:.1f}",
                f"{100 * result['calibration_error']:.1f}",
            ]
        )
    headers = [
        "small model", "on prefixes of", "positions", "agreement % [95 %]", "mean confidence %",
        "calibration error %",
    ]  # fmt: skip
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


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

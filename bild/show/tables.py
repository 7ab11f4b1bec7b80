"""Figures for people: the table at the end of a run, and rows of results beside published ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from bild.config import BiLDConfig
from bild.evaluation.record import RunRecord, SearchRecord, SmallModelsRecord, comparable
from bild.evaluation.run import SampleRecord
from bild.policy import PUBLISHED, RULES
from bild.tasks.metrics import METRIC_NAMES
from bild.tasks.registry import PublishedRow, get

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
    pairs = [_result_row(_name(record), record, "bild") for record in bild]
    _mark_best(pairs, 1, [r.quality["bild"]["value"] for r in bild])
    _mark_best(pairs, 2, [r.speed["bild"]["speedup"]["value"] for r in bild])
    rows += pairs
    first = records[0]
    metric = first.quality["metric"]
    metric = METRIC_NAMES.get(metric, metric)
    headers = [
        "decoder (fallback, rollback)", f"{metric} [95 %]", "speedup [95 %]",
        "fallback %", "rollback %", "large forwards per 100 tokens", "outputs equal to large's",
    ]  # fmt: skip
    small = next((r.models["small"] for r in records if "small" in r.models), None)
    footnote = (
        f"{first.data['samples']} examples, batch 1, {_machine(first.env)}; "
        f"{_sizes(first.models['large'], small)}"
    )
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) + f"\n\n{footnote}."


def _mark_best(rows: list[list[str]], column: int, values: list[float]) -> None:
    """Set the cells of the highest value in bold, where there are several rows."""
    for row, value in zip(rows, values, strict=True):
        if len(rows) > 1 and value == max(values):
            row[column] = f"**{row[column]}**"


def _machine(env: Mapping[str, Any]) -> str:
    return (
        f"engine {env['engine']}, {env['threads']} thread(s) of {env['device']}, "
        f"torch {env['torch']}, transformers {env['transformers']}"
    )


def _sizes(large: Mapping[str, Any], small: Mapping[str, Any] | None) -> str:
    sizes = f"large {large['parameters'] / 1e6:.1f} M parameters"
    return sizes if small is None else f"{sizes}, small {small['parameters'] / 1e6:.1f} M"


def _name(record: RunRecord) -> str:
    asked = BiLDConfig.from_dict(record.config["bild"])
    published = asked.acceptance_rule == RULES[PUBLISHED](asked.rollback_threshold)
    rules = "" if published else f", {asked.variant} rules"
    thresholds = f"{asked.fallback_threshold:g}, {asked.rollback_threshold:g}"
    return f"BiLD {record.config['mode']} ({thresholds}){rules}"


def small_models_table(record: SmallModelsRecord) -> str:
    """Two Markdown tables: every decoder timed on test examples, and the last small model's lead.

    One row a pair of thresholds, with the goals that it was chosen for.
    """
    metrics = list(record.quality)
    rows = [_arm_row(ARM_NAMES["vanilla"], record, "vanilla")]
    rows += [_arm_row(f"{label} alone", record, f"small {label}") for label in record.chosen]
    arms: dict[str, str] = {}
    for label, goals in record.chosen.items():
        for goal, at in goals.items():
            pair = f"{at['fallback']:g} {at['rollback']:g}"
            arm = f"bild {label} {pair}"
            goal = goal if at["met"] else f"nearest to {goal}"
            arms[arm] = f"{arms[arm]}, {goal}" if arm in arms else f"BiLD {label}: {goal}"
    pairs = [
        _arm_row(f"{name} ({', '.join(arm.split()[2:])})", record, arm)
        for arm, name in arms.items()
    ]
    for i, metric in enumerate(metrics, start=1):
        _mark_best(pairs, i, [record.quality[metric][arm]["value"] for arm in arms])
    speeds = [record.speed[arm]["speedup"]["value"] for arm in arms]
    _mark_best(pairs, len(metrics) + 1, speeds)
    names = [METRIC_NAMES.get(metric, metric) for metric in metrics]
    headers = [
        "decoder (fallback, rollback)", *(f"{name} [95 %]" for name in names), "speedup [95 %]",
        "fallback %", "rollback %", "large forwards per 100 tokens",
    ]  # fmt: skip
    tables = [tabulate([*rows, *pairs], headers, tablefmt="github", disable_numparse=True)]
    if record.differences:
        goals_of: dict[tuple[str, ...], list[str]] = {}  # goals met by the same pairs share a row
        for d in record.differences:
            figures = [interval(d["quality"][metric], sign="+") for metric in metrics]
            row = f"{d['model']} against {d['against']}", *figures, interval(d["speed"], "x")
            goals_of.setdefault(row, []).append(d["goal"])
        rows = [[row[0], ", ".join(goals), *row[1:]] for row, goals in goals_of.items()]
        headers = ["small model", "at", *(f"{name} [95 %]" for name in names), "speed [95 %]"]
        tables.append(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    validation, test = (record.data[split] for split in ("validation", "test"))
    small = next(iter(record.models["small"].values()))
    tables.append(
        f"Timed on {test['samples']} test examples, side by side; of "
        f"{len(record.grid['fallbacks']) * len(record.grid['rollbacks'])} pairs of thresholds, "
        f"chosen on {validation['samples']} validation examples: the fastest that loses nothing, "
        f"and the fastest that loses at most one {names[0]}. Batch 1, {_machine(record.env)}; "
        f"{_sizes(record.models['large'], small)}."
    )
    return "\n\n".join(tables)


def _arm_row(name: str, record: SmallModelsRecord, arm: str) -> list[str]:
    quality, did = record.quality, record.decoding[arm]
    speed = "1x" if arm == "vanilla" else interval(record.speed[arm]["speedup"], "x")
    row = [name, *(interval(own[arm]) for own in quality.values()), speed]
    if "fallback_rate" not in did:
        return [*row, "", "", ""]
    rates = f"{did['fallback_rate']:.1f}", f"{did['rollback_rate']:.2f}"
    return [*row, *rates, f"{did['large_forward_rate']:.1f}"]


def search_table(record: SearchRecord) -> str:
    """The pairs worth choosing from, the chosen one, and what finding it cost."""
    asked, spent, metric = record.search, record.spent, record.quality["metric"]
    sure = f"{100 * asked['confidence']:g} %"
    allowed = f"{asked['max_loss']:g}" + (" %" if asked["percent"] else f" {metric}")
    rows = [
        [
            ("* " if index == record.chosen else "") + f"{p['fallback']:g}",
            f"{p['rollback']:g}",
            f"{p['score']:.2f}",
            f"{p['loss']:.2f}",
            f"{p['loss_bound']:.2f}",
            f"{p['speedup']:.2f}x [{p['low']:.2f}, {p['high']:.2f}]",
        ]
        for index in record.front
        for p in [record.points[index]]
    ]
    headers = [
        "fallback", "rollback", metric, "loss", f"at most ({sure})",
        f"speedup ({asked['speed']}) [95 %]",
    ]  # fmt: skip
    align = ("right",) * 5 + ("left",)
    lines = [
        tabulate(rows, headers, disable_numparse=True, colalign=align if rows else None),
        f"large alone: {interval(record.quality['vanilla'])} {metric} on "
        f"{record.data['samples']} examples",
        f"decoded: {spent['with_pairs']} examples with {len(record.points)} pairs, "
        f"{100 * spent['with_pairs'] / spent['grid_with_pairs']:.1f} % of what the full grid "
        f"decodes; {spent['large_alone']} by the large model alone",
    ]
    if record.chosen is None:
        lines.append(
            f"no pair was shown to lose at most {allowed} with {sure} confidence: allow more, "
            "decode more examples, or widen the ranges"
        )
    else:
        lines.append(f"*: the fastest pair that loses at most {allowed} with {sure} confidence")
    if record.check is not None:
        quality, speed = record.check["quality"]["bild"], record.check["speed"]["bild"]
        lines.append(
            f"checked on {record.check['data']['samples']} other examples, timed: "
            f"{metric} {interval(quality['difference'], sign='+')}, "
            f"speedup {interval(speed['speedup'], 'x')}"
        )
    return "\n\n".join(lines)


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
    """A Markdown table of a record of `bild.training.agreement.measure`."""
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


def interval(figure: dict[str, float], unit: str = "", sign: str = "-") -> str:
    """`value [low, high]`, two decimals; `sign` "+" for differences, to show it of gains too."""
    value, low, high = (f"{figure[name]:{sign}.2f}" for name in ("value", "low", "high"))
    return f"{value}{unit} [{low}, {high}]"


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

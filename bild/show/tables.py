"""Figures for people: the table at the end of a run, and rows of results beside published ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from bild.evaluation.arms import BILD, SMALL, VANILLA
from bild.evaluation.comparable import comparable
from bild.evaluation.environment import Environment
from bild.evaluation.record import (
    ArmFigures,
    Interval,
    ModelIdentity,
    Quality,
    RunRecord,
    arm_of,
)
from bild.policy import PUBLISHED, RULES
from bild.show.examples import ARM_NAMES, examples_text, typical
from bild.tasks.metrics import METRIC_NAMES
from bild.tasks.registry import PublishedRow, Thresholds, get
from bild.training.record import AgreementRecord
from bild.tuning.record import SearchRecord, SmallModelsRecord

if TYPE_CHECKING:
    from bild.evaluation.loop import Sample

PUBLISHED_COLUMNS = (
    "fallback", "rollback", "score", "speedup", "fallback %", "rollback %", "on",
)  # fmt: skip


def run_text(record: RunRecord, samples: Sequence[Sample]) -> str:
    """A finished run for people: examples, figures and published rows."""
    config = record.config
    rules = "" if config.bild is None else f", {config.bild.described}"
    if config.drawn is not None:
        how = "" if config.bild is None else f" ({config.bild.sampling})"
        rules += f", drawn{how}: {config.drawn.described}"
    parts = [
        examples_text(typical(samples, count=3)),
        f"{config.task}, {config.mode}{rules}, {record.data.samples} examples, "
        f"{record.large.id.precision}, {record.env.hardware}",
        run_table(record),
        published_table(config.task, config.mode),
    ]
    return "\n\n".join(part for part in parts if part)


def run_table(record: RunRecord) -> str:
    """The arms of one run, one a row, and a line on what BiLD did."""
    rows = []
    for kind, name in ARM_NAMES.items():
        arm = record.arm(kind)
        if arm is not None:
            speedup = arm.speed.speedup
            rows.append(
                [
                    name,
                    interval(arm.quality[record.metric]),
                    f"{1000 * arm.speed.seconds_per_sample:.0f}",
                    f"{arm.speed.tokens_per_second:.0f}",
                    "1.00x" if speedup is None else interval(speedup, "x"),
                ]
            )
    headers = ["", f"{record.metric} [95 %]", "ms/example", "tokens/s", "speedup [95 %]"]
    table = tabulate(rows, headers, disable_numparse=True)
    table += f"\nspeedups' intervals cover {record.timing.interval}"
    pair = record.arm(BILD)
    if pair is None or pair.rates is None or pair.identical is None:
        return table
    return table + (
        f"\n\nper 100 tokens: {pair.rates.fallback_rate:.1f} fallbacks, "
        f"{pair.rates.rollback_rate:.1f} rollbacks, {pair.rates.large_forward_rate:.1f} large "
        f"forwards (alone: 100); {100 * pair.identical:.0f} % of the outputs equal the large "
        "model's"
    )


def results_table(records: Sequence[RunRecord]) -> str:
    """A Markdown table of runs on the same data: the large model alone, the small one, each BiLD.

    Raises:
        BildError: the runs cannot be compared.
    """
    first = records[0]
    for other in records[1:]:
        comparable(first, other)
    rows = [_result_row(ARM_NAMES[VANILLA], first.large, [first.metric])]
    alone: set[str] = set()
    for record in records:
        arm, small = record.arm(SMALL), record.models.small.get("small")
        if arm is not None and small is not None and small.fingerprint not in alone:
            alone.add(small.fingerprint)
            name = f"{ARM_NAMES[SMALL]}, {record.config.mode}"
            rows.append(_result_row(name, arm, [first.metric]))
    named = [(_name(r), arm) for r in records if (arm := r.arm(BILD)) is not None]
    pairs = [_result_row(name, arm, [first.metric]) for name, arm in named]
    _mark_best(pairs, [arm for _, arm in named], [first.metric])
    headers = [*_headers([first.metric]), "outputs equal to large's"]
    table = tabulate([*rows, *pairs], headers, tablefmt="github", disable_numparse=True)
    small = next((m for r in records for m in r.models.small.values()), None)
    footnote = (
        f"{first.data.samples} examples, batch 1, {machine(first.env, first.large)}; "
        f"{_sizes(first.models.large, small)}; speedups' intervals: {first.timing.interval}"
    )
    return f"{table}\n\n{footnote}."


def _headers(metrics: Sequence[str]) -> list[str]:
    names = [METRIC_NAMES.get(metric, metric) for metric in metrics]
    return [
        "decoder (fallback, rollback)", *(f"{name} [95 %]" for name in names), "speedup [95 %]",
        "fallback %", "rollback %", "large forwards per 100 tokens",
    ]  # fmt: skip


def _result_row(
    name: str, arm: ArmFigures, metrics: Sequence[str], *, equal: bool = True
) -> list[str]:
    """A decoder's figures; with `equal` the share of its outputs that are the large model's."""
    speedup = "1x" if arm.speed.speedup is None else interval(arm.speed.speedup, "x")
    row = [name, *(interval(arm.quality[metric]) for metric in metrics), speedup]
    if arm.rates is None:
        row += ["", "", ""]
    else:
        row += [f"{arm.rates.fallback_rate:.1f}", f"{arm.rates.rollback_rate:.2f}"]
        row.append(f"{arm.rates.large_forward_rate:.1f}")
    share = 1.0 if arm.identical is None else arm.identical
    return [*row, f"{100 * share:.0f} %"] if equal else row


def _mark_best(rows: list[list[str]], arms: Sequence[ArmFigures], metrics: Sequence[str]) -> None:
    """Set the best score of each metric and the best speedup in bold, of several rows."""
    values = [[arm.quality[metric].value for arm in arms] for metric in metrics]
    values.append([1.0 if a.speed.speedup is None else a.speed.speedup.value for a in arms])
    for column, own in enumerate(values, start=1):
        for row, value in zip(rows, own, strict=True):
            if len(rows) > 1 and value == max(own):
                row[column] = f"**{row[column]}**"


def machine(env: Environment, arm: ArmFigures) -> str:
    """What ran on what, for a footnote."""
    versions = ", ".join(f"{name} {env.versions[name]}" for name in ("torch", "transformers"))
    return f"engine {arm.built}, {env.workplace}, {versions}"


def _sizes(large: ModelIdentity, small: ModelIdentity | None) -> str:
    sizes = f"large {(large.parameters or 0) / 1e6:.1f} M parameters"
    return sizes if small is None else f"{sizes}, small {(small.parameters or 0) / 1e6:.1f} M"


def _name(record: RunRecord) -> str:
    asked = record.config.bild
    assert asked is not None
    if asked.acceptance is not None or asked.drafting is not None:
        return f"BiLD {record.config.mode} ({asked.described})"
    published = asked.acceptance_rule == RULES[PUBLISHED](asked.rollback_threshold)
    rules = "" if published else f", {asked.variant} rules"
    thresholds = f"{asked.fallback_threshold:g}, {asked.rollback_threshold:g}"
    drafts = record.config.small_precision
    how = "" if drafts is None else f", drafts in {drafts}"
    return f"BiLD {record.config.mode} ({thresholds}){rules}{how}"


def small_models_table(record: SmallModelsRecord) -> str:
    """Two Markdown tables: every decoder timed on test examples, and the last small model's lead.

    One row a pair of thresholds, with the goals that it was chosen for.
    """
    metrics = record.metrics
    large = record.arm(VANILLA)
    rows = [_result_row(ARM_NAMES[VANILLA], large, metrics, equal=False)]
    for label in record.chosen:
        alone = record.arm(SMALL, label=label)
        rows.append(_result_row(f"{label} alone", alone, metrics, equal=False))
    goals_of: dict[tuple[str, Thresholds], list[str]] = {}
    for label, goals in record.chosen.items():
        for goal, at in goals.items():
            pair = Thresholds(at.fallback, at.rollback)
            goal = goal if at.met else f"nearest to {goal}"
            goals_of.setdefault((label, pair), []).append(goal)
    arms = [record.arm(BILD, label=label, thresholds=pair) for label, pair in goals_of]
    pairs = [
        _result_row(
            f"BiLD {label}: {', '.join(goals)} ({pair.fallback:g}, {pair.rollback:g})",
            arm, metrics, equal=False,
        )
        for arm, ((label, pair), goals) in zip(arms, goals_of.items(), strict=True)
    ]  # fmt: skip
    _mark_best(pairs, arms, metrics)
    tables = [
        tabulate([*rows, *pairs], _headers(metrics), tablefmt="github", disable_numparse=True)
    ]
    if record.differences:
        tables.append(_differences_table(record))
    small = next(iter(record.models.small.values()))
    name = METRIC_NAMES.get(metrics[0], metrics[0])
    tables.append(
        f"Timed on {record.data.samples} test examples, side by side; of {record.grid.size} pairs "
        f"of thresholds, chosen on {record.validation.samples} validation examples: the fastest "
        f"that loses nothing, and the fastest that loses at most one {name}. Batch 1, "
        f"{machine(record.env, large)}; {_sizes(record.models.large, small)}; intervals: "
        f"{record.timing.interval}."
    )
    return "\n\n".join(tables)


def _differences_table(record: SmallModelsRecord) -> str:
    """The last small model's lead; goals met by the same pairs share a row."""
    goals_of: dict[tuple[str, ...], list[str]] = {}
    for d in record.differences:
        figures = [interval(d.quality[metric], sign="+") for metric in record.metrics]
        row = f"{d.model} against {d.against}", *figures, interval(d.speed, "x")
        goals_of.setdefault(row, []).append(d.goal)
    rows = [[row[0], ", ".join(goals), *row[1:]] for row, goals in goals_of.items()]
    names = [METRIC_NAMES.get(metric, metric) for metric in record.metrics]
    headers = ["small model", "at", *(f"{name} [95 %]" for name in names), "speed [95 %]"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def search_table(record: SearchRecord) -> str:
    """The thresholds worth choosing from, the chosen ones, and what finding them cost."""
    asked, spent, metric = record.search, record.spent, record.metric
    sure = f"{100 * asked.confidence:g} %"
    allowed = f"{asked.max_loss:g}" + (" %" if asked.percent else f" {metric}")
    rows = [
        [
            ("* " if index == record.chosen else "") + f"{p.fallback:g}",
            f"{p.rollback:g}",
            f"{p.score:.2f}",
            f"{p.loss:.2f}",
            f"{p.loss_bound:.2f}",
            f"{p.speedup:.2f}x [{p.low:.2f}, {p.high:.2f}]",
        ]
        for index in record.front
        for p in [record.points[index]]
    ]
    headers = [
        "fallback", "rollback", metric, "loss", f"at most ({sure})",
        f"speedup ({asked.speed}) [95 %]",
    ]  # fmt: skip
    align = ("right",) * 5 + ("left",)
    lines = [
        tabulate(rows, headers, disable_numparse=True, colalign=align if rows else None),
        f"large alone: {interval(record.large)} {metric} on {record.data.samples} examples",
        f"at most: with {sure} confidence true of all {record.candidates} thresholds that there "
        "were to choose from, and so of the chosen ones",
        f"decoded: {spent.by_pair} examples with {len(record.points)} different thresholds, "
        f"{100 * spent.by_pair / spent.grid_by_pair:.1f} % of what the full grid decodes; "
        f"{spent.large_alone} by the large model alone",
    ]
    if record.chosen is None:
        lines.append(
            f"no thresholds were shown to lose at most {allowed} with {sure} confidence: allow "
            "more, decode more examples, or look elsewhere (fewer thresholds to choose from need "
            "less proof each)"
        )
    else:
        lines.append(f"*: the fastest that lose at most {allowed} with {sure} confidence")
    pair = None if record.check is None else arm_of(record.check.arms, BILD)
    if record.check is not None and pair is not None:
        difference, speedup = pair.quality[metric].difference, pair.speed.speedup
        assert difference is not None
        assert speedup is not None
        lines.append(
            f"checked on {record.check.data.samples} other examples, timed: "
            f"{metric} {interval(difference, sign='+')}, speedup {interval(speedup, 'x')}"
        )
    return "\n\n".join(lines)


def published_table(task: str, mode: str) -> str:
    """What was published for a task and mode; empty when nothing was."""
    rows = [r for r in get(task).published if r.mode == mode]
    if not rows:
        return ""
    return tabulate(
        [_published_row(r) for r in rows],
        ["published", *PUBLISHED_COLUMNS],
        disable_numparse=True,
    )


def paper_table(task: str) -> str:
    """A Markdown table of the paper's own rows of a task, to stand under one's own."""
    rows = [r for r in get(task).published if r.source == "paper"]
    cells = [[r.mode, *_published_row(r)[1:]] for r in rows]
    headers = ["paper", *PUBLISHED_COLUMNS]
    return tabulate(cells, headers, tablefmt="github", disable_numparse=True)


def agreement_table(record: AgreementRecord) -> str:
    """A Markdown table of how often small models agree with the large one."""
    rows = []
    for result in record.results:
        found = result.agreement
        percent = Interval(100 * found.value, 100 * found.low, 100 * found.high)
        rows.append(
            [
                result.model,
                result.text,
                f"{result.positions:,}",
                interval(percent),
                f"{100 * result.mean_confidence:.1f}",
                f"{100 * result.calibration_error:.1f}",
            ]
        )
    headers = [
        "small model", "on prefixes of", "positions", "agreement % [95 %]", "mean confidence %",
        "calibration error %",
    ]  # fmt: skip
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def interval(figure: Interval | Quality, unit: str = "", sign: str = "-") -> str:
    """`value [low, high]`, two decimals; `sign` "+" for differences, to show it of gains too."""
    parts = (figure.value, figure.low, figure.high)
    value, low, high = (f"{part:{sign}.2f}" for part in parts)
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

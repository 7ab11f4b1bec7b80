"""A benchmark's record for people: who is how fast, where the time goes, and what it should be."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from bild.benchmark.record import (
    BenchmarkArm,
    BenchmarkRecord,
    CostFigures,
    Growth,
    ModelUse,
    Ratio,
)
from bild.evaluation.arms import BILD, SMALL, ArmId
from bild.show.tables import interval
from bild.tasks.metrics import METRIC_NAMES


def benchmark_text(record: BenchmarkRecord) -> str:
    """The tables of a benchmark, one under the other."""
    if record.growth:
        parts = [_growth_table(record)]
    elif record.throughput:
        parts = [_throughput_table(record)]
    else:
        parts = [_speed_table(record), _inside_table(record), _costs_table(record)]
    memory = record.memory
    parts.append(
        f"memory ceiling {_gigabytes(memory.median)} "
        f"[{_gigabytes(memory.low)}, {_gigabytes(memory.high)}] GB/s; "
        f"excluded from the time: {', '.join(record.timing.excluded)}; speedups' intervals cover "
        f"{record.timing.interval}"
    )
    parts += [f"{_name(f.title, f.id)} did not run: {f.why}" for f in record.failed]
    return "\n\n".join(part for part in parts if part)


def heading(record: BenchmarkRecord) -> str:
    """What was run on what, in a line."""
    bild, env = record.config.bild, record.env
    models = " / ".join(m.id for m in (record.models.large, *record.models.small.values()))
    return (
        f"{models}, {record.data.origin}, {bild.described}, "
        f"{record.data.samples} samples, {env.workplace}"
    )


# ------------------------------------------------------------------------------ in pages


def speed_summary(record: BenchmarkRecord) -> str:
    """A Markdown table of a benchmark's record: one arm a row, the fastest with the large model in
    bold.

    A record of output lengths gives milliseconds a token at each of them instead; one of batch
    sizes, sentences a second at each.
    """
    if record.throughput:
        rows, headers = _throughput_rows(record)
        return f"{_markdown(rows, headers)}\n\n{heading(record)}; {SENTENCES}."
    if record.growth:
        rows, headers = _growth_rows(record.growth)
        return f"{_markdown(rows, headers)}\n\n{heading(record)}; ms a token without the encoders."
    metric = _metric(record)
    large = (a for a in record.arms if a.id.kind not in (SMALL, "greedy-small"))
    fastest = max((a.ratio.seconds.value for a in large if a.ratio), default=None)
    rows = []
    for arm in record.arms:
        speedup = interval(arm.ratio.seconds, "x") if arm.ratio else ""
        if arm.ratio and arm.ratio.seconds.value == fastest:
            speedup = f"**{speedup}**"
        row = [arm.title, arm.id.precisions, f"{1000 * arm.seconds.median:.0f}", speedup]
        row.append(_rate(arm.models.get("large")))
        row.append(_percent(arm.outside_share, 1) if arm.id.kind == BILD else "")
        rows.append([*row, interval(arm.quality)] if arm.quality is not None else row)
    headers = ["decoder", "precision", "ms/example", "speedup [95 %]"]
    headers += ["large forwards per 100 tokens", "time outside the models"]
    headers += [f"{metric} [95 %]"] if metric else []
    return f"{_markdown(rows, headers)}\n\n{_footnote(record)}"


def two_factors(records: Sequence[BenchmarkRecord]) -> str:
    """A Markdown table of what the engine gives, and what the method adds on top of it.

    One row an engine on which the large model ran alone and in a pair; speedups are over
    transformers' greedy decoding in the same benchmark.
    """
    rows = []
    for record in records:
        for pair in record.arms:
            if pair.id.kind != BILD or pair.ratio is None or pair.ratio_alone is None:
                continue
            alone = _arm(record, pair.ratio_alone.to)
            if alone is None or alone.ratio is None:
                continue
            rows.append(
                [
                    " / ".join(m.id for m in (record.models.large, *record.models.small.values())),
                    pair.built,
                    interval(alone.ratio.seconds, "x"),
                    _method(pair.id),
                    interval(pair.ratio.seconds, "x"),
                    f"**{interval(pair.ratio_alone.seconds, 'x')}**",
                ]
            )
    headers = ["pair", "engine", "large model alone", "method", "with it", "what it adds"]
    notes = dict.fromkeys(_footnote(record) for record in records)
    return f"{_markdown(rows, headers)}\n\nOver transformers' greedy decoding. {' '.join(notes)}"


def _method(pair: ArmId) -> str:
    guesses = " with guesses" if pair.ahead else ", adaptive" if pair.adaptive else ""
    drafts = "" if pair.small_precision is None else f", drafts in {pair.small_precision}"
    return f"BiLD{guesses}{drafts}"


def _footnote(record: BenchmarkRecord) -> str:
    versions = ", ".join(f"{name} {v}" for name, v in record.env.versions.items())
    return f"{heading(record)}, {versions}; speedups' intervals: {record.timing.interval}."


def _arm(record: BenchmarkRecord, id: ArmId) -> BenchmarkArm | None:
    return next((arm for arm in record.arms if arm.id == id), None)


def _markdown(rows: list[list[str]], headers: list[str]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


# ------------------------------------------------------------------------------ at the terminal


def _speed_table(record: BenchmarkRecord) -> str:
    if not record.arms:
        return ""
    metric = _metric(record)
    planted = any(arm.as_planned is not None for arm in record.arms)
    headers = ["", "precision", "s/sample [quartiles]", "tokens/s"]
    headers += ["speedup [95 %]", "decoding", "same precision", "over large alone"]
    headers += ["same output", "large", "small"]
    headers += [metric] if metric else []
    headers += ["as planned"] if planted else []
    rows = []
    for arm in record.arms:
        seconds = arm.seconds
        row = [
            arm.title,
            arm.id.precisions,
            f"{seconds.median:.3f} [{seconds.low:.3f}, {seconds.high:.3f}]",
            f"{arm.tokens_per_second:.1f}",
            interval(arm.ratio.seconds, "x") if arm.ratio else "",
            f"{arm.ratio.decoding:.2f}x" if arm.ratio and arm.ratio.decoding else "",
            _times(arm.ratio_same),
            _times(arm.ratio_alone),
            _percent(arm.same_output),
            *(_rate(arm.models.get(which)) for which in ("large", "small")),
        ]
        row += [interval(arm.quality)] if arm.quality is not None else []
        row += [_percent(arm.as_planned)] if planted else []
        rows.append(row)
    reference = next((a.ratio.to for a in record.arms if a.ratio), None)
    note = "large, small: forwards per 100 tokens; same output: as the first of BiLD's arms, or of"
    note += " transformers greedy"
    if reference is not None:
        note = f"speedup: over {reference}; decoding: without the encoders; {note}"
    return tabulate(rows, headers, disable_numparse=True) + f"\n{note}"


def _inside_table(record: BenchmarkRecord) -> str:
    rows = []
    for arm in record.arms:
        encoders = arm.seconds.median * (arm.encoder_share or 0.0)
        row = [arm.title, arm.id.precisions, _milliseconds(encoders) if arm.encoder_share else ""]
        for which in ("large", "small"):
            use = arm.models.get(which)
            row += ["", "", ""] if use is None else _use(use)
        rows.append([*row, _percent(arm.outside_share, 1), f"{arm.ready_seconds:.1f}"])
    headers = ["", "precision", "encoders ms"]
    headers += ["ms/large", "GB/s", "of ceiling", "ms/small", "GB/s", "of ceiling"]
    headers += ["outside models", "ready after s"]
    return tabulate(rows, headers, disable_numparse=True) if rows else ""


def _use(use: ModelUse) -> list[str]:
    seconds = _milliseconds(use.seconds_per_forward)
    return [seconds, _gigabytes(use.bytes_per_second), _percent(use.of_ceiling)]


def _costs_table(record: BenchmarkRecord) -> str:
    costs: list[tuple[BenchmarkArm, CostFigures]] = [
        (arm, arm.costs) for arm in record.arms if arm.costs is not None
    ]
    if not costs:
        return ""
    rows = []
    for arm, cost in costs:
        steps = [
            f"{_milliseconds(step.seconds)} ({_percent(step.of_ceiling)})"
            for step in (*cost.large_steps.values(), cost.small_step)
        ]
        kinds = ("predicted", "measured", "floor")
        speedups = [f"{cost.speedups[k]:.2f}x" if k in cost.speedups else "" for k in kinds]
        rows.append([arm.title, arm.id.precisions, *steps, *speedups])
    headers = ["", "precision", *(f"large, {w}" for w in costs[0][1].large_steps), "small"]
    headers += ["predicted", "measured", "floor"]
    return tabulate(rows, headers, disable_numparse=True) + (
        "\nms of one forward by the tokens fed, and share of the memory ceiling; speedups by the "
        "cost model, as measured, and where memory sets the limit"
    )


def _growth_rows(growth: Sequence[Growth]) -> tuple[list[list[str]], list[str]]:
    rows = []
    for arm in growth:
        times = [
            "{} [{}, {}]".format(*map(_milliseconds, (s.median, s.low, s.high)))
            for s in arm.decoding.values()
        ]
        grown = f"{arm.longest_over_shortest:.2f}"
        rows.append([arm.title, arm.id.precisions, *times, grown])
    return rows, ["", "precision", *(f"{n} tokens" for n in growth[0].decoding), "growth"]


def _growth_table(record: BenchmarkRecord) -> str:
    rows, headers = _growth_rows(record.growth)
    return tabulate(rows, headers, disable_numparse=True) + (
        "\nms a token without the encoders [quartiles]; growth: the longest over the shortest"
    )


SENTENCES = (
    "sentences a second, encoders included, by how many are decoded at a time [quartiles of "
    "passes]; the fastest of each size in bold; *: other tokens than at the first size"
)


def _throughput_rows(record: BenchmarkRecord) -> tuple[list[list[str]], list[str]]:
    sizes = record.config.batch_sizes
    fastest = {
        size: max(arm.sentences_per_second[size].median for arm in record.throughput)
        for size in sizes
    }
    rows = []
    for arm in record.throughput:
        row = [arm.title, arm.id.precisions]
        for size in sizes:
            own = arm.sentences_per_second[size]
            text = f"{own.median:.3g} [{own.low:.3g}, {own.high:.3g}]"
            text = f"**{text}**" if own.median == fastest[size] else text
            row.append(text if arm.same_tokens[size] else f"{text}*")
        rows.append(row)
    return rows, ["decoder", "precision", *(str(size) for size in sizes)]


def _throughput_table(record: BenchmarkRecord) -> str:
    rows, headers = _throughput_rows(record)
    return f"{tabulate(rows, headers, disable_numparse=True)}\n{SENTENCES}"


def _name(title: str, id: ArmId) -> str:
    return f"{title} ({id.precision})"


def _metric(record: BenchmarkRecord) -> str:
    """What people call the metric; empty where nothing was scored."""
    scored = next((a.quality for a in record.arms if a.quality is not None), None)
    return "" if scored is None else METRIC_NAMES.get(record.metric, record.metric)


def _times(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{ratio.seconds.value:.2f}x"


def _rate(use: ModelUse | None) -> str:
    return "" if use is None else f"{use.forward_rate:.1f}"


def _percent(share: float | None, digits: int = 0) -> str:
    return "" if share is None else f"{100 * share:.{digits}f} %"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g}" if seconds < 1 else f"{1000 * seconds:.0f}"


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:.1f}"

"""A benchmark's record for people: who is how fast, where the time goes, and what it should be."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from bild.benchmark.arms import title
from bild.evaluation.record import Interval
from bild.show.tables import interval
from bild.tasks.metrics import METRIC_NAMES


def comparison_text(record: dict[str, Any]) -> str:
    """The tables of a record of `bild.benchmark.comparison`, one under the other."""
    if "growth" in record:
        parts = [_growth_table(record)]
    else:
        parts = [_speed_table(record), _inside_table(record), _costs_table(record)]
    memory = record["memory"]["bytes_per_second"]
    parts.append(
        f"memory ceiling {_gigabytes(memory['median'])} "
        f"[{_gigabytes(memory['low'])}, {_gigabytes(memory['high'])}] GB/s; "
        f"excluded from the time: {', '.join(record['excluded_from_time'])}"
    )
    parts += [f"{name} did not run: {why}" for name, why in record["failed"].items()]
    return "\n\n".join(part for part in parts if part)


def heading(record: dict[str, Any]) -> str:
    """What was run on what, in a line."""
    config, env = record["config"], record["env"]
    models = " / ".join(record["models"][which]["id"] for which in ("large", "small"))
    bild = config["bild"]
    return (
        f"{models}, {record['data']['origin']}, fallback {bild['fallback_threshold']:g}, "
        f"rollback {bild['rollback_threshold']:g}, {bild['variant']} rules, "
        f"{record['data']['samples']} samples, {env['threads']} thread(s) of {env['processor']}"
    )


def speed_summary(record: dict[str, Any]) -> str:
    """A Markdown table of a benchmark's record: one arm a row, the fastest in bold.

    A record of output lengths gives milliseconds a token at each of them instead.
    """
    if "growth" in record:
        rows, headers = _growth_rows(record)
        return f"{_markdown(rows, headers)}\n\n{heading(record)}; ms a token without the encoders."
    arms = record["arms"]
    quality = next((a["quality"]["name"] for a in arms.values() if "quality" in a), None)
    fastest = max((a["ratio"]["value"] for a in arms.values() if "ratio" in a), default=None)
    rows = []
    for name, arm in arms.items():
        speedup = _bounded(arm["ratio"], "x") if "ratio" in arm else ""
        if "ratio" in arm and arm["ratio"]["value"] == fastest:
            speedup = f"**{speedup}**"
        row = [*_names(name), f"{1000 * arm['seconds']['median']:.0f}", speedup]
        row.append(_rate(arm["models"].get("large")))
        row.append(_percent(arm["overhead"], 1) if name.startswith("bild-") else "")
        rows.append([*row, _bounded(arm["quality"])] if quality is not None else row)
    headers = ["decoder", "precision", "ms/example", "speedup [95 %]"]
    headers += ["large forwards per 100 tokens", "time outside the models"]
    headers += [f"{METRIC_NAMES.get(quality, quality)} [95 %]"] if quality is not None else []
    return f"{_markdown(rows, headers)}\n\n{heading(record)}."


def _markdown(rows: list[list[str]], headers: list[str]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _speed_table(record: dict[str, Any]) -> str:
    arms = record["arms"]
    if not arms:
        return ""
    quality = next((a["quality"]["name"] for a in arms.values() if "quality" in a), None)
    planted = any("as_planned" in a for a in arms.values())
    headers = ["", "precision", "s/sample [quartiles]", "tokens/s"]
    headers += ["speedup [95 %]", "decoding", "same precision", "same output", "large", "small"]
    headers += [METRIC_NAMES.get(quality, quality)] if quality is not None else []
    headers += ["as planned"] if planted else []
    rows = []
    for name, arm in arms.items():
        # BiLD may well differ from greedy search; its engines must not differ from each other.
        alike = "bild-" if name.startswith("bild-") else "greedy@"
        other = next((n for n in arms if n.startswith(alike)), name)
        row = [
            *_names(name),
            "{median:.3f} [{low:.3f}, {high:.3f}]".format(**arm["seconds"]),
            f"{arm['tokens_per_second']:.1f}",
            _bounded(arm["ratio"], "x") if "ratio" in arm else "",
            f"{arm['ratio']['decoding']['value']:.2f}x" if "ratio" in arm else "",
            f"{arm['ratio_same']['value']:.2f}x" if "ratio_same" in arm else "",
            f"{100 * arm['same_output'][other]:.0f} %",
            *(_rate(arm["models"].get(which)) for which in ("large", "small")),
        ]
        row += [_bounded(arm["quality"])] if quality is not None else []
        row += [_percent(arm.get("as_planned"))] if planted else []
        rows.append(row)
    reference = next((a["ratio"]["to"] for a in arms.values() if "ratio" in a), None)
    note = "large, small: forwards per 100 tokens; same output: as the first of BiLD's arms, or of"
    note += " transformers greedy"
    if reference is not None:
        note = f"speedup: over {reference}; decoding: without the encoders; {note}"
    return tabulate(rows, headers, disable_numparse=True) + f"\n{note}"


def _inside_table(record: dict[str, Any]) -> str:
    rows = []
    for name, arm in record["arms"].items():
        row = [*_names(name), _milliseconds(arm["encoder_seconds"]["median"])]
        for which in ("large", "small"):
            use = arm["models"].get(which)
            if use is None:
                row += ["", "", ""]
            else:
                row += [
                    _milliseconds(use["seconds_per_forward"]),
                    _gigabytes(use["bytes_per_second"]),
                    _percent(use["of_ceiling"]),
                ]
        rows.append([*row, _percent(arm["overhead"], 1), f"{arm['ready_seconds']:.1f}"])
    headers = ["", "precision", "encoders ms"]
    headers += ["ms/large", "GB/s", "of ceiling", "ms/small", "GB/s", "of ceiling"]
    headers += ["outside models", "ready after s"]
    return tabulate(rows, headers, disable_numparse=True) if rows else ""


def _costs_table(record: dict[str, Any]) -> str:
    rows = []
    for name, cost in record["costs"].items():
        steps = [
            f"{_milliseconds(step['seconds'])} ({_percent(step['of_ceiling'])})"
            for step in (*cost["large_steps"].values(), cost["small_step"])
        ]
        speedup = cost.get("speedup", {})
        speedups = [
            f"{speedup[kind]:.2f}x" if kind in speedup else ""
            for kind in ("predicted", "measured", "floor")
        ]
        rows.append([*_names(name), *steps, *speedups])
    if not rows:
        return ""
    widths = next(iter(record["costs"].values()))["large_steps"]
    headers = ["", "precision", *(f"large, {w}" for w in widths), "small"]
    headers += ["predicted", "measured", "floor"]
    return tabulate(rows, headers, disable_numparse=True) + (
        "\nms of one forward by the tokens fed, and share of the memory ceiling; speedups by the "
        "cost model, as measured, and where memory sets the limit"
    )


def _growth_rows(record: dict[str, Any]) -> tuple[list[list[str]], list[str]]:
    rows = []
    lengths = record["config"]["lengths"]
    for name, growth in record["growth"].items():
        times = [
            "{} [{}, {}]".format(
                *(_milliseconds(figures["decoding"][k]) for k in ("median", "low", "high"))
            )
            for figures in growth["lengths"].values()
        ]
        rows.append([*_names(name), *times, f"{growth['longest_over_shortest']:.2f}"])
    return rows, ["", "precision", *(f"{n} tokens" for n in sorted(set(lengths))), "growth"]


def _growth_table(record: dict[str, Any]) -> str:
    rows, headers = _growth_rows(record)
    return tabulate(rows, headers, disable_numparse=True) + (
        "\nms a token without the encoders [quartiles]; growth: the longest over the shortest"
    )


def _names(name: str) -> list[str]:
    return [title(name), name.partition("@")[2]]


def _rate(use: dict[str, Any] | None) -> str:
    return "" if use is None else f"{use['forward_rate']:.1f}"


def _percent(share: float | None, digits: int = 0) -> str:
    return "" if share is None else f"{100 * share:.{digits}f} %"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g}" if seconds < 1 else f"{1000 * seconds:.0f}"


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:.1f}"


def _bounded(figure: dict[str, Any], unit: str = "") -> str:
    return interval(Interval(figure["value"], figure["low"], figure["high"]), unit)

"""Pictures, as SVG: how a training went, and how well a model knows what it knows."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from bild.files import write_atomically

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "bild",  # the same picture is the same file
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def learning_curve(log: Sequence[Mapping[str, float]], metric: str | None, path: Path) -> None:
    """Draw the losses of a training, and its validation metric beside them.

    Args:
        log: the trainer's `log_history`.
        metric: the metric of `bild.tasks.metrics` that was computed at the validation points, if
            any.
        path: the SVG file.
    """
    with matplotlib.rc_context(STYLE):
        panels = 1 if metric is None else 2
        figure = Figure(figsize=(5.5 * panels, 3.5), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        for key, name in (("loss", "training"), ("eval_loss", "validation")):
            axes[0].plot(*_series(log, key), label=name)
        axes[0].set(xlabel="step", ylabel="loss (nats per token)")
        axes[0].legend(frameon=False)
        if metric is not None:
            axes[1].plot(*_series(log, f"eval_{metric}"), color="C1", marker=".")
            axes[1].set(xlabel="step", ylabel=f"validation {metric}")
        _write(figure, path)


def reliability_diagram(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw, for each text, how often small models agree with the large one at each confidence.

    Args:
        results: entries of `bild.training.agreement.measure`'s record: "model", "text", "agreement"
            and "bins".
        path: the SVG file.
    """
    texts = list(dict.fromkeys(result["text"] for result in results))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.5 * len(texts), 6), layout="constrained")
        rows = figure.subplots(
            2, len(texts), squeeze=False, sharex=True, sharey="row", height_ratios=(3, 1)
        )
        for column, text in enumerate(texts):
            upper, lower = rows[0][column], rows[1][column]
            upper.plot((0, 1), (0, 1), color="grey", linestyle=":")
            for result in results:
                if result["text"] != text:
                    continue
                bins = [b for b in result["bins"] if b["positions"]]
                share = 100 * result["agreement"]["value"]
                upper.plot(
                    [b["confidence"] for b in bins],
                    [b["agreement"] for b in bins],
                    marker=".",
                    label=f"{result['model']} ({share:.1f} % agree)",
                )
                edges = [b["low"] for b in result["bins"]] + [1.0]
                lower.stairs([b["share"] for b in result["bins"]], edges)
            upper.set_title(f"on {text}")
            upper.legend(frameon=False)
            lower.set_xlabel("confidence of the small model")
        rows[0][0].set_ylabel("share that agrees with the large model")
        rows[1][0].set_ylabel("share of positions")
        _write(figure, path)


def _series(log: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    points: dict[float, float] = {}
    for entry in log:
        if key in entry:  # a second one of a step is of the checkpoint that was kept
            points.setdefault(entry["step"], entry[key])
    return list(points), list(points.values())


def _write(figure: Figure, path: Path) -> None:
    picture = io.StringIO()
    figure.savefig(picture, format="svg", metadata={"Date": None})
    # Trailing spaces would be changed by a repository's whitespace checks.
    lines = (line.rstrip() for line in picture.getvalue().splitlines())
    write_atomically(path, "\n".join(lines) + "\n")

"""How a training went, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from bild.pictures import BLUE, GREEN, SETTINGS, VERMILLION, save


def learning_curve(log: Sequence[Mapping[str, float]], metric: str | None, path: Path) -> None:
    """Draw the losses of a training, and its validation metric beside them.

    Args:
        log: the trainer's `log_history`.
        metric: the metric of `bild.tasks.metrics` that was computed at the validation points, if
            any.
        path: the SVG file.
    """
    with matplotlib.rc_context(SETTINGS):
        panels = 1 if metric is None else 2
        figure = Figure(figsize=(4.5 * panels, 3.2), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        for key, name, look in (
            ("loss", "training", {"color": BLUE}),
            ("eval_loss", "validation", {"color": VERMILLION, "linestyle": "--"}),
        ):
            axes[0].plot(*_series(log, key), label=name, **look)
        axes[0].set(xlabel="step", ylabel="loss (nats per token)")
        axes[0].legend()
        if metric is not None:
            axes[1].plot(*_series(log, f"eval_{metric}"), color=GREEN, marker=".")
            axes[1].set(xlabel="step", ylabel=f"validation {metric}")
        for place in axes:
            place.grid(visible=True)
    save(figure, path, "Losses over the training steps")


def _series(log: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    points: dict[float, float] = {}
    for entry in log:
        if key in entry:  # a second one of a step is of the checkpoint that was kept
            points.setdefault(entry["step"], entry[key])
    return list(points), list(points.values())

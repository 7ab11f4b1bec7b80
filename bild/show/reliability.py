"""How often small models agree with the large one at each confidence, as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bild.pictures import INK, SETTINGS, look_of
from bild.training.record import Agreement


def draw_reliability(results: Sequence[Agreement]) -> Figure:
    """A column a text: agreement over confidence, and how many positions have which confidence.

    On the dotted line a model is as confident as it should be.
    """
    texts = list(dict.fromkeys(result.text for result in results))
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(3.7 * len(texts), 5.6), layout="constrained")
        rows = figure.subplots(
            2, len(texts), squeeze=False, sharex=True, sharey="row", height_ratios=(3, 1)
        )
        for text, upper, lower in zip(texts, *rows, strict=True):
            upper.plot((0, 1), (0, 1), color=INK, linestyle=":")
            for result in results:
                if result.text == text:
                    _draw(upper, lower, result)
            upper.set_title(f"on {text}")
            lower.set_xlabel("confidence of the small model")
            for place in (upper, lower):
                place.grid(visible=True)
        rows[0][0].set_ylabel("share that agrees with the large model")
        rows[1][0].set_ylabel("share of\npositions")
        figure.legend(handles=_legend(results), loc="outside lower center")
    return figure


def _draw(upper: Axes, lower: Axes, result: Agreement) -> None:
    look = look_of(result.model)
    filled = [
        (b.confidence, b.agreement)
        for b in result.bins
        if b.confidence is not None and b.agreement is not None
    ]
    upper.plot(
        *zip(*filled, strict=True),
        color=look.colour,
        marker=look.marker,
        markersize=5.5,
        linewidth=1.2,
    )
    edges = [b.low for b in result.bins] + [1.0]
    lower.stairs([b.share for b in result.bins], edges, color=look.colour)


def _legend(results: Sequence[Agreement]) -> list[Line2D]:
    """An entry a model: how often it agrees, on each text in turn."""
    entries = []
    for model in dict.fromkeys(result.model for result in results):
        look = look_of(model)
        shares = [f"{100 * r.agreement.value:.1f} %" for r in results if r.model == model]
        entries.append(
            Line2D(
                [], [], color=look.colour, marker=look.marker, markersize=5.5, linewidth=1.2,
                label=f"{model}: {' and '.join(shares)} agree",
            )
        )  # fmt: skip
    return entries

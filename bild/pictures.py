"""What all pictures share: their settings, one colour and marker a kind of model, and their files.

They stand on white and on black: nothing is painted behind them, and their ink is a grey that reads
on both. Kinds of models differ in marker, too, not in colour alone; the colours are those of Okabe
and Ito (2008), which people tell apart whatever colours they see.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bild.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#797979"  # 4.4 to 1 on white, and on the black of dark pages
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
OLIVE = "#8A7A00"

SETTINGS: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "bild",  # the same ids every time
}


@dataclass(frozen=True)
class Look:
    """How a kind of model is drawn."""

    colour: str
    marker: str


# The kinds of small models, and the pairs that they make.
KINDS = {
    "on-policy": Look(GREEN, "s"),
    "control": Look(PURPLE, "X"),
    "unaligned": Look(BLUE, "o"),
    "aligned": Look(VERMILLION, "^"),
    "drafter": Look(OLIVE, "D"),
}


def look_of(model: str) -> Look:
    """How a small model is drawn; its name says of which kind it is, unaligned if it says nothing.

    Args:
        model: a label, folder or id, such as "out/small-aligned".
    """
    return next((KINDS[kind] for kind in KINDS if kind in model), KINDS["unaligned"])


def save(figure: Figure, path: Path, title: str) -> None:
    """Write a figure as SVG or PNG, by the ending; drawn again it is the same file, byte by byte.

    Raises:
        BildError: the file cannot be written.
    """
    import matplotlib

    svg = path.suffix == ".svg"
    nothing = {"Date": None, "Creator": None} if svg else {"Software": None}
    drawn = io.BytesIO()
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(
            drawn,
            format=path.suffix.removeprefix("."),
            dpi=200,
            transparent=True,
            metadata={"Title": title, **nothing},
        )
    content = drawn.getvalue()
    if svg:  # trailing spaces would be changed by a repository's whitespace checks
        lines = (line.rstrip() for line in content.decode("utf-8").splitlines())
        content = ("\n".join(lines) + "\n").encode("utf-8")
    write_atomically(path, content)

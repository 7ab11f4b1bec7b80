"""Examples of a run as text: which ones, and how they are printed."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bild.evaluation.arms import BILD, SMALL, VANILLA
from bild.visible import visible

if TYPE_CHECKING:
    from bild.evaluation.loop import Sample

ARM_NAMES = {VANILLA: "large alone", SMALL: "small alone", BILD: "BiLD"}


def typical(samples: Sequence[Sample], count: int, of: int = 100) -> list[Sample]:
    """A good, a middling and a poor example: at equal distances in the order of their quality.

    The first examples of a file may be the hardest, and the best ones would flatter.

    Args:
        samples: of a run.
        count: how many are wanted.
        of: the first so many are looked at, by the chrF of what is shown with its reference;
            where there is no reference, the first ones are taken.
    """
    if any(sample.reference is None for sample in samples[:of]):
        return list(samples[:count])
    from sacrebleu.metrics.chrf import CHRF

    chrf = CHRF()

    def quality(sample: Sample) -> float:
        texts = {arm.kind: done.text or "" for arm, done in sample.arms.items()}
        return chrf.sentence_score(texts[_shown(texts)], [str(sample.reference)]).score

    ranked = sorted(samples[:of], key=quality, reverse=True)
    count = min(count, len(ranked))
    return [ranked[(2 * place + 1) * len(ranked) // (2 * count)] for place in range(count)]


def _shown(texts: Mapping[str, str]) -> str:
    """The arm whose output an example is shown for."""
    return BILD if BILD in texts else VANILLA


def examples_text(samples: Sequence[Sample], longest: int = 300, columns: int | None = None) -> str:
    """Examples as text: source, output, reference.

    Args:
        samples: some of a run.
        longest: letters of a text; the rest is left out.
        columns: width of the lines, which are broken between words; None for the terminal's.
    """
    columns = shutil.get_terminal_size((100, 24)).columns if columns is None else columns

    def line(name: str, text: str) -> str:
        flat = visible(" ".join(text.split()))
        short = flat if len(flat) <= longest else flat[: longest - 3] + "..."
        first = f"{name + ':':13}"
        indent = " " * len(first)
        width = max(columns, 2 * len(first))
        return textwrap.fill(short, width, initial_indent=first, subsequent_indent=indent)

    blocks = []
    for sample in samples:
        texts = {arm.kind: done.text or "" for arm, done in sample.arms.items()}
        shown = _shown(texts)
        lines = [("source", sample.source), (ARM_NAMES[shown], texts[shown])]
        if texts[VANILLA] != texts[shown]:
            lines.insert(1, (ARM_NAMES[VANILLA], texts[VANILLA]))
        if sample.reference is not None:
            lines.append(("reference", sample.reference))
        blocks.append("\n".join(line(name, text) for name, text in lines))
    return "\n\n".join(blocks)

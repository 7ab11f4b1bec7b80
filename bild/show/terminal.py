"""A finished race for a terminal, in colour; readable without colours and in ASCII, too."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from rich.columns import Columns
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from bild.show.race import Race
from bild.show.views import (
    KINDS,
    SPACE,
    Lane,
    TokenView,
    lanes,
    limits,
    milliseconds,
    rates,
    summaries,
    token_views,
)
from bild.visible import visible

STYLES = {
    "small": "green",
    "large": "bold blue",
    "rolled-back": "red strike",
    "unsure": "italic yellow",
}
MARKS = {"small": "s", "large": "L", "rolled-back": "x", "unsure": "?"}  # without colours
KEPT = ("small", "large")


@dataclass(frozen=True)
class Glyphs:
    """What is drawn: time outside of forwards, forwards next to each other, a space."""

    rest: str
    forwards: str
    space: str


UNICODE = Glyphs("\u2591", "\u2588\u2593", SPACE)
ASCII = Glyphs(".", "#=", "_")  # for a terminal or file that cannot show the others


@dataclass(frozen=True)
class RaceText:
    """A finished race for a rich `Console`, as wide as that is."""

    race: Race

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        race, width = self.race, options.max_width
        glyphs = ASCII if options.ascii_only else UNICODE
        yield self._head()
        for line in limits(self.race):
            yield Text(wrapped(line, width), "bold")
        yield ""
        cells = [_cell(view, glyphs) for view in token_views(race.bild)]
        yield Columns(cells, padding=(0, 1))
        yield _legend()
        yield ""
        for lane in lanes(race):
            name = f"{lane.name:<13}"
            yield Text.assemble((name, "dim"), *_row(lane, max(1, width - len(name)), glyphs))
        for line in summaries(race):
            yield Text(wrapped(line, width), "dim")
        yield ""
        yield Text(wrapped(rates(race), width))

    def _head(self) -> Table:
        """Source and outputs, their times below their names, so that no text pushes them about."""
        race = self.race
        head = Table.grid(padding=(0, 2))
        head.add_column(no_wrap=True)
        head.add_row(Text("source", "dim"), Text(visible(race.source)))
        for name, runner, more in (
            ("large alone", race.alone, ""),
            ("BiLD", race.bild, f", {race.speedup:.2f}x"),
        ):
            time = (f"{milliseconds(runner.seconds)}{more}", "bold")
            head.add_row(Text.assemble((name, "dim"), "\n", time), Text(visible(runner.text)))
        return head


def wrapped(line: str, width: int) -> str:
    """A line as several of at most `width`; a number stays with its unit."""
    glued = re.sub(r"(?<=\d) (?=ms|%)", "\u00a0", line)
    return "\n".join(textwrap.wrap(glued, max(1, width))).replace("\u00a0", " ")


def _cell(view: TokenView, glyphs: Glyphs) -> Text:
    """A token over its mark and its probability; in parentheses where it is not in the output."""
    style = STYLES[view.kind]
    text = glyphs.space if view.text == SPACE else view.text
    text = text if view.kind in KEPT else f"({text})"
    number = f"{view.confidence:.2f}".removeprefix("0")
    below = (f"{MARKS[view.kind]} {number}", style.replace("strike", "").replace("bold", ""))
    return Text.assemble((text, style), "\n", below, "\n")


def _legend() -> Table:
    legend = Table.grid(padding=(0, 2))
    for kind, words in KINDS.items():
        legend.add_row(Text(MARKS[kind], STYLES[kind].replace("strike", "")), Text(words, "dim"))
    legend.add_row(Text("( )"), Text("not in the output", "dim"))
    legend.add_row(Text(".97"), Text("the writer's own probability", "dim"))
    return legend


def _row(lane: Lane, width: int, glyphs: Glyphs) -> Iterator[tuple[str, str]]:
    """A character per 1/width of the time: the block that stands at its middle."""
    for column in range(width):
        now = 100 * (column + 0.5) / width
        for number, block in enumerate(lane.blocks):
            if block.left <= now < block.left + block.width:
                # Forwards next to each other differ in shade.
                shade = glyphs.rest if block.kind == "rest" else glyphs.forwards[number % 2]
                yield shade, STYLES.get(block.kind, "dim").replace("bold ", "")
                break
        else:
            yield (" ", "")

"""A finished race for people: coloured text for a terminal, and HTML that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from bild.show.race import Race, Runner

STYLES = {
    "small": "green",
    "large": "bold blue",
    "rolled-back": "red strike",
    "unsure": "italic yellow",
}
LEGEND = {
    "small": "drafted by the small model",
    "large": "written by the large model",
    "rolled-back": "drafted, rolled back by the large model",
    "unsure": "proposed by the small model, unsure, thrown away",
}
MARKS = {"small": "s", "large": "L", "rolled-back": "x", "unsure": "?"}  # without colours


@dataclass(frozen=True)
class TokenView:
    """One token of a trace in words."""

    text: str
    starts_word: bool
    kind: str  # a key of STYLES
    writer: str
    confidence: float
    distance: float | None
    fate: str

    @property
    def more(self) -> str:
        """What the number in sight does not say."""
        said = f"{self.writer} model, {100 * self.confidence:.1f} % sure"
        if self.distance is not None:
            said += f"; the large model is {self.distance:.2f} nats away"
        return f"{said}; {self.fate}"

    @property
    def label(self) -> str:
        return f"{self.text}: {self.more}"


@dataclass(frozen=True)
class Block:
    """A stretch of time on a lane; left and width in percent of the slower arm."""

    kind: str  # "small", "large" or "rest"
    left: float
    width: float
    title: str


@dataclass(frozen=True)
class Lane:
    """The forwards of one model in one arm."""

    arm: str
    name: str
    summary: str
    blocks: tuple[Block, ...]


def token_views(runner: Runner) -> list[TokenView]:
    """The tokens of a finished arm, in the order in which they were proposed."""
    assert runner.trace is not None
    views = []
    for token, piece in zip(runner.trace.tokens, runner.pieces, strict=True):
        kind, fate = token.writer, "kept"
        if token.replaced_by is not None:
            kind = token.fate.replace(" ", "-")
            instead = runner.pieces[token.replaced_by].strip()
            fate = "thrown away" if kind == "unsure" else "rolled back"
            fate += f", the large model wrote {instead!r}"
        elif token.writer == "small" and token.distance is None:
            fate = "kept, unseen by the large model"
        views.append(
            TokenView(
                text=piece.strip() or "\u2423",
                starts_word=piece.startswith(" "),
                kind=kind,
                writer=token.writer,
                confidence=token.confidence,
                distance=token.distance,
                fate=fate,
            )
        )
    return views


def lanes(race: Race) -> list[Lane]:
    """The timeline: both models of the pair, and the large model alone, on one scale.

    An arm's time that is in no decoder forward, encoders above all, is put before its first.
    """
    whole = max(race.alone.seconds, race.bild.seconds)
    return [
        _lane(race.bild, "bild", "small", "BiLD, small", whole),
        _lane(race.bild, "bild", "large", "BiLD, large", whole),
        _lane(race.alone, "alone", "large", "Large alone", whole),
    ]


def _lane(runner: Runner, arm: str, model: str, name: str, whole: float) -> Lane:
    assert runner.trace is not None
    now = runner.seconds - runner.trace.seconds()
    blocks = [Block("rest", 0, 100 * now / whole, f"encoders and the rest, {milliseconds(now)}")]
    for forward in runner.trace.forwards:
        if forward.model == model:
            fed = f"{forward.tokens_fed} token{'s' * (forward.tokens_fed != 1)} fed"
            title = f"{model} model, {fed}, {milliseconds(forward.seconds)}"
            blocks.append(Block(model, 100 * now / whole, 100 * forward.seconds / whole, title))
        now += forward.seconds
    return Lane(arm, name, f"{name}: {_forwards(runner, model)}", tuple(blocks))


def summaries(race: Race) -> list[str]:
    """Where the time of each arm went, in words."""
    lines = []
    for name, runner, models in (
        ("BiLD", race.bild, ("small", "large")),
        ("Large alone", race.alone, ("large",)),
    ):
        assert runner.trace is not None
        parts = [_forwards(runner, model) for model in models]
        rest = milliseconds(runner.seconds - runner.trace.seconds())
        lines.append(
            f"{name}: {milliseconds(runner.seconds)} = {' + '.join(parts)} + the rest {rest}"
        )
    return lines


def _forwards(runner: Runner, model: str) -> str:
    assert runner.trace is not None
    count = sum(f.model == model for f in runner.trace.forwards)
    return f"{count} {model} forwards {milliseconds(runner.trace.seconds(model))}"


def rates(race: Race) -> str:
    """Thresholds and rates in a line."""
    config, stats = race.config, race.bild.stats
    assert stats is not None
    return (
        f"{config.variant} rules, fallback {config.fallback_threshold:g}, "
        f"rollback {config.rollback_threshold:g}. For {stats.generated_tokens} tokens: "
        f"fallbacks {stats.fallbacks} ({stats.fallback_rate:.0f} %), "
        f"rollbacks {stats.rollbacks} ({stats.rollback_rate:.0f} %), "
        f"large forwards {stats.large_forwards} ({stats.large_forward_rate:.0f} %; alone 100 %)"
    )


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 0.01 else f"{1000 * seconds:.0f} ms"


# ------------------------------------------------------------------------------ HTML


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("bild.show"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )


def race_css() -> str:
    """The style sheet of `race_html`; every rule is confined to the class bild-race."""
    return _templates().get_template("race.css").render()


def race_html(race: Race, head: bool = True) -> str:
    """A finished race as an `<article>`, to be put into a page that has `race_css`.

    Args:
        race: the race.
        head: begin with the source and both outputs.
    """
    fields: dict[str, Any] = {
        "race": race,
        "head": head,
        "tokens": token_views(race.bild),
        "lanes": lanes(race),
        "summaries": summaries(race),
        "rates": rates(race),
        "ms": milliseconds,
    }
    return _templates().get_template("race.html").render(**fields)


def page_html(races: Sequence[Race]) -> str:
    """Finished races as one page without any external resource."""
    return (
        _templates()
        .get_template("page.html")
        .render(
            css=Markup(race_css()),  # ours
            fragments=[Markup(race_html(race)) for race in races],  # escaped by its own template
        )
    )


# ------------------------------------------------------------------------------ terminal


def race_text(race: Race) -> RenderableType:
    """A finished race for a rich `Console`; readable without colours, too."""
    head = Table.grid(padding=(0, 2))
    head.add_row(Text("source", "dim"), Text(race.source))
    for name, runner, more in (
        ("large alone", race.alone, ""),
        ("BiLD", race.bild, f", {race.speedup:.2f}x"),
    ):
        line = Text(runner.text)
        line.append(f"  {milliseconds(runner.seconds)}{more}", "bold")
        head.add_row(Text(name, "dim"), line)
    legend = Table.grid(padding=(0, 2))
    for kind, words in LEGEND.items():
        legend.add_row(Text(MARKS[kind], STYLES[kind].replace("strike", "")), Text(words, "dim"))
    legend.add_row(Text(".97"), Text("the writer's own probability", "dim"))
    return Group(
        head,
        "",
        Columns([_cell(view) for view in token_views(race.bild)], padding=(0, 1)),
        legend,
        "",
        _Timeline(lanes(race)),
        *(Text(line, "dim") for line in summaries(race)),
        "",
        Text(rates(race)),
    )


def _cell(view: TokenView) -> Text:
    """A token over its mark and its probability."""
    style = STYLES[view.kind]
    number = f"{view.confidence:.2f}".removeprefix("0")
    below = (f"{MARKS[view.kind]} {number}", style.replace("strike", "").replace("bold", ""))
    return Text.assemble((view.text, style), "\n", below, "\n")


@dataclass(frozen=True)
class _Timeline:
    """The lanes as rows of blocks, as wide as the console."""

    lanes: list[Lane]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for lane in self.lanes:
            name = f"{lane.name:<13}"
            yield Text.assemble((name, "dim"), *self._row(lane, options.max_width - len(name)))

    def _row(self, lane: Lane, width: int) -> Iterator[tuple[str, str]]:
        """A character per 1/width of the time: the block that stands at its middle."""
        for column in range(width):
            now = 100 * (column + 0.5) / width
            for number, block in enumerate(lane.blocks):
                if block.left <= now < block.left + block.width:
                    # Forwards next to each other differ in shade.
                    shade = "\u2591" if block.kind == "rest" else "\u2588\u2593"[number % 2]
                    yield shade, STYLES.get(block.kind, "dim").replace("bold ", "")
                    break
            else:
                yield (" ", "")

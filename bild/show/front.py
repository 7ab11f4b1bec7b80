"""The first thing a newcomer sees (scripts/demo.py): who wrote which word, one table, what it says.

Everything printed is in a record, so that README.md shows the same from a record. No torch is
needed to read one.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from random import Random
from typing import TYPE_CHECKING, ClassVar, Literal

from rich.console import Console
from rich.text import Text
from tabulate import tabulate

from bild.benchmark.config import BenchmarkConfig
from bild.benchmark.record import BenchmarkArm, BenchmarkRecord
from bild.config import BiLDConfig
from bild.errors import BildError
from bild.evaluation.arms import BILD, SMALL, VANILLA, ArmId
from bild.evaluation.record import Interval
from bild.policy import Writer
from bild.tasks.metrics import METRIC_NAMES
from bild.tasks.registry import get
from bild.visible import visible

if TYPE_CHECKING:
    from bild.show.race import Race

GREEDY = "greedy"  # transformers' own greedy decoding
NAMES = {
    GREEDY: "transformers",
    VANILLA: "large alone",
    SMALL: "small alone",
    BILD: "BiLD",
}
STYLES = {"large": "bold blue", "small": "green"}
SHOWN = 3  # sentences
LABEL = 13  # columns before a text


@dataclass(frozen=True)
class Best:
    """A configuration of the shipped pair.

    Attributes:
        mode: of the task "demo": which of its small models, and which thresholds.
        small: folder of another small model; without it, the mode's.
        precision: of the weights.
        small_precision: of the small model's, if it is another one.
        lookahead: how often it goes on behind guesses (`BiLDConfig.lookahead`).
        start: the model that makes the first token.
    """

    mode: str
    small: str | None = None
    precision: str = "float32"
    small_precision: str | None = None
    lookahead: float | Literal["auto"] = 0
    start: Writer = "large"


# The one place that names what `make demo` and README.md show.
BEST = Best("drafter", small_precision="int8", lookahead=1, start="small")


@dataclass(frozen=True)
class Span:
    """Words in a row that one model wrote: "large" or "small"; with the space before them."""

    writer: str
    text: str


@dataclass(frozen=True)
class Shown:
    """A sentence: its source and reference, the large model's text, and the pair's by writer."""

    source: str
    reference: str
    alone: str
    pair: tuple[Span, ...]


@dataclass(frozen=True)
class FrontRecord(BenchmarkRecord):
    """A benchmark of the four arms of the front door, and the sentences shown with it.

    Attributes:
        examples: the sentences.
    """

    kind: ClassVar[str] = "front"

    examples: tuple[Shown, ...]

    @classmethod
    def of(cls, record: BenchmarkRecord, examples: Iterable[Shown]) -> FrontRecord:
        """A benchmark's record with sentences."""
        own = {f.name: getattr(record, f.name) for f in fields(record)}
        return cls(**own, examples=tuple(examples))

    def arm(self, kind: str) -> BenchmarkArm:
        """The arm of this kind.

        Raises:
            BildError: it did not run.
        """
        for arm in self.arms:
            if arm.id.kind == kind:
                return arm
        why = next((f.why for f in self.failed if f.id.kind == kind), "it was not asked for")
        raise BildError(f"{NAMES[kind]} did not run: {why}")


# ------------------------------------------------------------------------------ what is run


def front_config(
    best: Best, samples: int, *, compiled: bool, threads: int | None, repeat: int, seed: int
) -> BenchmarkConfig:
    """The benchmark behind the table: the four arms on the task "demo".

    Args:
        best: the pair's configuration.
        samples: the first so many sentences.
        compiled: whether the fast engine runs in machine code here.
        threads, repeat, seed: as of `BenchmarkConfig`.
    """
    task = get("demo")
    thresholds = task.default_thresholds(best.mode)
    assert thresholds is not None

    def ours(kind: str, ahead: bool = False, small: str | None = None) -> ArmId:
        return ArmId(kind, "fast", best.precision, compiled, ahead=ahead, small_precision=small)

    drafts = best.small_precision if compiled else None  # int8 needs machine code

    return BenchmarkConfig(
        arms=(ArmId(GREEDY), ours(VANILLA), ours(SMALL), ours(BILD, best.lookahead != 0, drafts)),
        bild=BiLDConfig(
            thresholds.fallback,
            thresholds.rollback,
            variant=task.variant,
            start=best.start,
            lookahead=best.lookahead,
        ),
        samples=samples,
        small=task.small_model(best.mode) if best.small is None else best.small,
        threads=threads,
        repeat=repeat,
        seed=seed,
    )


def drawn(samples: int, seed: int, count: int = SHOWN) -> list[int]:
    """The places of the sentences to show: drawn, so that none is chosen for looking well."""
    return sorted(Random(seed).sample(range(samples), min(count, samples)))


def shown(race: Race, reference: str, special: frozenset[int]) -> Shown:
    """A finished race as a sentence to show.

    Args:
        race: both arms over the source.
        reference: of the source.
        special: tokens that are no text, as the end of the sequence.
    """
    assert race.bild.trace is not None
    spans: list[Span] = []
    for token, piece in zip(race.bild.trace.tokens, race.bild.pieces, strict=True):
        if token.fate != "kept" or token.token in special:
            continue
        if spans and spans[-1].writer == token.writer:
            spans[-1] = Span(token.writer, spans[-1].text + piece)
        else:
            spans.append(Span(token.writer, piece))
    return Shown(race.source, reference, race.alone.text, tuple(spans))


# ------------------------------------------------------------------------------ what is printed


def examples_text(examples: Sequence[Shown], columns: int, *, colour: bool) -> Text:
    """Sentences, each in lines of at most `columns`; writers by colour, or by brackets."""
    whole = Text()
    for example in examples:
        whole.append_text(_line("source", Text(_flat(example.source)), columns))
        whole.append_text(_line("reference", Text(_flat(example.reference)), columns))
        alone = Text(_flat(example.alone), STYLES["large"] if colour else "")
        whole.append_text(_line("large alone", alone, columns))
        whole.append_text(_line("BiLD", _written(example.pair, colour), columns))
        whole.append("\n")
    return whole.append_text(_legend(colour, columns))


def _written(spans: Sequence[Span], colour: bool) -> Text:
    text = Text()
    for span in spans:
        words = visible(span.text)
        bare = words.lstrip() if not text else words
        if colour or span.writer == "small" or not bare.strip():
            text.append(bare, STYLES[span.writer] if colour else "")
        else:  # the spaces around it stay outside
            before, after = len(bare) - len(bare.lstrip()), len(bare.rstrip())
            text.append(f"{bare[:before]}[{bare.strip()}]{bare[after:]}")
    return text


def _line(label: str, text: Text, columns: int) -> Text:
    """A text behind its label, broken between words."""
    width = max(columns - LABEL, 2 * LABEL)
    lines = text.wrap(Console(width=width), width)
    whole = Text()
    for number, line in enumerate(lines):
        line.rstrip()
        whole.append((label if number == 0 else "").ljust(LABEL), "dim")
        whole.append_text(line)
        whole.append("\n")
    return whole


def _legend(colour: bool, columns: int) -> Text:
    if not colour:
        said = "[in brackets]: written by the large model; the rest by the small one, and kept"
        return Text(textwrap.fill(said, columns))
    return Text.assemble(
        ("written by the large model", STYLES["large"]),
        ", ",
        ("drafted by the small one, and kept", STYLES["small"]),
    )


def _flat(text: str) -> str:
    return visible(" ".join(text.split()))


def front_table(record: FrontRecord) -> str:
    """The four arms: score, milliseconds, and how many times as fast as either baseline."""
    rows = []
    metric = METRIC_NAMES.get(record.metric, record.metric)
    for kind, name in NAMES.items():
        arm = record.arm(kind)
        assert arm.quality is not None
        score = Interval(arm.quality.value, arm.quality.low, arm.quality.high)
        rows.append(
            [
                name,
                _interval(score, 1),
                f"{1000 * arm.seconds.median:.3g}",
                _interval(None if arm.ratio is None or kind == GREEDY else arm.ratio.seconds, 2),
                _interval(None if arm.ratio_alone is None else arm.ratio_alone.seconds, 2),
            ]
        )
    headers = ["", metric, "ms", "x transformers", "x large alone"]
    return tabulate(rows, headers, disable_numparse=True)


def in_words(record: FrontRecord) -> str:
    """What the engine gives, what the method adds, and what the small model alone would do."""
    alone, small, pair = (record.arm(kind) for kind in (VANILLA, SMALL, BILD))
    assert alone.ratio is not None
    assert pair.ratio is not None
    assert pair.ratio_alone is not None
    assert small.ratio_alone is not None
    assert alone.quality is not None
    assert small.quality is not None
    engine, method, both = alone.ratio.seconds, pair.ratio_alone.seconds, pair.ratio.seconds
    worth = (
        f"the method makes that {method.value:.2f} times as fast again"
        if method.low > 1
        else f"the method changes that by {method.value:.2f}x, which these sentences cannot tell "
        "from none"
        if method.high >= 1
        else f"the method slows that down, to {method.value:.2f}x"
    )
    lost = alone.quality.value - small.quality.value
    same = (
        " At these thresholds the pair writes what the large model alone writes, word for word."
        if record.config.bild.is_lossless
        else ""
    )
    return (
        f"The engine runs the large model {engine.value:.1f} times as fast as transformers does; "
        f"{worth}: {both.value:.1f} times together.{same} The small model alone is "
        f"{small.ratio_alone.seconds.value:.1f} times as fast as the large one, and writes "
        f"{abs(lost):.1f} {METRIC_NAMES.get(record.metric, record.metric)} "
        f"{'worse' if lost >= 0 else 'better'}."
    )


def front_text(record: FrontRecord, columns: int = 90) -> str:
    """All of it without colours: what a pipe gets, and README.md shows."""
    sentences = examples_text(record.examples, columns, colour=False).plain
    lines = f"{sentences}\n\n{figures_text(record, columns)}".splitlines()
    return "\n".join(line.rstrip() for line in lines)


def figures_text(record: FrontRecord, columns: int) -> str:
    """The table and what it says, for a terminal that has seen the sentences already."""
    said = (textwrap.fill(text, columns) for text in (in_words(record), _note(record)))
    return "\n\n".join([front_table(record), *said])


def _note(record: FrontRecord) -> str:
    bild, sizes, env = record.config.bild, record.models, record.env
    versions = ", ".join(f"{name} {env.versions[name]}" for name in ("torch", "transformers"))
    millions = [f"{(m.parameters or 0) / 1e6:.1f} M" for m in (sizes.large, *sizes.small.values())]
    return (
        f"{record.data.samples} sentences, medians, in brackets 95 % intervals "
        f"({record.timing.interval}); {' and '.join(millions)} parameters, fallback "
        f"{bild.fallback_threshold:g}, rollback {bild.rollback_threshold:g}, {bild.variant} "
        f"rules; transformers: the large model by its greedy generate; the others: "
        f"{record.arm(BILD).built}; {env.workplace}, {versions}"
    )


def _interval(figure: Interval | None, digits: int) -> str:
    if figure is None:
        return ""
    value, low, high = (f"{part:.{digits}f}" for part in (figure.value, figure.low, figure.high))
    return f"{value} [{low}, {high}]"

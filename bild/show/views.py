"""A finished race in words and figures, for `bild.show.terminal` and `bild.show.html` alike."""

from __future__ import annotations

from dataclasses import dataclass

from bild.show.race import Race, Runner
from bild.visible import visible

KINDS = {
    "small": "drafted by the small model, kept",
    "large": "written by the large model",
    "rolled-back": "drafted, rolled back by the large model",
    "unsure": "proposed by the small model, unsure, thrown away",
}
SPACE = "\u2423"  # a token that is nothing but a space


@dataclass(frozen=True)
class TokenView:
    """One token of a trace in words."""

    text: str
    starts_word: bool
    kind: str  # a key of KINDS
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
            instead = visible(runner.pieces[token.replaced_by].strip())
            fate = "thrown away" if kind == "unsure" else "rolled back"
            fate += f", the large model wrote '{instead}'"
        elif token.writer == "small" and token.distance is None:
            fate = "kept, unseen by the large model"
        views.append(
            TokenView(
                text=visible(piece.strip()) or SPACE,
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
    forwards = f"{count} {model} forward{'s' * (count != 1)}"
    return f"{forwards} {milliseconds(runner.trace.seconds(model))}"


def limits(race: Race) -> list[str]:
    """What was cut short, if anything, a sentence each."""
    said = []
    if race.source_tokens > race.max_source_tokens:
        said.append(
            f"The source has {race.source_tokens} tokens; the models read the first "
            f"{race.max_source_tokens}."
        )
    if race.unknown:
        said.append(f"The tokenizer does not know {visible(' '.join(race.unknown))}.")
    for name, runner in (("the large model alone", race.alone), ("BiLD", race.bild)):
        if runner.stats is not None and runner.stats.generated_tokens >= race.max_new_tokens:
            said.append(f"The output of {name} ends at its limit of {race.max_new_tokens} tokens.")
    return said


def rates(race: Race) -> str:
    """Thresholds and rates in a line."""
    config, stats = race.config, race.bild.stats
    assert stats is not None
    return (
        f"{config.described}. For {stats.generated_tokens} tokens: "
        f"fallbacks {stats.fallbacks} ({stats.fallback_rate:.0f} %), "
        f"rollbacks {stats.rollbacks} ({stats.rollback_rate:.0f} %), "
        f"large forwards {stats.large_forwards} ({stats.large_forward_rate:.0f} %; alone 100 %)"
    )


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 0.01 else f"{1000 * seconds:.0f} ms"

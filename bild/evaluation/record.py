"""Results as files that say where each number comes from: typed, written whole, read strictly.

`run.json` holds one record; `samples.jsonl` beside it one line an example. No torch is needed.
Times are seconds, rates are per 100 generated tokens, scores are 0 to 100, intervals hold 95 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from bild.config import EvalConfig
from bild.errors import BildError
from bild.evaluation.arms import VANILLA, ArmId
from bild.evaluation.codec import decode, encode
from bild.evaluation.environment import Environment, is_tracked, require_clean_tree
from bild.files import check_file, leaves, write_json
from bild.generation.stats import DecodeStats
from bild.json_files import read_json

SCHEMA = 2

# ------------------------------------------------------------------------------ parts


@dataclass(frozen=True)
class Interval:
    """A figure and where it lies with 95 % confidence."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ModelIdentity:
    """A checkpoint: id, revision, SHA-256 of its content, number of parameters."""

    id: str
    revision: str | None
    fingerprint: str
    parameters: int | None = None


@dataclass(frozen=True)
class Models:
    """What decoded; small models by label, a single one as "small"."""

    large: ModelIdentity
    small: dict[str, ModelIdentity]
    tokenizer: ModelIdentity | None = None


@dataclass(frozen=True)
class DataIdentity:
    """What was decoded.

    Attributes:
        origin, revision, split: where the examples come from.
        samples: how many were decoded.
        available: how many there are.
        sha256: of their sources and references.
        truncated_sources: sources that were longer than the limit.
    """

    origin: str
    revision: str | None
    split: str
    samples: int
    available: int
    sha256: str
    truncated_sources: int = 0


@dataclass(frozen=True)
class Timing:
    """How seconds were taken.

    Attributes:
        excluded: what is not in them.
        warmup: untimed examples before the first.
        runs: passes over the examples.
        interval: what the speedups' intervals cover.
    """

    excluded: tuple[str, ...]
    warmup: int
    runs: int
    interval: str


@dataclass(frozen=True)
class Quality:
    """A score with its interval.

    Attributes:
        value, low, high: the score.
        signature: everything that must be equal for two scores to be comparable.
        extra: scores of other metrics of its kind.
        difference: to the large model alone on the same examples; None for itself.
    """

    value: float
    low: float
    high: float
    signature: str
    extra: dict[str, float]
    difference: Interval | None = None


@dataclass(frozen=True)
class Speed:
    """Seconds of an arm.

    Attributes:
        seconds: of one pass over the examples, the mean of all passes.
        encoder_seconds: the encoders' part; None where the arm cannot tell.
        seconds_per_sample: of an example.
        tokens_per_second: generated ones.
        speedup: over the large model alone; None for itself.
    """

    seconds: float
    encoder_seconds: float | None
    seconds_per_sample: float
    tokens_per_second: float
    speedup: Interval | None = None


@dataclass(frozen=True)
class Rates:
    """What a pair did, per 100 generated tokens.

    Attributes:
        fallback_rate, rollback_rate, large_forward_rate: as of `DecodeStats`.
        mean_accepted_length: drafted tokens kept per verification; None where there was none.
    """

    fallback_rate: float
    rollback_rate: float
    large_forward_rate: float
    mean_accepted_length: float | None

    @classmethod
    def of(cls, stats: DecodeStats) -> Rates:
        """The rates that counts make."""
        return cls(
            stats.fallback_rate,
            stats.rollback_rate,
            stats.large_forward_rate,
            stats.mean_accepted_length if stats.verifications else None,
        )


@dataclass(frozen=True)
class ArmFigures:
    """All that a record says of one arm.

    Attributes:
        id: which arm.
        built: the engine and how it was built.
        quality: by metric.
        speed: its seconds.
        stats: what happened, summed over the examples of one pass.
        rates: of a pair; None for one model alone.
        tokens_per_sample: generated ones.
        identical: share of its outputs that equal the large model's; None for itself.
    """

    id: ArmId
    built: str
    quality: dict[str, Quality]
    speed: Speed
    stats: DecodeStats
    rates: Rates | None
    tokens_per_sample: float
    identical: float | None = None


@dataclass(frozen=True)
class ProcessFigures:
    """What one of several processes of a run did.

    Attributes:
        process: its number; 0 for one that began the run alone.
        samples: lines of samples.jsonl that it decoded.
        seconds: that each arm took for them.
        warmup_seconds: that each arm took for the untimed examples.
    """

    process: int
    samples: int
    seconds: dict[str, float]
    warmup_seconds: dict[str, float]


def arm_of(arms: Sequence[ArmFigures], kind: str, **fields: Any) -> ArmFigures | None:
    """The first arm of this kind, and with these values in its id; None where there is none."""
    for arm in arms:
        if arm.id.kind == kind and all(getattr(arm.id, n) == v for n, v in fields.items()):
            return arm
    return None


# ------------------------------------------------------------------------------ records


@dataclass(frozen=True)
class Record:
    """A file of results: saved whole or not at all, and read only where it is what it should be.

    Attributes:
        models: what decoded.
        data: what was decoded.
        env: what it ran on; every second in the record comes from there.
        schema: version of this layout.
    """

    kind: ClassVar[str]

    models: Models
    data: DataIdentity
    env: Environment
    _: KW_ONLY
    schema: int = SCHEMA

    def save(self, path: Path) -> None:
        """Write as JSON, all of it or nothing."""
        write_json(path, self.content())

    def content(self) -> dict[str, Any]:
        """As JSON has it."""
        content: dict[str, Any] = encode(self)
        return content

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a record.

        Raises:
            BildError: not a record of this kind and schema; the file is named.
        """
        content = read_record(path)
        if content.get("schema") != SCHEMA:
            raise BildError(f"{path} is not a {cls.kind} record of schema {SCHEMA}")
        try:
            return decode(cls, content)
        except BildError as error:
            raise BildError(f"{path} is not a {cls.kind} record: {error}") from None


@dataclass(frozen=True)
class RunRecord(Record):
    """One run of a task.

    Attributes:
        config: what was asked for, as it ran.
        metric: the task's, of `bild.tasks.metrics`.
        timing: how seconds were taken.
        arms: the large model alone first.
        processes: those that shared the examples; none of a run of one process.
    """

    kind: ClassVar[str] = "run"

    config: EvalConfig
    metric: str
    timing: Timing
    arms: tuple[ArmFigures, ...]
    _: KW_ONLY
    processes: tuple[ProcessFigures, ...] = ()

    def arm(self, kind: str) -> ArmFigures | None:
        """The arm of this kind; None where it did not run."""
        return arm_of(self.arms, kind)

    @property
    def large(self) -> ArmFigures:
        """The large model alone."""
        found = self.arm(VANILLA)
        assert found is not None
        return found


@dataclass(frozen=True)
class PublishedRuns:
    """Runs of a task that others made, as figures (results/published/README.md).

    Attributes:
        task: a name of `bild.tasks.registry.TASKS`.
        metric: the one of its published table.
        origin: where the figures come from.
        runs: per run: mode, sweep, card, thresholds, examples, scores, seconds, speedup, rates.
        schema: version of this layout.
    """

    task: str
    metric: str
    origin: str
    runs: list[dict[str, Any]]
    schema: int = 1

    @classmethod
    def load(cls, path: Path) -> PublishedRuns:
        """Read the file of a task.

        Raises:
            BildError: it is not such a file; it is named.
        """
        try:
            return decode(cls, read_record(path))
        except BildError as error:
            raise BildError(f"{path} does not hold published runs: {error}") from None


def read_record(path: Path) -> dict[str, Any]:
    """The content of a file of results.

    Raises:
        BildError: it cannot be read, or is not a JSON object.
    """
    try:
        return read_json(path, "name a record of this project")
    except BildError as error:
        raise BildError(f"cannot read the record: {error}") from None


# ------------------------------------------------------------------------------ --record


def check_record(path: Path | None, config: object = None) -> None:
    """Refuse, before any work is done, a `--record` that must not or cannot be written.

    Args:
        path: what was asked for; None for none.
        config: what is to run, a dataclass of settings; None where any record may be replaced.

    Raises:
        BildError: a file that cannot be written, a tree that is not clean, or a record of this
            repository that was made with other settings.
    """
    if path is None:
        return
    check_file(path, "--record")
    require_clean_tree(path)
    if config is None or not path.exists() or not is_tracked(path):
        return
    known = dict(leaves(read_record(path).get("config", {})))
    for name, value in leaves(encode(config)):
        if value is None or name[-1] in PATHS:
            continue  # the task's own, or a file whose folders are not in a record
        if known.get(name) != value:
            raise BildError(
                f"--record {str(path)!r} is a record of this repository with other settings: its "
                f"{' '.join(name)} is {known.get(name)!r}, not {value!r}; name another file, or "
                "remove that one first"
            )


# Of a configuration; records shorten them.
PATHS = ("large", "small", "tokenizer", "data_file", "target_file")

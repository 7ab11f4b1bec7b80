"""The settings of a benchmark, checked as they are made."""

from __future__ import annotations

from dataclasses import dataclass

from bild.config import BiLDConfig, BleuTokenize, Metric, check_counts, paths_as_text
from bild.errors import BildError
from bild.evaluation.arms import ArmId
from bild.tasks.registry import PublishedRow

OF_TASKS = (
    "data_file", "target_file", "source_key", "target_key", "prefix", "metric", "bleu_tokenize",
    "max_source_tokens", "max_new_tokens",
)  # fmt: skip


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to put side by side.

    Attributes:
        arms: of `bild.benchmark.kinds`.
        bild: thresholds and variant of the BiLD arms.
        samples: sources to decode.
        task: whose data, prefix, metric and limits; for a planted pair, whose rates.
        large, small, tokenizer, data_file, target_file: instead of the task's.
        source_key, target_key, prefix, metric, bleu_tokenize, max_source_tokens: likewise.
        planted: a pair of `bild.benchmark.planted.PAIRS` instead of checkpoints.
        rates: of a planted pair, a recorded row.
        guess_share: of a planted pair, how often the small model's first choice is the large one's
            where it is unsure, 0 to 1. BiLD drops it there; assisted generation and guesses
            (`BiLDConfig.lookahead`) use it.
        source_tokens: of a planted source; without it, what is usual in the task.
        max_new_tokens: limit of an output; without it, the task's. A planted output has an end.
        lengths: output lengths to decode every source to, for growth; without it, to its own end.
        batch_sizes: how many sources to decode at a time: all of them at each of these, for
            sentences a second; without it, one after the other.
        device: "cpu", "cuda" or "cuda:N"; "auto" for a GPU when there is one.
        threads: of the CPU; without it, as many as torch takes.
        warmup: untimed cases before the first.
        repeat: passes over the cases; several make intervals that cover runs as well.
        seed: of planted weights and outputs, and of the order in which arms decode.
    """

    arms: tuple[ArmId, ...]
    bild: BiLDConfig
    samples: int
    task: str = "demo"
    large: str | None = None
    small: str | None = None
    tokenizer: str | None = None
    data_file: str | None = None
    target_file: str | None = None
    source_key: str | None = None
    target_key: str | None = None
    prefix: str | None = None
    metric: Metric | None = None
    bleu_tokenize: BleuTokenize | None = None
    max_source_tokens: int | None = None
    planted: str | None = None
    rates: PublishedRow | None = None
    guess_share: float = 0.5
    source_tokens: int | None = None
    max_new_tokens: int | None = None
    lengths: tuple[int, ...] = ()
    batch_sizes: tuple[int, ...] = ()
    device: str = "auto"
    threads: int | None = None
    warmup: int = 2
    repeat: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        paths_as_text(self)
        check_counts(self)
        odd = [length for length in self.lengths if not 2 <= length <= 10**6]
        if odd:
            raise BildError(f"an output length must be from 2 to 1000000, got {odd[0]}")
        wrong = [size for size in self.batch_sizes if not 1 <= size <= 10**4]
        if wrong:
            raise BildError(f"a batch size must be from 1 to 10000, got {wrong[0]}")
        if self.batch_sizes and self.lengths:
            raise BildError("give batch sizes or output lengths, not both")
        if not 0 <= self.guess_share <= 1:
            raise BildError(f"guess_share must be between 0 and 1, got {self.guess_share}")
        assert (self.planted is None) == (self.rates is None)

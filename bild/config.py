"""The settings of Big Little Decoder and of its evaluation, checked as they are made."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

from bild.drawing import Distribution
from bild.errors import BildError
from bild.fallback import Adaptive
from bild.policy import RULES, AcceptanceRule, FallbackRule, MaxProbability, Writer
from bild.rules import acceptance_rule, fallback_rule, rule_text

SEARCH_STEPS = {
    "optuna": {"fallback": 0.05, "rollback": 0.5},
    "grid": {"fallback": 0.1, "rollback": 1.0},
}
Dtype = Literal["float32", "bfloat16", "float16"]
Metric = Literal["bleu", "rouge1", "rouge2", "rougeL", "rougeLsum"]
BleuTokenize = Literal["13a", "intl", "char", "zh", "ja-mecab", "ko-mecab", "none"]
Precision = Literal["float32", "bfloat16", "int8"]
Copying = Literal["no", "first", "alone"]
Sampling = Literal["speculative", "block", "bild"]
DTYPES = get_args(Dtype)
HIGHEST_CONFIDENCE = 0.999  # a few hundred examples do not tell how rare still rarer errors are


@dataclass(frozen=True)
class BiLDConfig:
    """When the small model hands over, and when the large one takes back (paper, Section 3).

    Every end of a range is legal: `fallback_threshold > 1` makes the large model write every
    token, `0` never falls back; `rollback_threshold = inf` never rolls back; and with
    `variant="verified"`, a `rollback_threshold` below log 2 (0.69) is lossless.

    Attributes:
        fallback_threshold: alpha_FB. The small model hands over where its highest probability
            is below this (paper, Eq. 1). At least 0.
        rollback_threshold: alpha_RB, in nats. The large model takes back a drafted token whose
            cross-entropy under its own distribution exceeds this, if it prefers another one
            (paper, Eq. 2). At least 0.
        num_small_iters: tokens the small model may write in a row before the large one looks;
            inf for no limit, 0 for none at all.
        variant: which rules decide the details, a name of `bild.policy.RULES`.
            "verified": the earliest position that is over the rollback threshold and differs
            counts; the small model resumes at once; the large model checks the last window before
            the output may end.
            "paper": as "verified", but a drafted end of sequence ends the output unchecked.
            "authors": as the published code, which made the published numbers. Only the first
            position over the rollback threshold is looked at; after a rollback the large model
            writes one more token; a drafted end of sequence ends the output unchecked.
        start: the model that makes the first token ("large" as in the published code, or
            "small" as in the paper's Figure 1).
        lookahead: how many times in a row the small model may go on behind a guess of what the
            large one will write where it hands over (`bild.generation.lookahead`): the output is
            the same, with fewer large forwards. 0 for never, as the paper; inf for no limit;
            "auto" for as long as it pays, by the clock. With lossless settings a guess may also
            stand at the end, at no further forward.
        acceptance: another paper's rule in the place of rollback_threshold and variant: a name of
            `bild.rules.ACCEPTANCE`, perhaps with settings, as "lenient:share=0.3", or such a rule.
        drafting: another rule in the place of fallback_threshold: a name of
            `bild.rules.FALLBACK`, likewise, as "entropy:limit=1".
        copying: "first" to draft what followed the output's last tokens in the source, or earlier
            in the output, before the small model is asked; "alone" to never ask it.
        sampling: what becomes of drafts with `do_sample=True`. "speculative" and "block" are exact:
            outputs are distributed as the large model's own samples, and no rollback threshold
            counts; "bild" cuts where a drawn token is over the rollback threshold.

    Raises:
        BildError: a value outside its range, by name and value.
    """

    fallback_threshold: float = 0.6
    rollback_threshold: float = 2.0
    num_small_iters: float = 10
    variant: str = "verified"
    start: Writer = "large"
    lookahead: float | Literal["auto"] = 0
    acceptance: str | AcceptanceRule | None = None
    drafting: str | FallbackRule | None = None
    copying: Copying = "no"
    sampling: Sampling = "speculative"

    def __post_init__(self) -> None:
        for name in ("fallback_threshold", "rollback_threshold"):
            value = getattr(self, name)
            if not _is_number(value) or not value >= 0:
                raise BildError(f"{name} must be a number >= 0, got {value!r}")
        iters = self.num_small_iters
        if not _is_number(iters) or not iters >= 0 or (iters != math.inf and iters != int(iters)):
            raise BildError(f"num_small_iters must be a whole number >= 0 or inf, got {iters!r}")
        ahead = self.lookahead
        if ahead not in ("auto", math.inf) and not (_is_number(ahead) and ahead in range(1000)):
            raise BildError(
                f"lookahead must be auto, a whole number from 0 to 999, or inf, got {ahead!r}"
            )
        words = {"start": Writer, "copying": Copying, "sampling": Sampling}
        known = {"variant": tuple(RULES), **{name: get_args(kind) for name, kind in words.items()}}
        for name, choices in known.items():
            value = getattr(self, name)
            if value not in choices:
                raise BildError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        # As one text, whole, so that equal rules are equal settings, here and in records.
        for name, rule in (("acceptance", _acceptance(self)), ("drafting", _drafting(self))):
            if rule is not None:
                object.__setattr__(self, name, rule_text(rule))
        if self.copying != "no" and ahead != 0:
            raise BildError(f"copying={self.copying!r} does not look ahead; use lookahead=0")
        if isinstance(self.fallback_rule, Adaptive) and ahead != 0:
            raise BildError(
                f"drafting={self.drafting!r} decides itself how far to go; use lookahead=0, "
                f"got {ahead!r}"
            )

    @cached_property
    def fallback_rule(self) -> FallbackRule:
        """When the small model hands over."""
        rule = _drafting(self)
        return MaxProbability(self.fallback_threshold) if rule is None else rule

    @cached_property
    def acceptance_rule(self) -> AcceptanceRule:
        """What the large model does with a draft."""
        rule = _acceptance(self)
        return RULES[self.variant](self.rollback_threshold) if rule is None else rule

    @property
    def described(self) -> str:
        """The two rules in words, for headings: "fallback 0.4, rollback 2, verified rules"."""
        fallback, rollback = f"{self.fallback_threshold:g}", f"{self.rollback_threshold:g}"
        first = f"fallback {fallback if self.drafting is None else self.drafting}"
        first += "" if self.copying == "no" else f", copying {self.copying}"
        if self.acceptance is None:
            return f"{first}, rollback {rollback}, {self.variant} rules"
        return f"{first}, acceptance {self.acceptance}"

    @cached_property
    def is_lossless(self) -> bool:
        """Whether every output is the large model's own greedy output by these settings."""
        return self.fallback_rule.never_writes or self.acceptance_rule.is_lossless

    def without_thresholds(self) -> BiLDConfig:
        """The same rules with the default thresholds, for work that tries many."""
        default = BiLDConfig()
        return replace(
            self,
            fallback_threshold=default.fallback_threshold,
            rollback_threshold=default.rollback_threshold,
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; infinity becomes the string "inf"."""
        return {k: "inf" if v == math.inf else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> BiLDConfig:
        """The inverse of `to_dict`; unknown names are refused."""
        unknown = sorted(set(fields) - set(cls.__dataclass_fields__))
        if unknown:
            raise BildError(f"unknown BiLDConfig field {unknown[0]!r}")
        values: dict[str, Any] = {k: math.inf if v == "inf" else v for k, v in fields.items()}
        return cls(**values)


@dataclass(frozen=True)
class EvalConfig:
    """What to evaluate; None stands for the task's own setting.

    Attributes:
        task: a name of `bild.tasks.registry.TASKS`.
        mode: "vanilla" (the large model alone), "unaligned", "aligned" or "drafter".
        bild: thresholds and variant; None in mode "vanilla".
        max_samples: the first so many examples; without it, all.
        large: folder or hub id of the large model; without it, the task's.
        small: folder or hub id of the small model, or "early-exit:N", the large model left after N
            layers of its decoder; without it, the task's of the mode.
        tokenizer: folder or hub id; without it, the task's, or the given large model's.
        data_file: JSON Lines, a JSON list (.json) or a table (.tsv) with the task's keys, .gz or
            not; with target_file plain text, a source a line; without it, the task's data.
        target_file: plain text, line by line the references of data_file.
        data_revision: branch or commit of the task's data set on the hub; without it, the task's.
        source_key, target_key: keys of a record of data_file, or columns of a table, by name or
            by number from 1; without them, the task's.
        prefix: put before every source; without it, the task's.
        metric: that outputs are scored with; without it, the task's.
        bleu_tokenize: how BLEU parts a text into words; without it, "13a", for languages with
            spaces; "zh", "ja-mecab", "ko-mecab" and "char" for others.
        forced_bos: token that every output begins with, as a target language; without it, the
            models' own setting.
        max_source_tokens: longer sources are cut; without it, the task's limit.
        max_new_tokens: longest output; without it, the task's limit.
        dtype: of both models' weights.
        device: "cpu", "cuda" or "cuda:N"; "auto" for a GPU when there is one.
        engine: what runs both models, in every arm; "auto" for the fast one where it can.
        precision: of the weights that the fast engine reads; without it, that of dtype.
        small_precision: the same of the small model alone; without it, as precision.
        compile: fast engine in machine code, on a CPU; without it, where there is a C++ compiler.
        small_alone: run the small model alone as a third arm.
        warmup: untimed examples before the first.
        repeat: passes over the examples; several make intervals that cover runs as well.
        batch_size: examples that an arm decodes together; an example's seconds are then an equal
            part of its batch's.
        threads: of the CPU; without it, as many as torch takes.
        seed: of the order in which arms decode, of drawn outputs, and of Python, NumPy and torch.
        drawn: what all arms draw their tokens from; None where they are greedy.
    """

    task: str
    mode: str
    bild: BiLDConfig | None
    max_samples: int | None = None
    large: str | None = None
    small: str | None = None
    tokenizer: str | None = None
    data_file: str | None = None
    target_file: str | None = None
    data_revision: str | None = None
    source_key: str | None = None
    target_key: str | None = None
    prefix: str | None = None
    metric: Metric | None = None
    bleu_tokenize: BleuTokenize | None = None
    forced_bos: str | None = None
    max_source_tokens: int | None = None
    max_new_tokens: int | None = None
    dtype: Dtype = "float32"
    device: str = "auto"
    engine: Literal["auto", "fast", "transformers"] = "auto"
    precision: Precision | None = None
    small_precision: Precision | None = None
    compile: bool | None = None
    small_alone: bool = True
    warmup: int = 2
    repeat: int = 1
    batch_size: int = 1
    threads: int | None = None
    seed: int = 0
    drawn: Distribution | None = None

    def __post_init__(self) -> None:
        paths_as_text(self)
        if self.dtype not in DTYPES:
            raise BildError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        check_counts(self)
        if self.target_file is not None and self.data_file is None:
            raise BildError(
                f"--target-file {self.target_file} needs --data-file, whose references it holds"
            )
        if (self.bild is None) != (self.mode == "vanilla"):
            raise BildError(f"mode {self.mode!r} does not go with thresholds {self.bild}")


def paths_as_text(settings: Any) -> None:
    """Let paths stand for the names of checkpoints and data; settings and records hold text."""
    for name in ("large", "small", "tokenizer", "data_file", "target_file"):
        value = getattr(settings, name, None)
        if isinstance(value, os.PathLike):
            object.__setattr__(settings, name, os.fspath(value))


# Of settings that are numbers of something: the least and the most. What is beyond would end in
# an error of some library, or of the machine.
COUNTS = {
    "max_source_tokens": (1, 10**6),
    "max_new_tokens": (1, 10**6),
    "source_tokens": (1, 10**6),
    "samples": (1, 10**9),
    "repeat": (1, 1000),
    "batch_size": (1, 10**4),
    "threads": (1, 1024),
    "warmup": (0, 10**6),
    "seed": (0, 2**32 - 1),
}


def check_counts(config: object) -> None:
    """Refuse numbers in settings that nothing could be done with.

    Args:
        config: settings, of which those in `COUNTS` are looked at; None is no number.

    Raises:
        BildError: the first of them, by name and value.
    """
    for name, (least, most) in COUNTS.items():
        value = getattr(config, name, None)
        if value is not None and not least <= value <= most:
            bound = f"least {least}" if value < least else f"most {most}"
            raise BildError(f"{name} must be at {bound}, got {value}")


@dataclass(frozen=True)
class SearchConfig:
    """What `bild.tuning.search` is to find, and where it may look.

    Attributes:
        max_loss: how much of the large model's score may be lost; at least 0.
        percent: whether `max_loss` is in percent of that score, not in points of the metric.
        confidence: that the chosen thresholds lose no more, however many there were to choose
            from; from 0.5 to 0.999.
        fallbacks, rollbacks: lowest and highest threshold.
        method: how thresholds are found. "optuna" proposes some in steps of 0.05 and 0.5 and gives
            hopeless ones up; "grid" decodes with all in steps of 0.1 and 1, to the end.
        speed: told by counted "forwards" and their prices, or "measured"; see `bild.tuning.search`.
        budget: share of the grid's decoding that Optuna may spend.
    """

    max_loss: float = 1.0
    percent: bool = False
    confidence: float = 0.95
    fallbacks: tuple[float, float] = (0.1, 0.9)
    rollbacks: tuple[float, float] = (1.0, 6.0)
    method: Literal["optuna", "grid"] = "optuna"
    speed: Literal["forwards", "measured"] = "forwards"
    budget: float = 0.2

    def __post_init__(self) -> None:
        if not _is_number(self.max_loss) or not 0 <= self.max_loss < math.inf:
            raise BildError(f"max_loss must be a number >= 0, got {self.max_loss!r}")
        if not 0.5 <= self.confidence < 1:
            raise BildError(f"confidence must be at least 0.5 and below 1, got {self.confidence!r}")
        if self.confidence > HIGHEST_CONFIDENCE:
            raise BildError(
                f"confidence must be at most {HIGHEST_CONFIDENCE}, since so rare errors cannot be "
                f"told from a sample of examples, got {self.confidence!r}"
            )
        for name in ("fallbacks", "rollbacks"):
            low, high = getattr(self, name)
            if not 0 <= low <= high < math.inf:
                raise BildError(
                    f"{name} must be a lowest and a highest threshold, both at least 0 and "
                    f"finite, got {low:g} and {high:g}"
                )
        for name, choices in (("method", ("optuna", "grid")), ("speed", ("forwards", "measured"))):
            if getattr(self, name) not in choices:
                raise BildError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        pairs = len(self.axis("fallback", "grid")) * len(self.axis("rollback", "grid"))
        if not 1 <= self.budget * pairs < math.inf:
            raise BildError(
                f"budget must be a share of the grid that is worth one of its {pairs} pairs, "
                f"{1 / pairs:.3f} or more, got {self.budget!r}"
            )

    def axis(self, name: str, method: str) -> list[float]:
        """The fallback or the rollback thresholds that a method may try, in order."""
        low, high = {"fallback": self.fallbacks, "rollback": self.rollbacks}[name]
        step = SEARCH_STEPS[method][name]
        return [round(low + i * step, 10) for i in range(int((high - low) / step + 1e-9) + 1)]


@dataclass(frozen=True)
class GridConfig:
    """Thresholds: each fallback threshold with each rollback threshold.

    Attributes:
        fallbacks, rollbacks: thresholds of the grid, at least 0 and finite; in order, each once.
        on_test: decode with all of them on the test examples too, not only with those that were
            chosen; a picture of the grid is then one of the test examples.
    """

    fallbacks: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    rollbacks: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0)
    on_test: bool = True

    def __post_init__(self) -> None:
        for name in ("fallbacks", "rollbacks"):
            values = getattr(self, name)
            bad = next((v for v in values if not 0 <= v < math.inf), None)
            if bad is not None or not values:
                raise BildError(
                    f"{name} must be thresholds, each at least 0 and finite, "
                    f"got {'none' if bad is None else bad}"
                )
            object.__setattr__(self, name, tuple(sorted(set(values))))

    @property
    def size(self) -> int:
        """How many points there are."""
        return len(self.fallbacks) * len(self.rollbacks)


def _acceptance(config: BiLDConfig) -> AcceptanceRule | None:
    given = config.acceptance
    return acceptance_rule(given) if isinstance(given, str) else given


def _drafting(config: BiLDConfig) -> FallbackRule | None:
    given = config.drafting
    return fallback_rule(given) if isinstance(given, str) else given


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

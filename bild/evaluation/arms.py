"""What is timed: an arm decodes a case, and says what came of it.

An arm is known by an `ArmId`, a value. Its text is for people, file lines and the command line;
nothing takes it apart again but the parser of that command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from bild.generation.stats import DecodeStats
from bild.tasks.registry import Thresholds

if TYPE_CHECKING:
    from torch import Tensor

VANILLA, SMALL, BILD = "vanilla", "small", "bild"


@dataclass(frozen=True)
class ArmId:
    """Which way of decoding this is.

    Attributes:
        kind: "vanilla" (the large model alone), "small" (the small model alone), "bild" (the
            pair), or the name of a rival of `bild.benchmark.rivals`.
        engine: "fast" or "transformers"; empty for a rival, which is an engine of its own.
        precision: of the weights.
        compiled: whether our engine runs in machine code made on this machine.
        label: of the small model, where there are several.
        thresholds: of the pair, where there are several pairs.
        ahead: whether the small model goes on behind guesses (`BiLDConfig.lookahead`).
        small_precision: of the small model's weights, where it is another one.
        adaptive: whether drafting adapts to what it brings (`bild.fallback.Adaptive`).
    """

    kind: str
    engine: str = ""
    precision: str = "float32"
    compiled: bool = False
    label: str = ""
    thresholds: Thresholds | None = None
    ahead: bool = False
    small_precision: str | None = None
    adaptive: bool = False

    @property
    def precisions(self) -> str:
        """As "float32", or "float32/int8" where the small model has one of its own."""
        return "/".join(p for p in (self.precision, self.small_precision) if p is not None)

    def __str__(self) -> str:
        """As "bild-compiled@int8", with label and thresholds behind it where there are any."""
        engine = "compiled" if self.compiled else self.engine
        parts = [f"{self.kind}-{engine}" if engine else self.kind]
        parts[0] += "-ahead" if self.ahead else ""
        parts[0] += "-adaptive" if self.adaptive else ""
        parts[0] += f"@{self.precisions}"
        if self.label:
            parts.append(self.label)
        if self.thresholds is not None:
            parts.append(f"{self.thresholds.fallback:g} {self.thresholds.rollback:g}")
        return " ".join(parts)


@dataclass(frozen=True)
class Case:
    """One thing to decode.

    Attributes:
        input_ids: source tokens, (1, S), all of them to be read.
        max_new_tokens: the limit of the output.
        exact: write that many, whatever the model would do.
        number: of the example, by which it draws where tokens are drawn.
    """

    input_ids: Tensor
    max_new_tokens: int
    exact: bool = False
    number: int = 0


@dataclass(frozen=True)
class BatchCase(Case):
    """Many things to decode, a fixed number at a time.

    Attributes:
        input_ids: of all sources, one behind the other, (1, S of all).
        sources: (1, S) each.
        batch_size: how many are decoded at a time.
    """

    sources: tuple[Tensor, ...] = ()
    batch_size: int = 1


@dataclass(frozen=True)
class Outcome:
    """What one arm did with one case.

    Attributes:
        tokens: the output, end of sequence included, decoder start token excluded; of a
            `BatchCase` all outputs, one behind the other.
        seconds: wall clock, all encoders included.
        encoder_seconds: of the encoders; None where the arm cannot tell.
        stats: what happened; None for arms that do not decode with `bild.generation`.
    """

    tokens: list[int]
    seconds: float
    encoder_seconds: float | None = None
    stats: DecodeStats | None = None


class Arm(Protocol):
    """A way to decode, ready to run."""

    @property
    def id(self) -> ArmId:
        """Which one."""

    @property
    def built(self) -> str:
        """What runs it and how that was built, for records."""

    def run(self, case: Case) -> Outcome:
        """Decode one case. Only decoding is within the seconds: nothing is measured in them."""


@runtime_checkable
class BatchArm(Arm, Protocol):
    """An arm that can decode several cases together."""

    def run_together(self, cases: Sequence[Case]) -> list[Outcome]:
        """Decode cases together; of its seconds each gets an equal part."""


def limits(case: Case, model: Any) -> dict[str, Any]:
    """A case's limits for `generate`.

    Args:
        case: to decode.
        model: that decodes it, of transformers.
    """
    found: dict[str, Any] = {"max_new_tokens": case.max_new_tokens}
    if case.exact:
        # One past the last id: no model writes that. (min_new_tokens would do, but is looked at
        # with every token.)
        found["eos_token_id"] = model.get_output_embeddings().weight.shape[0]
    return found

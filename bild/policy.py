"""The rules of Big Little Decoder as values: when drafting stops, and where a draft is cut.

A rule is a small frozen object that the decoding loop asks; there is no model in sight. The three
sets of rules that papers and code know are entries of `RULES`; a set of one's own is one more
entry, made of one class:

    @dataclass(frozen=True)
    class AgreeOrGo(AcceptanceRule):
        threshold: float

        def first_cut(self, distances, large_tokens, drafted):
            ...

    RULES["agree-or-go"] = AgreeOrGo
    BiLDConfig(0.6, 2.0, variant="agree-or-go")

Letters used for shapes: T drafted tokens.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal, Protocol

Writer = Literal["large", "small"]


class FallbackRule(Protocol):
    """When the small model hands over to the large one."""

    def should_stop(self, probability: float) -> bool:
        """Whether the small model is too unsure to write its token.

        Args:
            probability: of the token it would write, after the logits processors.
        """


@dataclass(frozen=True)
class MaxProbability:
    """Hand over where the highest probability is below a threshold (paper, Eq. 1); strict.

    Attributes:
        threshold: alpha_FB; 0 never stops, more than 1 always does.
    """

    threshold: float

    def should_stop(self, probability: float) -> bool:
        return probability < self.threshold

    @property
    def never_writes(self) -> bool:
        """Whether no probability is enough, so that the large model writes every token."""
        return self.threshold > 1


NEVER_STOPS = MaxProbability(0.0)


@dataclass(frozen=True)
class AcceptanceRule(ABC):
    """What the large model does with a draft.

    Attributes:
        needs: the measures of a draft that `first_cut` reads; engines make "distances".
        after_cut: the model that writes the token after the one that replaced a rolled back one.
        checks_end: whether the large model looks at the last window before the output may end;
            else a drafted end of sequence, or the length limit, ends the output at once.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"distances"})

    after_cut: Writer = field(default="small", kw_only=True)
    checks_end: bool = field(default=True, kw_only=True)

    @abstractmethod
    def first_cut(
        self, distances: Sequence[float], large_tokens: Sequence[int], drafted: Sequence[int]
    ) -> int | None:
        """Index of the drafted token at which the large model takes over again, or None.

        Args:
            distances: T values, the large model's distance from each drafted token in nats,
                `-log p_L`, of its raw logits.
            large_tokens: T or more, the tokens the large model would have written.
            drafted: T, the tokens the small model wrote.
        """

    @property
    def is_lossless(self) -> bool:
        """Whether every output is the large model's own greedy output, whatever was drafted."""
        return False

    def same_below(self, distances: Sequence[float]) -> float:
        """The rollback threshold below which drafts of these distances are judged as by this rule.

        Any threshold from this rule's own up to there, that one excluded, gives the same outputs,
        which then need not be decoded again. Here: none is known to.
        """
        return -math.inf


@dataclass(frozen=True)
class DistanceRule(AcceptanceRule):
    """Cut at a token that is far from the large model and not its choice (paper, Eq. 2); strict.

    Attributes:
        threshold: alpha_RB, nats.
        first_far_only: look only at the first position over the threshold, as the published code
            does, and keep the draft where the large model agrees there; else the earliest position
            that is over the threshold and differs counts.
    """

    threshold: float
    first_far_only: bool = False

    def first_cut(
        self, distances: Sequence[float], large_tokens: Sequence[int], drafted: Sequence[int]
    ) -> int | None:
        for i, (distance, token) in enumerate(zip(distances, drafted, strict=True)):
            if distance > self.threshold:
                if large_tokens[i] != token:
                    return i
                if self.first_far_only:
                    return None
        return None

    @property
    def is_lossless(self) -> bool:
        return self.threshold == 0 and self.checks_end and not self.first_far_only

    def same_below(self, distances: Sequence[float]) -> float:
        return min((d for d in distances if d > self.threshold), default=math.inf)


# Rules by name; each is made of a rollback threshold, in nats.
# "authors": as the published code, which made the published numbers. After a rollback the large
#     model writes one more token; a drafted end of sequence ends the output unchecked.
# "paper": as its Algorithm 1; the small model resumes at once after a rollback.
# "verified": as "paper", but the large model checks the last window before the output may end.
RULES: dict[str, Callable[[float], AcceptanceRule]] = {
    "authors": partial(DistanceRule, first_far_only=True, after_cut="large", checks_end=False),
    "paper": partial(DistanceRule, checks_end=False),
    "verified": partial(DistanceRule, checks_end=True),
}
PUBLISHED = "authors"  # the rules of the published numbers

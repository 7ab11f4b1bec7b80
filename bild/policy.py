"""The rules of Big Little Decoder as values: when drafting stops, and where a draft is cut.

A rule is a small frozen object that the decoding loop asks; there is no model in sight. The three
sets of rules that papers and code know are entries of `RULES`; the rules of other papers are in
`bild.rules`. A set of one's own is one more entry, made of one class:

    @dataclass(frozen=True)
    class AgreeOrGo(AcceptanceRule):
        threshold: float

        def first_cut(self, window):
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
from typing import ClassVar, Literal, NamedTuple

from bild.errors import BildError

Writer = Literal["large", "small"]


def check_setting(
    rule: str, name: str, value: float, least: float, most: float, *, whole: bool = False
) -> None:
    """Refuse a rule's setting outside its range, NaN included.

    Raises:
        BildError: by rule, name and value.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    right = number and least <= value <= most
    if not right or (whole and value != math.inf and value != int(value)):
        kind = "whole number" if whole else "number"
        raise BildError(
            f"{rule}: {name} must be a {kind} from {least:g} to {most:g}, got {value!r}"
        )


class Step(NamedTuple):
    """How sure the small model is of the token it would write, after the logits processors.

    Attributes:
        probability: of that token.
        product: of the probabilities of this draft's tokens, this one included.
        entropy: of its distribution, in nats; NaN unless the rule needs "entropy".
        margin: by how much the token is more likely than the second; NaN unless the rule needs
            "margin".
    """

    probability: float
    product: float
    entropy: float = math.nan
    margin: float = math.nan


class FallbackRule(ABC):
    """When the small model hands over to the large one.

    Attributes:
        needs: fields of `Step` that are made for this rule: "entropy" and "margin", which want
            the whole distribution.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def should_stop(self, step: Step) -> bool:
        """Whether the small model is too unsure to write its token."""

    @property
    def never_writes(self) -> bool:
        """Whether it never is sure enough, so that the large model writes every token."""
        return False


@dataclass(frozen=True)
class MaxProbability(FallbackRule):
    """Hand over where the highest probability is below a threshold (paper, Eq. 1); strict.

    Attributes:
        threshold: alpha_FB; 0 never stops, more than 1 always does.
    """

    threshold: float = 0.6

    def __post_init__(self) -> None:
        check_setting("max", "threshold", self.threshold, 0, math.inf)

    def should_stop(self, step: Step) -> bool:
        return step.probability < self.threshold

    @property
    def never_writes(self) -> bool:
        return self.threshold > 1


NEVER_STOPS = MaxProbability(0.0)


@dataclass(frozen=True)
class Window:
    """What is known of a draft when the large model has looked at it.

    Attributes:
        drafted: T, the tokens the small model wrote.
        large_tokens: T or more, the tokens the large model would have written.
        distances: T, the large model's distance from each drafted token in nats, `-log p_L`, of
            its raw logits.
        own_distances: T, its distance from its own choices, likewise.
        confidences: T, the small model's probability of each drafted token, after the logits
            processors.
        spent: what the rule has let pass before in this output, `AcceptanceRule.spends` added up.
        entropies: T, of the large model's distributions, in nats; empty unless needed.
        ranks: T, how many tokens the large model finds likelier than the drafted one; empty unless
            needed.
    """

    drafted: Sequence[int]
    large_tokens: Sequence[int]
    distances: Sequence[float]
    own_distances: Sequence[float]
    confidences: Sequence[float]
    spent: float = 0.0
    entropies: Sequence[float] = ()
    ranks: Sequence[int] = ()

    def part(self, start: int, end: int, spent: float | None = None) -> Window:
        """The drafted tokens from `start` up to `end`, that one excluded.

        Args:
            start, end: places of drafted tokens.
            spent: before them; None for as much as before the whole window.
        """
        here = slice(start, end)
        return Window(
            self.drafted[here],
            self.large_tokens[here],
            self.distances[here],
            self.own_distances[here],
            self.confidences[here],
            self.spent if spent is None else spent,
            self.entropies[here],
            self.ranks[here],
        )


# What is known of every draft, and what an engine measures of the whole distribution where a rule
# asks for it.
FREE_MEASURES = frozenset({"distances", "own_distances", "confidences"})
DEAR_MEASURES = frozenset({"entropies", "ranks"})


@dataclass(frozen=True)
class AcceptanceRule(ABC):
    """What the large model does with a draft.

    Attributes:
        needs: the fields of `Window` that `first_cut` reads; of `FREE_MEASURES` and
            `DEAR_MEASURES`.
        after_cut: the model that writes the token after the one that replaced a rolled back one.
        checks_end: whether the large model looks at the last window before the output may end;
            else a drafted end of sequence, or the length limit, ends the output at once.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"distances"})

    after_cut: Writer = field(default="small", kw_only=True)
    checks_end: bool = field(default=True, kw_only=True)

    @abstractmethod
    def first_cut(self, window: Window) -> int | None:
        """Index of the drafted token at which the large model takes over again, or None."""

    def spends(self, window: Window, kept: int) -> float:
        """What the first `kept` tokens of a window take from the output's allowance; here nothing.

        What is rolled back is never spent: the loop asks once it knows what is kept.
        """
        return 0.0

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

    threshold: float = 2.0
    first_far_only: bool = False

    def __post_init__(self) -> None:
        check_setting("bild", "threshold", self.threshold, 0, math.inf)

    def first_cut(self, window: Window) -> int | None:
        for i, (distance, token) in enumerate(zip(window.distances, window.drafted, strict=True)):
            if distance > self.threshold:
                if window.large_tokens[i] != token:
                    return i
                if self.first_far_only:
                    return None
        return None

    @property
    def is_lossless(self) -> bool:
        # Below log 2 a kept token has more than half of the large model's probability: it is its
        # first choice. (Logits processors may make another one the first.)
        certain = self.threshold < math.log(2)
        return certain and self.checks_end and not self.first_far_only

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

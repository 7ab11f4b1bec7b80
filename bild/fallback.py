"""Fallback rules of other papers, with their sources; by name in `bild.rules`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from bild.policy import FallbackRule, Step, check_setting


@dataclass(frozen=True)
class Entropy(FallbackRule):
    """Hand over where the small model's entropy is above a limit.

    Source: as the signal of Zhang et al., "Draft & Verify" (ACL 2024), and of AdaEDL (2024), which
    bounds the acceptance by it.

    Attributes:
        limit: nats; inf never stops, 0 stops wherever another token is possible at all.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    limit: float = 1.0

    def __post_init__(self) -> None:
        check_setting("entropy", "limit", self.limit, 0, math.inf)

    def should_stop(self, step: Step) -> bool:
        return step.entropy > self.limit


@dataclass(frozen=True)
class Margin(FallbackRule):
    """Hand over where the likeliest token leads the second by less than `least`.

    Source: the margin of active learning (Scheffer et al. 2001); as a measure for cascades in
    Jitkrittum et al., "When Does Confidence-Based Cascade Deferral Suffice?", NeurIPS 2023.

    Attributes:
        least: 0 never stops, more than 1 always does.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"margin"})

    least: float = 0.3

    def __post_init__(self) -> None:
        check_setting("margin", "least", self.least, 0, math.inf)

    def should_stop(self, step: Step) -> bool:
        return step.margin < self.least

    @property
    def never_writes(self) -> bool:
        return self.least > 1


@dataclass(frozen=True)
class Product(FallbackRule):
    """Hand over where the whole draft has become too unlikely to stand.

    The product of the probabilities of the draft's tokens takes the place of the chance that the
    large model accepts them all; drafting stops where that falls below `least`.

    Source: Huang et al., "SpecDec++: Boosting Speculative Decoding via Adaptive Candidate Lengths",
    2024, whose form this is, with the small model's own probabilities for the trained predictor's.

    Attributes:
        least: 0 never stops, more than 1 always does.
    """

    least: float = 0.3

    def __post_init__(self) -> None:
        check_setting("product", "least", self.least, 0, math.inf)

    def should_stop(self, step: Step) -> bool:
        return step.product < self.least

    @property
    def never_writes(self) -> bool:
        return self.least > 1


@dataclass(frozen=True)
class Adaptive(FallbackRule):
    """Draft as long as it pays by the clock, and not at all where it does not.

    What forwards take and what share of the drafts stands are measured while decoding; they say
    how sure the small model must be, how many tokens it may write in a row, and when the large
    model writes alone for a while (`bild.generation.pace`). With an acceptance rule that is not
    exact the output depends on the clock.

    Source: this project; draft lengths grow and shrink by what their last token brings, which is
    the schedule of transformers' assisted generation where that token costs a third of a forward.

    Attributes:
        threshold: how sure the small model must be at least, as of `MaxProbability`.
    """

    threshold: float = 0.2

    def __post_init__(self) -> None:
        check_setting("adaptive", "threshold", self.threshold, 0, math.inf)

    def should_stop(self, step: Step) -> bool:
        return step.probability < self.threshold

    @property
    def never_writes(self) -> bool:
        return self.threshold > 1

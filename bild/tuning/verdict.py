"""What decoded examples say of a candidate: pure functions over sampled scores, and numpy alone.

A search chooses the fastest of many candidates that were shown to lose no more than is allowed.
Were each of them shown that by itself with 95 % confidence, the chosen one would be wrong far more
often than in 5 % of all searches: the more candidates at the limit, the better the chance that one
of them is lucky. So here the confidence covers the choice. An estimate must clear the limit by a
margin of so many standard errors that, with the confidence asked for, NO candidate's estimate is
too good by more than its margin. Whichever is then chosen, and for whatever reason, loses at most
its bound; all bounds hold at once.

The margin is that of a max-t test: the quantile of the largest of the candidates' standardised
errors, which are taken to follow Student's t and to be as correlated as their resampled scores are
(all candidates share the resampled examples). Candidates that were given up, or never tried, count
as well: what a search tries next depends on what it saw, so they could have been chosen. Their
errors are not known; they are drawn with the lowest correlation that is seen between two of the
others, which is the safe side (Slepian's inequality).

Tried, and left (tests/tuning/test_verdict.py has the simulation):
- Bonferroni over the candidates holds too, but asks for a wider margin, as it cannot use that the
  errors are correlated;
- counting only the candidates that were decoded to the end does not hold: the lucky ones are those
  that get there;
- proposing on some of the examples and deciding on the others, candidate by candidate from the
  safest on, needs no margin for the choice, but chose slower thresholds, and more often none: the
  decision has fewer examples.
The errors must be near to normal: a hundred examples at least, and not a metric that a few of them
decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

FIRST_LOOK = 32  # examples; each later look has half as many again
DRAWS = 20_000  # of all candidates' errors; more where the confidence needs them
BEYOND = 50  # draws beyond the margin, at least
UNKNOWN = 0.5  # correlation of errors while fewer than two candidates tell

Floats = npt.NDArray[np.float64]
Verdict = Literal["kept", "too lossy", "too slow"]


@dataclass(frozen=True)
class Plan:
    """What is decided before anything is decoded.

    Attributes:
        total: examples that a candidate is decoded on, unless it is given up before.
        candidates: how many there are to choose from, tried or not.
        confidence: that the chosen one does not lose more than is allowed.
    """

    total: int
    candidates: int
    confidence: float

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of examples after which a candidate is judged; the last is all of them."""
        looks = [FIRST_LOOK]
        while looks[-1] < self.total:
            looks.append(looks[-1] * 3 // 2)
        return (*looks[:-1], self.total)


@dataclass(frozen=True)
class Estimate:
    """A figure of the first examples, and how far it may be off.

    Attributes:
        value: of those examples.
        resampled: of resampled ones, (resamples,). One seed for every candidate: they share the
            resampled examples.
    """

    value: float
    resampled: Floats

    @property
    def error(self) -> float:
        """The standard error."""
        return float(self.resampled.std())

    def bound(self, margin: float) -> float:
        """The figure is at least this: so many standard errors less."""
        return self.value - margin * self.error


def margin(whole: Sequence[Estimate], plan: Plan) -> float:
    """Standard errors by which an estimate must clear the limit, so that the choice is safe.

    Args:
        whole: of the candidates decoded to the end the estimated headroom: what they may still
            lose. On the same examples, with the same resamples.
        plan: of the search; its candidates are at least as many.

    Returns:
        The quantile, at the confidence, of the largest of all candidates' standardised errors.
    """
    # Candidates that always write what the large model writes cannot be wrong.
    errors = [e.resampled for e in whole if e.error > 0]
    unseen = plan.candidates - len(whole)
    assert unseen >= 0
    if not errors and not unseen:
        return 0.0
    draws = max(DRAWS, math.ceil(BEYOND / (1 - plan.confidence)))
    largest, common, lowest = np.full(draws, -np.inf), _normal(1, draws)[0], UNKNOWN
    if errors:
        correlations = np.atleast_2d(np.corrcoef(np.array(errors)))
        drawn = _correlated(correlations, draws)  # (candidates, draws)
        largest = drawn.max(axis=0)
        mean = drawn.mean(axis=0)
        if mean.std() > 0:
            common = mean / mean.std()
    if len(errors) > 1:
        lowest = min(max(float(correlations.min()), 0.0), 1.0)
    if unseen:
        own = math.sqrt(1 - lowest) * _largest(unseen, draws)
        largest = np.maximum(largest, math.sqrt(lowest) * common + own)
    # Standard errors are estimates as well, of so many examples: Student's t, not the normal law.
    off = _too_small(max(1, plan.total - 1), draws)
    return max(0.0, float(np.quantile(largest / off, plan.confidence)))


def judge(
    samples: int, headroom: Estimate, lead: Estimate | None, margin: float, plan: Plan
) -> Verdict | None:
    """Whether a candidate is kept or given up, or None: decode on.

    After the last example it is kept if its headroom is shown. That is the only look that can keep
    a candidate, so the number of looks costs no confidence. At an earlier look it is given up where
    one of two chances is small: that it will be kept in the end, and that it will then be faster
    than the fastest candidate kept so far. Small is (1 - confidence) / looks, so that all looks
    together give up a good candidate with a chance of 1 - confidence at most.

    Of `n` examples of `total`, the figure of all examples differs from that of the first by
    sqrt(1 - n / total) standard errors of the first, and will have a standard error of
    sqrt(n / total) of theirs.

    Args:
        samples: how many examples were decoded.
        headroom: points between the allowed and the actual loss, on these.
        lead: its speedup less that of the fastest candidate kept, on these; None where none is.
        margin: of `margin`.
        plan: of the search.
    """
    if samples == plan.total:
        return "kept" if headroom.bound(margin) >= 0 else "too lossy"
    decoded = samples / plan.total
    small = (1 - plan.confidence) / len(plan.looks)
    in_the_end = expected_bound(samples, headroom, margin, plan)
    if _chance(in_the_end, headroom.error * math.sqrt(1 - decoded)) <= small:
        return "too lossy"
    if lead is not None and 1 - _chance(-lead.value, lead.error * math.sqrt(1 - decoded)) <= small:
        return "too slow"
    return None


def expected_bound(samples: int, headroom: Estimate, margin: float, plan: Plan) -> float:
    """The headroom's bound as it is expected to be once all examples are decoded."""
    return headroom.bound(margin * math.sqrt(samples / plan.total))


def _chance(mean: float, deviation: float) -> float:
    """That a normal figure is at least 0."""
    if deviation == 0:
        return float(mean >= 0)
    return NormalDist().cdf(mean / deviation)


def _correlated(correlations: Floats, draws: int) -> Floats:
    """Normal figures with these correlations, (candidates, draws)."""
    values, vectors = np.linalg.eigh(correlations)
    return (vectors * np.sqrt(values.clip(min=0))) @ _normal(len(correlations), draws)


# The same draws for every margin: it moves with what was decoded, not with luck.


@lru_cache(maxsize=2)
def _normal(count: int, draws: int) -> Floats:
    """Independent normal figures, (count, draws)."""
    return np.random.default_rng(1).standard_normal((count, draws))


@lru_cache(maxsize=2)
def _too_small(freedom: int, draws: int) -> Floats:
    """By how much estimated standard errors are off, with so many degrees of freedom, (draws,)."""
    return np.sqrt(np.random.default_rng(2).chisquare(freedom, draws) / freedom)


@lru_cache(maxsize=256)
def _largest(count: int, draws: int) -> Floats:
    """The largest of so many independent normal figures, (draws,)."""
    rng = np.random.default_rng(3)
    largest = np.full(draws, -np.inf)
    for _ in range(count):
        np.maximum(largest, rng.standard_normal(draws), out=largest)
    return largest

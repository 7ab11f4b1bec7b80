"""What thresholds are worth: decoded example by example, until that is clear.

After each chunk it is asked with what chance thresholds will be shown, once all examples are
decoded, to lose no more than is allowed, and with what chance they will then be faster than the
best ones so far. Where one of the two is small, they are given up (`bild.tuning.verdict`, which
also says what the confidence covers). All that was asked is asked again as more becomes known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from bild.config import SearchConfig
from bild.evaluation import timing
from bild.evaluation.arms import BILD, VANILLA, Arm
from bild.evaluation.loop import Loop, Sample, samples
from bild.generation.stats import DecodeStats
from bild.progress import progress_bar
from bild.tasks import metrics
from bild.tasks.registry import Thresholds
from bild.tuning.prices import Price
from bild.tuning.proposals import candidates
from bild.tuning.record import TriedPoint
from bild.tuning.verdict import Estimate, Plan, Verdict, expected_bound, judge, margin

RESAMPLES = 1000  # of the examples, for standard errors and what they have in common

# The arms that decode with thresholds, or the large model alone (None).
ArmsOf = Callable[[Thresholds | None], Sequence[Arm]]


@dataclass(frozen=True)
class Look:
    """What the first examples decoded with thresholds say.

    Attributes:
        score: of the metric.
        loss: the large model's score less this one.
        headroom: points that may still be lost.
        times: of each example, by the large model alone and by the pair.
        stats: what the pair did.
    """

    score: float
    loss: Estimate
    headroom: Estimate
    times: tuple[tuple[float, float], ...]
    stats: DecodeStats

    @property
    def samples(self) -> int:
        """How many examples these are."""
        return len(self.times)


class Search:
    """Decodes examples with thresholds, and says what they are worth.

    What is decoded goes to a folder, a file each, and is read from there the next time.

    Args:
        arms: what decodes with thresholds.
        loop: the examples, in an order that means nothing: the first ones stand for all of them.
        folder: where decoded examples are kept; one folder for one `arms`.
        metric: of `bild.tasks.metrics`.
        config: what is searched for.
        price: what an example costs.
        progress: show progress bars.
    """

    def __init__(
        self,
        arms: ArmsOf,
        loop: Loop,
        folder: Path,
        metric: str,
        config: SearchConfig,
        price: Price,
        *,
        progress: bool = True,
    ) -> None:
        self.config, self.progress = config, progress
        choice = len(candidates(config, config.method))
        self.plan = Plan(len(loop.items), choice, config.confidence)
        self.tried: dict[Thresholds, Look] = {}
        self._arms, self._loop = arms, replace(loop, runs=1)
        self._folder, self._metric, self._price = folder, metric, price
        self._margin_of: tuple[int, float] | None = None  # how many were whole, and their margin
        self._speedups: dict[tuple[Thresholds, int], Estimate] = {}
        folder.mkdir(parents=True, exist_ok=True)
        total = self.plan.total
        alone = islice(self._samples(None), total)
        self.large = list(progress_bar("large alone", total, shown=progress, over=alone))

    @property
    def spent(self) -> int:
        """Examples decoded by the pair, were nothing known before."""
        return sum(look.samples for look in self.tried.values())

    @property
    def whole(self) -> list[Thresholds]:
        """Those decoded to the end."""
        return [t for t, look in self.tried.items() if look.samples == self.plan.total]

    @property
    def margin(self) -> float:
        """Standard errors between a loss and its bound, by what is known so far."""
        whole = self.whole
        if self._margin_of is None or self._margin_of[0] != len(whole):
            headrooms = [self.tried[t].headroom for t in whole]
            self._margin_of = len(whole), margin(headrooms, self.plan)
        return self._margin_of[1]

    @property
    def best(self) -> Thresholds | None:
        """The fastest that were kept."""
        kept = [t for t in self.whole if self._judge(t, None) == "kept"]
        return max(kept, key=self.speedup, default=None)

    @property
    def centre(self) -> Thresholds | None:
        """The best; where none were kept, those nearest to it."""
        if self.best is None:
            return max(self.tried, key=self.headroom, default=None)
        return self.best

    def verdict(self, thresholds: Thresholds) -> Verdict | None:
        """Whether they are kept or given up, by what is known now; None while that is open."""
        best = self.best
        if best is None or best == thresholds:
            return self._judge(thresholds, None)
        count = self.tried[thresholds].samples
        own, theirs = self._speedup(thresholds, count), self._speedup(best, count)
        lead = Estimate(own.value - theirs.value, own.resampled - theirs.resampled)
        return self._judge(thresholds, lead)

    def reopened(self) -> Thresholds | None:
        """Some that were given up for what is no longer so; the margin or the best has changed."""
        return next((t for t in self.tried if self.verdict(t) is None), None)

    def headroom(self, thresholds: Thresholds) -> float:
        """Points between the allowed loss and its bound, as expected for all examples."""
        look = self.tried[thresholds]
        return expected_bound(look.samples, look.headroom, self.margin, self.plan)

    def speedup(self, thresholds: Thresholds) -> float:
        """Over the large model alone."""
        return self._speedup(thresholds, self.tried[thresholds].samples).value

    def examine(self, thresholds: Thresholds, bar: tqdm, *, to_the_end: bool = False) -> None:
        """Decode with thresholds until it is clear what they are worth, or to the end."""
        known = self.tried.get(thresholds)
        done = 0 if known is None else known.samples
        looks = [self.plan.total] if to_the_end else [n for n in self.plan.looks if n > done]
        texts: list[str] = []
        times: list[tuple[float, float]] = []
        stats = DecodeStats()
        for large, sample in zip(self.large, self._samples(thresholds), strict=False):
            texts.append(sample.of(BILD).text or "")
            times.append(self._price(large, sample))
            stats += sample.of(BILD).did
            if len(texts) > done:
                bar.update()
            if len(texts) in looks:
                self.tried[thresholds] = self._look(texts, times, stats)
                if self.verdict(thresholds) is not None:
                    break
        best = self.best
        if best is not None:
            shown = f"{best.fallback:g} {best.rollback:g}: {self.speedup(best):.2f}x"
            bar.set_postfix_str(shown)

    def learn(self, thresholds: Thresholds, count: int) -> None:
        """Look at the first so many examples, which another worker has decoded."""
        found = list(zip(self.large, islice(self._samples(thresholds), count), strict=False))
        texts = [sample.of(BILD).text or "" for _, sample in found]
        times = [self._price(large, sample) for large, sample in found]
        stats = sum((sample.of(BILD).did for _, sample in found), DecodeStats())
        self.tried[thresholds] = self._look(texts, times, stats)

    def put_in_order(self, order: Iterable[Thresholds]) -> None:
        """Forget in which order the thresholds were tried here: it was another one elsewhere."""
        self.tried = {thresholds: self.tried[thresholds] for thresholds in order}
        self._margin_of = None

    def points(self) -> list[TriedPoint]:
        """What is now known of all that were tried, in that order."""
        return [self._point(thresholds) for thresholds in self.tried]

    def _point(self, thresholds: Thresholds) -> TriedPoint:
        look = self.tried[thresholds]
        speedup = self._speedup(thresholds, look.samples)
        low, high = np.quantile(speedup.resampled, (0.025, 0.975))
        return TriedPoint(
            fallback=thresholds.fallback,
            rollback=thresholds.rollback,
            samples=look.samples,
            score=look.score,
            loss=look.loss.value,
            loss_bound=look.loss.bound(-self.margin),
            headroom=self.headroom(thresholds),
            speedup=speedup.value,
            low=float(low),
            high=float(high),
            fallback_rate=look.stats.fallback_rate,
            rollback_rate=look.stats.rollback_rate,
            large_forward_rate=look.stats.large_forward_rate,
            verdict=self.verdict(thresholds),
        )

    def _judge(self, thresholds: Thresholds, lead: Estimate | None) -> Verdict | None:
        look = self.tried[thresholds]
        return judge(look.samples, look.headroom, lead, self.margin, self.plan)

    def _look(
        self, texts: Sequence[str], times: Sequence[tuple[float, float]], stats: DecodeStats
    ) -> Look:
        large = self.large[: len(texts)]
        alone = [s.of(VANILLA).text or "" for s in large]
        references = [s.reference or "" for s in large]
        scores, resampled = metrics.resampled_scores(
            self._metric, [texts, alone], references, RESAMPLES
        )
        asked = self.config
        share = 1 - asked.max_loss / 100 if asked.percent else 1.0
        allowed = 0.0 if asked.percent else asked.max_loss
        own, theirs = scores
        all_own, all_theirs = resampled.T
        return Look(
            score=float(own),
            loss=Estimate(float(theirs - own), all_theirs - all_own),
            headroom=Estimate(
                float(own - share * theirs + allowed), all_own - share * all_theirs + allowed
            ),
            times=tuple(times),
            stats=stats,
        )

    def _speedup(self, thresholds: Thresholds, count: int) -> Estimate:
        """Of the first so many examples."""
        key = thresholds, count
        if key not in self._speedups:
            alone, pair = zip(*self.tried[thresholds].times[:count], strict=True)
            self._speedups[key] = Estimate(*timing.resampled_speedups(alone, pair, RESAMPLES))
        return self._speedups[key]

    def _samples(self, thresholds: Thresholds | None) -> Iterator[Sample]:
        """The examples as they come: first those on disk, then newly decoded ones, written down."""
        return samples(self._arms(thresholds), self._loop, decoded_file(self._folder, thresholds))


def decoded_file(folder: Path, thresholds: Thresholds | None) -> Path:
    """Where examples decoded with thresholds are kept, or by the large model alone (None)."""
    name = "large" if thresholds is None else f"{thresholds.fallback:g}-{thresholds.rollback:g}"
    return folder / f"{name}.jsonl"


def front(points: Sequence[TriedPoint], total: int) -> list[int]:
    """Of the points decoded to the end those that none beats in both loss and speedup.

    Args:
        points: any.
        total: examples that make a point whole.

    Returns:
        Indices of `points`, the slowest first.
    """
    found: list[int] = []
    whole = [i for i, p in enumerate(points) if p.samples == total]
    for i in sorted(whole, key=lambda i: (-points[i].speedup, points[i].loss)):
        if not found or points[i].loss < points[found[-1]].loss:
            found.append(i)
    return found[::-1]
